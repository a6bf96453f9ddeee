"""8-bit activations with one scale per tensor."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..qbytes import QBytesTensor
from ..qtype import qtype as QType
from ..wrapper import WrapperTensor
from .dispatch import find_operation


__all__ = ["ActivationQBytesTensor"]

# An overload by name saves the search for it on every call.
_quantize_symmetric = torch.ops.quanto.quantize_symmetric.default


def _quantize(base: Tensor, qtype: QType, scale: Tensor) -> "ActivationQBytesTensor":
    data = _quantize_symmetric(base, qtype.dtype, None, scale)
    return ActivationQBytesTensor(qtype, base.size(), data.stride(), data, scale)


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base: Tensor, qtype: QType, scale: Tensor) -> "ActivationQBytesTensor":
        return _quantize(base, qtype, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None, None


class ActivationQBytesTensor(QBytesTensor):
    """Activations as 8-bit codes of one scale.

    Operations that only move or select elements, or that scale all of them, act on the codes and keep the tensor
    quantized; the others see the dequantized tensor.
    """

    meta_names = ("_qtype",)

    @staticmethod
    def __new__(
        cls: "type[ActivationQBytesTensor]",
        qtype: QType,
        size: Sequence[int],
        stride: Sequence[int],
        data: Tensor,
        scale: Tensor,
        requires_grad: bool = False,
    ) -> "ActivationQBytesTensor":
        if data.device != scale.device:
            raise ValueError(f"[ActivationQBytesTensor] scale: got device {scale.device}, expected {data.device}")
        return torch.Tensor._make_wrapper_subclass(
            cls, size, strides=stride, dtype=scale.dtype, device=data.device, requires_grad=requires_grad
        )

    def __init__(
        self,
        qtype: QType,
        size: Sequence[int],
        stride: Sequence[int],
        data: Tensor,
        scale: Tensor,
        requires_grad: bool = False,
    ) -> None:
        super().__init__(qtype, None, size, stride, data, scale)

    @classmethod
    def from_parts(
        cls,
        inner: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        size: torch.Size | None,
        stride: tuple[int, ...] | None,
    ) -> "ActivationQBytesTensor":
        data = inner["_data"]
        return cls(meta["_qtype"], data.size(), data.stride(), data, inner["_scale"])

    @classmethod
    def quantize(cls, base: Tensor, qtype: QType, scale: Tensor) -> "ActivationQBytesTensor":
        """Quantize `base` with a scalar scale; gradients pass straight through.

        Raises:
            ValueError: the qtype has fewer than 8 bits, or the scale is not a scalar.
        """
        if qtype.bits != 8:
            raise ValueError(f"[ActivationQBytesTensor.quantize] qtype: got {qtype.name}, expected an 8-bit qtype")
        # An autograd.Function costs microseconds that inference need not pay.
        if torch.is_grad_enabled() and base.requires_grad:
            return _Quantize.apply(base, qtype, scale)
        return _quantize(base, qtype, scale)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        operation = find_operation(func.overloadpacket)
        if operation is None:
            return WrapperTensor.__torch_dispatch__.__func__(cls, func, types, args, kwargs)  # type: ignore[attr-defined]
        return operation(func.overloadpacket, *args, **(kwargs or {}))


torch.serialization.add_safe_globals([ActivationQBytesTensor])
