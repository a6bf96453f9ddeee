"""The linear function of weights that are still being trained."""

from typing import Any

import torch
from torch import Tensor


__all__ = ["QuantizedLinearFunction", "float_input"]


def float_input(op: str, input: Tensor, scale: Tensor) -> Tensor:
    """The input of a function of a weight with that scale, dequantized if it is not float.

    Raises:
        RuntimeError: its device or dtype is not that of the weight.
    """
    if hasattr(input, "dequantize") and hasattr(input, "qtype"):
        input = input.dequantize()
    if input.device != scale.device:
        raise RuntimeError(f"[{op}] input: got device {input.device}, expected {scale.device}")
    if input.dtype != scale.dtype:
        raise RuntimeError(f"[{op}] input: got {input.dtype}, expected {scale.dtype}, the dtype of the weight")
    return input


class QuantizedLinearFunction(torch.autograd.Function):
    """`input @ weight.T + bias` for a quantized weight, with the gradients of the float layer.

    Quantization counts as the identity (straight-through): the gradient of the weight is that of the float weight
    that it was made from. Scales and shifts get none.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return weight.linear_forward(input, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        input, weight = ctx.saved_tensors
        input_grad = weight_grad = bias_grad = None
        if ctx.needs_input_grad[0]:
            input_grad = torch.matmul(grad, weight.dequantize())
        if ctx.needs_input_grad[1]:
            plain = input.dequantize() if hasattr(input, "dequantize") and hasattr(input, "qtype") else input
            weight_grad = grad.reshape(-1, grad.shape[-1]).t() @ plain.reshape(-1, plain.shape[-1])
        if ctx.needs_input_grad[2]:
            bias_grad = grad.sum_to_size(grad.shape[-1:])
        return input_grad, weight_grad, bias_grad
