"""What optimum-quanto 0.2.7 does in thousands of calls, and where this library deliberately does something else."""

import json
import sys
import warnings
from collections import defaultdict
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch


sys.path.insert(0, str(Path(__file__).parent / "golden"))

from parity import CASES
from parity.record import describe, read, run, values_of


@dataclass(frozen=True)
class Difference:
    """Cases in which 0.2.7 is not followed.

    Attributes:
        reason: what is wrong there.
        patterns: of the names of the cases.
        raises: a clear error is what is right; else the result is that of the dequantized arguments.
    """

    reason: str
    patterns: tuple[str, ...]
    raises: bool = False


IN_PLACE = (
    *("mul_", "imul", "div_", "add_", "sub_", "neg_", "abs_", "clamp_", "exp_", "zero_", "fill_"),
    *("setitem", "unsqueeze_", "squeeze_", "transpose_", "t_"),
)

DIFFERENCES = [
    Difference(
        "what is written in place is lost without a word",
        (
            *(f"activation/{name}/*" for name in IN_PLACE),
            *(f"gradient/{name}/*" for name in ("mul_", "add_")),
            *(f"pair/{name}/*" for name in ("mul_", "add_")),
            "weight/add_/*",
            "weight/zero_/*",
        ),
        raises=True,
    ),
    Difference(
        "what codes can hold is written in place too",
        ("activation/relu_/*", "activation/relu_inplace_argument/*", "activation/masked_fill_/*"),
    ),
    Difference(
        "crashes: the operator's implementation cannot take these arguments",
        (
            "activation/t/*/vector",
            "activation/t/*/scalar",
            "activation/stack_three/*",
            "gradient/stack_three/*",
            "activation/div_*",
            "gradient/div_*",
            "activation/into_floats/*",
            "gradient/into_floats/*",
            "activation/set_floats/*",
            "pair/div/*",
            "pair/lt/qfloat8_e4m3fn/*",
            "pair/stack/*",
            "error/activation_scale_of_one_element",
        ),
    ),
    Difference("not implemented: where() with a quantized second value", ("*/where*/*",)),
    Difference(
        "the parts of a split have the size of the whole, and no gradient",
        ("activation/split*", "activation/chunk/*", "gradient/split*", "gradient/chunk/*", "gradient/cat_of_split/*"),
    ),
    Difference("an alias, which tracing takes, is decoded", ("activation/alias/*", "activation/movedim/*/scalar")),
    Difference("a scale cast to integers is zero", ("activation/to_int32/*",)),
    Difference("kernels have no float64 scales: the numbers are converted", ("activation/to_float64/*",)),
    Difference("the result has a dimension too many", ("product/linear_vector/*",)),
    Difference("crashes: an axis of the weight that its product does not expect", ("product/linear*/weight8_last",)),
    Difference(
        "a weight without float8 comparison cannot be compared",
        ("weight/equal/*fnuz/*", "weight/equal_clone/*fnuz/*", "weight/method_equal/*fnuz/*"),
    ),
    Difference(
        "a copy is decoded, so that deepcopy fails", ("weight/clone/*", "weight/deepcopy/*", "function/packed_clone/*")
    ),
    Difference("the dtype of a weight cannot be changed", ("weight/to_other_dtype/*", "weight/half/*")),
    Difference("crashes: a model without weight qtype, but with modules", ("module/*/None/*",)),
    Difference(
        "a single row has a scale for each element, all zero: codes come from 0 / 0",
        ("weight/*/qint[24]/*/one_row", "function/quantize_affine/*/one_row_ungrouped/*"),
    ),
    Difference(
        "a float copied into codes is lost without a word, or an attribute is missing",
        ("weight/copy_floats/*", "activation/copy_floats/*", "activation/setitem/*/vector", "pair/copy_/*"),
        raises=True,
    ),
    Difference(
        "an assert, which names nothing", ("error/pack_bits", "error/pack_dtype", "optimizer/wrong_dtype"), raises=True
    ),
]

# Streamlined calibration leaves every output float there, also those that functions on codes consume; see the
# description of `Calibration`. What differs then is where values are rounded to codes.
STREAMLINED = ("module/frozen/*", "module/unfrozen/*")

_PRODUCT_BOUND = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(scope="module")
def records():
    return read()


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)


def _by_operation() -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in CASES:
        groups["/".join(name.split("/")[:2])].append(name)
    return groups


def _difference(name):
    return next((d for d in DIFFERENCES if any(fnmatch(name, pattern) for pattern in d.patterns)), None)


def _without_values(record):
    if isinstance(record, dict):
        return {key: _without_values(value) for key, value in record.items() if key != "values"}
    return [_without_values(item) for item in record] if isinstance(record, list) else record


def _numbers(record):
    """All tensors of a record, as lists of (numbers, whether they are codes)."""
    if "items" in record:
        return [t for item in record["items"] for t in _numbers(item)]
    if "values" not in record:
        return []
    data, dtype = bytearray(bytes.fromhex(record["values"])), getattr(torch, record["dtype"])
    return [(torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype), "qtype" in record)]


def _distance(a, b):
    a, b = a.double(), b.double()
    return 0.0 if a.numel() == 0 else float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


def _bound(name, is_code, dtype):
    """How far a sum of products may lie from the recorded one, relative to the largest."""
    if not CASES[name].product:
        return 0.0
    if any(fnmatch(name, pattern) for pattern in STREAMLINED) and "/None/f32" not in name:
        return 0.1
    # A sum in another order can flip its rounding to bfloat16, and that the rounding to a code.
    return 8e-2 if is_code and dtype == torch.bfloat16 else _PRODUCT_BOUND.get(dtype, 0.0)


def _same_values(name, mine, theirs):
    return all(
        _distance(m, t) <= _bound(name, is_code, t.dtype)
        for (m, is_code), (t, _) in zip(_numbers(mine), _numbers(theirs), strict=True)
    )


def _plain_result(case):
    """What the case gives for the decoded arguments, or None where that is no tensor."""
    arguments = [values_of(a) if isinstance(a, torch.Tensor) else a for a in case.arguments()]
    try:
        return describe(case.function(*arguments)) if arguments else None
    except AttributeError:  # a case about attributes that only quantized tensors have
        return None


def _is_torchs(name, mine):
    """Torch's functions of decoded numbers round differently from one CPU to the next: this one's are right."""
    return mine == _plain_result(CASES[name])


def _agrees(name, mine, theirs):
    if _without_values(mine) != _without_values(theirs):
        return False
    return _same_values(name, mine, theirs) or _is_torchs(name, mine)


def _check_right(name, mine):
    """The result is finite and, up to the rounding of sums and codes, that of the decoded arguments."""
    expected = _plain_result(CASES[name])
    for index, (m, _) in enumerate(_numbers(mine)):
        if expected is not None and len(_numbers(expected)) > index:
            assert _distance(m, _numbers(expected)[index][0]) <= 1e-2, name
        elif m.dtype.is_floating_point:
            assert m.isfinite().all(), name


def _run(name):
    return json.loads(json.dumps(run(CASES[name])))


@pytest.mark.parametrize("operation", _by_operation())
def test_operation(records, operation):
    for name in _by_operation()[operation]:
        mine, theirs = _run(name), records[name]
        if _agrees(name, mine, theirs):
            continue
        difference = _difference(name)
        assert difference is not None, f"{name}: got {mine}, expected {theirs}"
        if difference.raises:
            assert mine.get("error") in ("ValueError", "TypeError", "RuntimeError", "NotImplementedError"), name
        elif "error" in mine:
            with pytest.raises(RuntimeError):  # the call is wrong for plain tensors too
                _plain_result(CASES[name])
        else:
            _check_right(name, mine)


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda d: d.reason)
def test_every_difference_is_one(records, difference):
    for pattern in difference.patterns:
        names = [name for name in CASES if fnmatch(name, pattern)]
        assert any(not _agrees(name, _run(name), records[name]) for name in names), pattern


def test_the_records_are_those_of_the_cases(records):
    assert records.keys() == CASES.keys()
    assert len(records) > 5000
