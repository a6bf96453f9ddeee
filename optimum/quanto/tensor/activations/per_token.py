"""Linear layers that quantize their input with a scale for each token."""

from typing import Any

import torch
from torch import Tensor

from ..wrapper import WrapperTensor


__all__ = ["linear_per_token"]


def _rounded(codes: Tensor, scale: Tensor) -> Tensor:
    """The numbers that codes with a scale for each row of the last dimension stand for."""
    rows = codes.reshape(-1, codes.shape[-1])
    return torch.ops.quanto.dequantize_symmetric(rows, scale.reshape(-1, 1)).reshape(codes.shape)


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, dtype: torch.dtype) -> Tensor:
        return _rounded(*torch.ops.quanto.quantize_per_token(input, dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


class _LinearPerToken(torch.autograd.Function):
    """Quantization counts as the identity for gradients (straight-through)."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Any, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        codes, scale = torch.ops.quanto.quantize_per_token(input, dtype)
        ctx.save_for_backward(codes, scale, weight)
        return weight.linear_of_codes(codes, scale, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        codes, scale, weight = ctx.saved_tensors
        input_grad = weight_grad = bias_grad = None
        if ctx.needs_input_grad[0]:
            input_grad = torch.matmul(grad, weight.dequantize())
        if ctx.needs_input_grad[1]:
            rows = _rounded(codes, scale).reshape(-1, codes.shape[-1])
            weight_grad = grad.reshape(-1, grad.shape[-1]).t() @ rows
        if ctx.needs_input_grad[2]:
            bias_grad = grad.sum_to_size(grad.shape[-1:])
        return input_grad, weight_grad, bias_grad, None


def linear_per_token(input: Tensor, weight: Any, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`round(input) @ weight.T + bias`, where `round` quantizes each row of the last dimension with its own scale.

    Args:
        input: `(..., K)`, float32, bfloat16 or float16; one that is quantized already is decoded first.
        weight: `(N, K)`, quantized: the product is one of codes; or float: that of the rounded numbers.
        bias: `(N,)` or None.
        dtype: int8 or float8, of the codes.

    Returns:
        `(..., N)` in the dtype of the weight. Gradients pass the rounding unchanged.
    """
    if isinstance(input, WrapperTensor):
        input = input.as_plain()
    if not getattr(weight, "takes_codes", False):
        return torch.nn.functional.linear(_Round.apply(input, dtype), weight, bias)
    needs_grad = input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if torch.is_grad_enabled() and needs_grad:
        return _LinearPerToken.apply(input, weight, bias, dtype)
    output: Tensor = weight.linear_quantizing(input, dtype, None, bias)
    return output
