"""A wide set of calls: `record.py` has what optimum-quanto 0.2.7 does in each, and ours is compared with that."""

from .activations import activation_cases
from .cases import Case
from .functions import function_cases
from .modules import module_cases
from .weights import weight_cases


__all__ = ["CASES", "Case"]


def _by_name(*lists: "list[Case]") -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for case in (case for cases_of in lists for case in cases_of):
        assert case.name not in cases, f"two cases are called {case.name}"
        cases[case.name] = case
    return cases


CASES = _by_name(activation_cases(), weight_cases(), function_cases(), module_cases())
