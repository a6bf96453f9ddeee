"""2- and 4-bit quantized tensors: packed codes, affine scales and shifts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .packed import PackedTensor
from .qtensor import QTensor
from .qtype import qtype as QType


__all__ = ["QBitsTensor"]


class _Dequantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: "QBitsTensor") -> Tensor:
        return t._dequantize()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


class QBitsTensor(QTensor):
    """`scale * code - shift` (float shift) or `scale * (code - shift)` (integer shift).

    Attributes:
        _data: the codes, a `PackedTensor` (or plain uint8) in the shape that grouping gives.
        _scale, _shift: one for each group of each index of `axis`.
        _group_size: elements that share a scale, or None for one scale per index of `axis`.
    """

    __slots__ = ("_data", "_group_size", "_scale", "_shift")

    inner_names = ("_data", "_scale", "_shift")

    _data: Tensor
    _scale: Tensor
    _shift: Tensor
    _group_size: int | None

    def __init__(
        self,
        qtype: QType,
        axis: int,
        group_size: int | None,
        size: Sequence[int],
        stride: Sequence[int],
        data: Tensor,
        scale: Tensor,
        shift: Tensor,
        requires_grad: bool = False,
    ) -> None:
        super().__init__(qtype, axis)
        self._group_size = group_size
        self._data = data
        self._scale = scale
        self._shift = shift

    def _dequantize(self) -> Tensor:
        packed = isinstance(self._data, PackedTensor)
        return torch.ops.quanto.dequantize_affine(
            self._data._data if isinstance(self._data, PackedTensor) else self._data,
            self._scale,
            self._shift,
            self._qtype.bits,
            0 if self._axis is None else self._axis,
            self._group_size,
            list(self.shape),
            packed,
        )

    def dequantize(self) -> Tensor:
        if torch.is_grad_enabled() and self.requires_grad:
            return _Dequantize.apply(self)
        return self._dequantize()
