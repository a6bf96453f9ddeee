"""What a frozen linear layer's forward costs beside its kernel: counted, because times depend on the machine."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from own_process import in_a_process_of_its_own
from torch.utils._python_dispatch import TorchDispatchMode

from optimum.quanto import Calibration, QLinear, freeze, qfloat8, qint2, qint4, qint8, quantize


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def _kind(weights: Any) -> str:
    return "qbits" if weights in (qint4, qint2) else "qbytes"


def _python_calls(function: Any) -> list[str]:
    """The Python functions entered while `function` runs, itself not counted."""
    entered: list[str] = []
    sys.setprofile(lambda frame, event, _: entered.append(frame.f_code.co_name) if event == "call" else None)
    try:
        function()
    finally:
        sys.setprofile(None)
    return entered[1:]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", [qint8, qint4, qint2, qfloat8])
class TestFrozenLinear:
    @pytest.fixture
    def layer(self, weights: Any, dtype: torch.dtype, bias: bool) -> torch.nn.Module:
        model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=bias, dtype=dtype))
        quantize(model, weights=weights)
        freeze(model)
        return model[0]

    def test_runs_one_operator(self, layer: torch.nn.Module, weights: Any, dtype: torch.dtype) -> None:
        x = torch.randn(1, 64, dtype=dtype)
        for grad in (False, True):
            with torch.set_grad_enabled(grad), _Operators() as operators:
                layer(x)
            assert operators.names == [f"quanto.linear_{_kind(weights)}.default"]

    def test_enters_few_python_functions(self, layer: torch.nn.Module, dtype: torch.dtype) -> None:
        x = torch.randn(1, 64, dtype=dtype)
        with torch.no_grad():
            layer(x)
            calls = _python_calls(lambda: layer(x))
        # Two of torch.nn.Module, forward, whether it is traced, and one of the weight.
        assert len(calls) <= 5, calls
        assert not [name for name in calls if "__torch_function__" in name or "__getattr__" in name], calls

    def test_finds_the_parts_in_the_weight_itself(self, layer: torch.nn.Module) -> None:
        weight: Any = layer.weight
        parts = (*weight.inner_names, *weight.meta_names)
        assert not set(parts) & set(vars(weight)), "a dict is several lines of memory away"

    def test_sees_a_replaced_weight_and_bias(self, layer: Any, dtype: torch.dtype, bias: bool) -> None:
        assert isinstance(layer, QLinear)
        x = torch.randn(1, 64, dtype=dtype)
        before = layer(x)
        other = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=bias, dtype=dtype))
        quantize(other, weights=layer.weight_qtype)
        freeze(other)
        expected = other[0](x)
        assert not torch.equal(before, expected)
        layer.load_state_dict(other[0].state_dict())
        assert torch.equal(layer(x), expected)
        layer.weight = other[0].weight
        layer.bias = None
        assert torch.equal(layer(x), torch.nn.functional.linear(x, other[0].weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [qint8, qint4, qint2])
def test_int8_activations_cost_few_calls(weights: Any, dtype: torch.dtype) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64, dtype=dtype))
    quantize(model, weights=weights, activations=qint8)
    x = torch.randn(1, 64, dtype=dtype)
    with Calibration():
        model(x)
    freeze(model)
    model[0].disable_output_quantization()
    with torch.no_grad():
        with _Operators() as operators:
            model[0](x)
        calls = _python_calls(lambda: model[0](x))
    # One that quantizes and one that multiplies, if not one for both.
    assert len(operators.names) <= 2, operators.names
    assert operators.names[-1].startswith("quanto.linear_"), operators.names
    assert operators.names[-1].endswith(f"_{_kind(weights)}.default"), operators.names
    assert len(calls) <= 16, calls


def _mapping_flags(address: int) -> list[str]:
    """The kernel's flags of the mapping that an address lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(bound, 16) for bound in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return line.split()[1:]
    raise AssertionError("no mapping")


def test_large_results_lie_on_huge_pages() -> None:
    """They are mapped anew each time: small pages cost as much as the work. Others are left alone."""
    base = torch.randn(4096, 4096)
    found = torch.ops.quanto.fake_quantize_symmetric(base, "qint8", 0, None)
    assert "hg" in _mapping_flags(found.data_ptr() + found.nbytes // 2)
    small = torch.ops.quanto.fake_quantize_symmetric(base[:16], "qint8", 0, None)
    assert "hg" not in _mapping_flags(small.data_ptr())


def _check_huge_pages(weights: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4096, 4096, bias=False, dtype=torch.bfloat16))
    quantize(model, weights=weights)
    freeze(model)
    weight: Any = model[0].weight
    codes = weight._data if weights == "qint8" else weight._data._data
    assert "hg" in _mapping_flags(codes.data_ptr() + codes.nbytes // 2)


@pytest.mark.parametrize("weights", ["qint8", "qint4"])
def test_large_weights_lie_on_huge_pages(weights: str) -> None:
    """Reading them from small ones takes up to a tenth longer. Memory of other tests may have been advised before."""
    in_a_process_of_its_own(_check_huge_pages, weights)
