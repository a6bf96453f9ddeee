"""2- and 4-bit codes in the bytes of a uint8 tensor."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .wrapper import WrapperTensor


__all__ = ["PackedTensor", "pack_weights"]


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a contiguous tensor of that shape."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def pack_weights(intweights: Tensor, bits: int) -> Tensor:
    """Pack uint8 codes along their first dimension, 8 / bits to a byte.

    With P rows in the result, byte `(r, ...)` holds the codes of rows r, r + P, ... from its low bits upwards.
    """
    return torch.ops.quanto.pack(intweights, bits)


class PackedTensor(WrapperTensor):
    """A uint8 tensor of codes below `2 ** bits`, stored packed (see `pack_weights`).

    Operators see the unpacked codes; `_data` holds the bytes.
    """

    __slots__ = ("_bits", "_data", "_size", "_stride")

    inner_names = ("_data",)
    meta_names = ("_bits", "_size", "_stride")

    _data: Tensor
    _bits: int

    @staticmethod
    def __new__(
        cls: "type[PackedTensor]",
        data: Tensor,
        bits: int,
        size: Sequence[int],
        stride: Sequence[int],
        requires_grad: bool = False,
    ) -> "PackedTensor":
        if data.dtype != torch.uint8 or requires_grad:
            raise ValueError(
                f"[PackedTensor] data: got {data.dtype}, requires_grad={requires_grad}, expected torch.uint8, False"
            )
        return torch.Tensor._make_wrapper_subclass(
            cls, tuple(size), strides=tuple(stride), dtype=torch.uint8, device=data.device
        )

    def __init__(
        self, data: Tensor, bits: int, size: Sequence[int], stride: Sequence[int], requires_grad: bool = False
    ) -> None:
        self._data = data
        self._bits = bits
        self._size = tuple(size)
        self._stride = tuple(stride)

    @classmethod
    def from_parts(
        cls,
        inner: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        size: torch.Size | None,
        stride: tuple[int, ...] | None,
    ) -> "PackedTensor":
        return cls(inner["_data"], meta["_bits"], meta["_size"], meta["_stride"])

    @classmethod
    def pack(cls, t: Tensor, bits: int = 4) -> "PackedTensor":
        """Pack the uint8 codes `t`. `bits`: 2 or 4."""
        if bits not in (2, 4) or t.dtype != torch.uint8:
            raise ValueError(f"[PackedTensor.pack] got {bits} bits of {t.dtype}, expected 2 or 4 bits of torch.uint8")
        return cls(pack_weights(t, bits), bits, t.size(), t.stride())

    def unpack(self) -> Tensor:
        """The codes, one per byte."""
        codes: Tensor = torch.ops.quanto.unpack(self._data, self._bits)
        return codes[: self.shape[0]]

    def as_plain(self) -> Tensor:
        return self.unpack()

    @property
    def bits(self) -> int:
        return self._bits

    @classmethod
    def load_from_state_dict(
        cls,
        state_dict: MutableMapping[str, Any],
        prefix: str,
        bits: int,
        size: Sequence[int],
        stride: Sequence[int],
        missing_keys: list[str],
    ) -> "PackedTensor | None":
        """Take the bytes from `state_dict`; None, and the key in `missing_keys`, if they are not there."""
        key = prefix + "_data"
        if key not in state_dict:
            missing_keys.append(key)
            return None
        return cls(state_dict.pop(key), bits, size, stride)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


torch.serialization.add_safe_globals([PackedTensor])
