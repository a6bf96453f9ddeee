"""Fake quantization: floats rounded to what a qtype can hold. Gradients pass straight through.

Training sees its weights and inputs through these functions: the results are those of quantizing and dequantizing, bit
for bit, in one pass over memory, and what follows is arithmetic on ordinary tensors.
"""

from typing import Any

import torch
from torch import Tensor

from .optimizers import AbsmaxOptimizer, AffineOptimizer, MaxOptimizer, Optimizer, SymmetricOptimizer
from .qtype import qtype as QType


__all__ = ["fake_quantize_activation", "fake_quantize_weight"]


class _Symmetric(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base: Tensor, qtype: str, axis: int | None, scale: Tensor | None) -> Tensor:
        return torch.ops.quanto.fake_quantize_symmetric(base, qtype, axis, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None, None, None


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        base: Tensor,
        qtype: str,
        axis: int,
        group_size: int | None,
        scale: Tensor | None,
        shift: Tensor | None,
    ) -> Tensor:
        return torch.ops.quanto.fake_quantize_affine(base, qtype, axis, group_size, scale, shift)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None, None, None, None, None


def fake_quantize_weight(
    weight: Tensor, qtype: QType, optimizer: Optimizer, axis: int = 0, group_size: int | None = None
) -> Tensor:
    """A float weight as its quantized form would be dequantized.

    Args:
        weight: float32, bfloat16 or float16, at least 2-D.
        qtype: any qtype of weights.
        optimizer: scale search. `AbsmaxOptimizer` and `MaxOptimizer`, the default ones, take one pass with it.
        axis: 0 or -1, the dimension that the scales run along.
        group_size: elements that share a scale, for `qint4` and `qint2`.

    Returns:
        A tensor of the shape and dtype of `weight`. Its gradient is that of `weight`; scales and shifts get none.

    Raises:
        TypeError: the optimizer does not search scales of this qtype.
    """
    if qtype.bits == 8:
        per_axis = None if weight.shape[axis] == 1 else axis  # an axis of size 1 has a single scale
        scale = None
        if not isinstance(optimizer, SymmetricOptimizer):
            raise _wrong_search(optimizer, "SymmetricOptimizer", qtype)
        if type(optimizer) is not AbsmaxOptimizer:
            scale = optimizer(weight.detach(), qtype=qtype, axis=per_axis)
        return _Symmetric.apply(weight, qtype.name, per_axis, scale)
    scale, shift = None, None
    if not isinstance(optimizer, AffineOptimizer):
        raise _wrong_search(optimizer, "AffineOptimizer", qtype)
    if type(optimizer) is not MaxOptimizer:
        scale, shift = optimizer(weight.detach(), qtype=qtype, axis=axis, group_size=group_size)
    return _Affine.apply(weight, qtype.name, axis, group_size, scale, shift)


def _wrong_search(optimizer: Optimizer, expected: str, qtype: QType) -> TypeError:
    got = type(optimizer).__name__
    return TypeError(f"[fake_quantize] optimizer: got {got}, expected a {expected} for {qtype.name}")


def fake_quantize_activation(input: Tensor, qtype: QType, scale: Tensor) -> Tensor:
    """Float activations as `quantize_activation` with this scale would be dequantized; the gradient is the input's.

    Args:
        input: float32, bfloat16 or float16, of any shape.
        qtype: an 8-bit qtype.
        scale: a single element of the dtype of `input`.
    """
    return _Symmetric.apply(input, qtype.name, None, scale.reshape(()))
