"""What is recorded of a result, as JSON: its class, dtype, shape and values, or the exception that it raised."""

import json
import lzma
from pathlib import Path
from typing import Any

import torch

import optimum.quanto as quanto

from .cases import Case


RECORDS = Path(__file__).parent / "quanto_0_2_7.json.xz"
_LARGEST = 256  # elements whose values are kept


def values_of(t: torch.Tensor) -> torch.Tensor:
    """The numbers of a tensor, plain."""
    if isinstance(t, quanto.QTensor):
        return t.detach().dequantize()
    return t.unpack() if hasattr(t, "unpack") else t.detach()


def _bytes(t: torch.Tensor) -> str:
    return t.contiguous().flatten().view(torch.uint8).numpy().tobytes().hex() if t.numel() else ""


def _tensor(t: torch.Tensor) -> dict[str, Any]:
    facts: dict[str, Any] = {"class": type(t).__name__, "dtype": str(t.dtype)[6:], "shape": list(t.shape)}
    if t.requires_grad:
        facts["requires_grad"] = True
    if isinstance(t, quanto.QTensor):
        facts["qtype"], facts["axis"] = t.qtype.name, t.axis
        # The sizes say nothing where parts of the tensor have a size of their own.
        if t._data.shape != t.shape and not hasattr(t, "_group_size"):
            facts["inconsistent"] = True
    values = values_of(t)
    if not values.dtype.is_floating_point or bool(values.float().isfinite().all()):
        if values.numel() <= _LARGEST and "inconsistent" not in facts:
            facts["values"] = _bytes(values)
    else:
        facts["finite"] = False
    return facts


def describe(result: Any) -> Any:
    """The record of a result."""
    if isinstance(result, torch.Tensor):
        return _tensor(result)
    if isinstance(result, tuple | list):
        return {"items": [describe(item) for item in result]}
    if isinstance(result, dict):
        return {"items": [describe(item) for item in result.values()], "keys": [str(key) for key in result]}
    return {"value": repr(result), "class": type(result).__name__}


def run(case: Case) -> Any:
    """The record of a case: of its result, or the name of the exception."""
    try:
        return describe(case.function(*case.arguments()))
    except Exception as error:
        return {"error": type(error).__name__}


def write(records: dict[str, Any]) -> None:
    text = json.dumps(records, separators=(",", ":"), sort_keys=True)
    RECORDS.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


def read() -> dict[str, Any]:
    return dict(json.loads(lzma.decompress(RECORDS.read_bytes())))
