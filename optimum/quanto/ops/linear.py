"""Linear layers on quantized weights, with gradients for their float arguments."""

from typing import Any

import torch
from torch import Tensor

from . import library as _library  # noqa: F401  (defines the operators)
from .fakes import packed_matrix


# An overload by name saves the search for it on every call.
_linear_qbytes = torch.ops.quanto.linear_qbytes.default
_linear_qbits = torch.ops.quanto.linear_qbits.default


class _LinearQBytes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, data: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(data, scale)
        ctx.needs = (input.dtype, None if bias is None else bias.dtype)
        return _linear_qbytes(input, data, scale, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        data, scale = ctx.saved_tensors
        weight = torch.ops.quanto.dequantize_symmetric(data, scale) if ctx.needs_input_grad[0] else None
        input_grad, bias_grad = _float_grads(ctx, grad, weight, ctx.needs_input_grad[3])
        return input_grad, None, None, bias_grad


class _LinearQBits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        data: Tensor,
        scale: Tensor,
        shift: Tensor,
        bias: Tensor | None,
        bits: int,
    ) -> Tensor:
        ctx.save_for_backward(data, scale, shift)
        ctx.layout = (bits, input.shape[-1])
        ctx.needs = (input.dtype, None if bias is None else bias.dtype)
        return _linear_qbits(input, data, scale, shift, bias, bits)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        weight = None
        if ctx.needs_input_grad[0]:
            data, scale, shift = ctx.saved_tensors
            bits, in_features = ctx.layout
            out_features, group_size = packed_matrix("linear_qbits", data, scale, in_features)
            weight = torch.ops.quanto.dequantize_affine(
                data, scale, shift, bits, 0, group_size, [out_features, in_features], True
            )
        input_grad, bias_grad = _float_grads(ctx, grad, weight, ctx.needs_input_grad[4])
        return input_grad, None, None, None, bias_grad, None


def _float_grads(
    ctx: Any, grad: Tensor, weight: Tensor | None, bias_needs: bool
) -> tuple[Tensor | None, Tensor | None]:
    input_dtype, bias_dtype = ctx.needs
    input_grad = None if weight is None else torch.matmul(grad, weight.to(grad.dtype)).to(input_dtype)
    bias_grad = grad.sum_to_size(grad.shape[-1:]).to(bias_dtype) if bias_needs else None
    return input_grad, bias_grad


def _needs_grad(input: Tensor, bias: Tensor | None) -> bool:
    if not (input.requires_grad or (bias is not None and bias.requires_grad)):
        return False
    # A graph of torch.jit.trace cannot hold an autograd.Function; it is for inference.
    return not torch.jit.is_tracing()  # type: ignore[attr-defined]


def linear_qbytes(input: Tensor, data: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`input @ (scale * data).T + bias`, with gradients for `input` and `bias`.

    Args:
        input: `(..., K)`, float32, bfloat16 or float16.
        data: `(N, K)` codes, int8 or float8.
        scale: N elements or a single one.
        bias: `(N,)` or None.

    Returns:
        `(..., N)` in the dtype of `input`.

    Raises:
        RuntimeError: a dtype or shape does not fit; the message names the argument.
    """
    # An autograd.Function costs microseconds that inference need not pay.
    if torch.is_grad_enabled() and _needs_grad(input, bias):
        return _LinearQBytes.apply(input, data, scale, bias)
    return _linear_qbytes(input, data, scale, bias)


def linear_qbits(
    input: Tensor,
    data: Tensor,
    scale: Tensor,
    shift: Tensor,
    bias: Tensor | None = None,
    bits: int = 4,
) -> Tensor:
    """`input @ W.T + bias` for a packed 2- or 4-bit weight, with gradients for `input` and `bias`.

    Args:
        input: `(..., K)`, float32, bfloat16 or float16.
        data: packed codes, uint8 (see `pack`), with a column for each code of a group, which divides K.
        scale: one element for each group of each output channel: N follows from it.
        shift: the same, floating (`W = scale * code - shift`) or one byte each (`W = scale * (code - shift)`).
        bias: `(N,)` or None.
        bits: 2 or 4.

    Returns:
        `(..., N)` in the dtype of `input`.

    Raises:
        RuntimeError: a dtype or shape does not fit; the message names the argument.
    """
    if torch.is_grad_enabled() and _needs_grad(input, bias):
        return _LinearQBits.apply(input, data, scale, shift, bias, bits)
    return _linear_qbits(input, data, scale, shift, bias, bits)
