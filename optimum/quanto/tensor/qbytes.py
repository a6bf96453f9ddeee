"""8-bit quantized tensors: one byte per code, symmetric scales."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .qtensor import QTensor
from .qtype import qtype as QType


__all__ = ["QBytesTensor"]


class _Dequantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: "QBytesTensor") -> Tensor:
        return torch.ops.quanto.dequantize_symmetric(t._data, t._scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


class QBytesTensor(QTensor):
    """`scale * code` with codes of an 8-bit qtype.

    Attributes:
        _data: the codes, int8 or float8, in the shape of the tensor.
        _scale: a scalar, or one scale for each index of `axis`, with as many dimensions as the tensor.
    """

    __slots__ = ("_data", "_scale")

    inner_names = ("_data", "_scale")

    _data: Tensor
    _scale: Tensor

    def __init__(
        self,
        qtype: QType,
        axis: int | None,
        size: Sequence[int],
        stride: Sequence[int],
        data: Tensor,
        scale: Tensor,
        requires_grad: bool = False,
    ) -> None:
        super().__init__(qtype, axis)
        self._data = data
        self._scale = scale

    def dequantize(self) -> Tensor:
        if torch.is_grad_enabled() and self.requires_grad:
            return _Dequantize.apply(self)
        return torch.ops.quanto.dequantize_symmetric(self._data, self._scale)
