"""The quantized types, read from the core's table."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch

from ..ops import qtype_table


@dataclass(frozen=True)
class qtype:
    """A quantized type.

    Attributes:
        name: `qint4`, `qfloat8_e4m3fn`, ...
        is_floating_point: the codes are float8 numbers.
        bits: of a code in storage.
        dtype: torch dtype of a code that is not packed.
        qmin, qmax: the range of the codes.
    """

    name: str
    is_floating_point: bool
    bits: int
    dtype: torch.dtype
    qmin: float
    qmax: float

    def __str__(self) -> str:
        return f"quanto.{self.name}"

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> "tuple[Callable[..., qtype], tuple[Any, ...]]":
        if qtypes.get(self.name) == self:
            return _by_name, (self.name,)
        return qtype, tuple(getattr(self, field.name) for field in fields(self))


def _by_name(name: str) -> qtype:
    return qtypes[name]


def _from_table() -> dict[str, qtype]:
    rows = qtype_table()
    return {
        row["name"]: qtype(
            row["name"],
            row["is_floating_point"],
            row["bits"],
            getattr(torch, row["storage"]),
            row["qmin"] if row["is_floating_point"] else int(row["qmin"]),
            row["qmax"] if row["is_floating_point"] else int(row["qmax"]),
        )
        for row in rows
    }


_TABLE = _from_table()

qint2 = _TABLE["qint2"]
qint4 = _TABLE["qint4"]
qint8 = _TABLE["qint8"]
qfloat8_e4m3fn = _TABLE["qfloat8_e4m3fn"]
qfloat8_e4m3fnuz = _TABLE["qfloat8_e4m3fnuz"]
qfloat8_e5m2 = _TABLE["qfloat8_e5m2"]
# The float8 format for inference.
qfloat8 = qfloat8_e4m3fn

qtypes: dict[str, qtype] = {**_TABLE, "qfloat8": qfloat8}


def qint(bits: int) -> qtype:
    """A qtype of signed integers of that many bits."""
    largest = 2 ** (bits - 1) - 1
    return qtype(f"qint{bits}", False, bits, torch.int8, -largest - 1, largest)


def qfloat(dtype: torch.dtype) -> qtype:
    """The qtype whose codes are floats of `dtype`."""
    info = torch.finfo(dtype)
    return qtype(f"q{info.dtype}", True, info.bits, dtype, info.min, info.max)


def as_qtype(value: "qtype | str | None", what: str = "qtype") -> qtype | None:
    """The qtype that `value` names, with or without its leading `q`; None and qtypes pass through.

    Raises:
        ValueError: no such qtype. TypeError: neither a qtype nor a name.
    """
    if value is None or isinstance(value, qtype):
        return value
    if not isinstance(value, str):
        raise TypeError(f"[quanto] {what}: got {type(value).__name__}, expected a qtype, its name or None")
    found = qtypes.get(value) or qtypes.get(f"q{value}")
    if found is None:
        raise ValueError(f"[quanto] {what}: got {value!r}, expected one of {', '.join(sorted(qtypes))}")
    return found


torch.serialization.add_safe_globals([_by_name])

__all__ = [
    "qfloat8",
    "qfloat8_e4m3fn",
    "qfloat8_e4m3fnuz",
    "qfloat8_e5m2",
    "qint2",
    "qint4",
    "qint8",
    "qtype",
    "qtypes",
]
