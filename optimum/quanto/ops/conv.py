"""Convolutions with quantized weights, with gradients for their float arguments."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import compositions
from .library import active_isa


class ConvWalk(NamedTuple):
    """How a convolution walks over its input.

    Attributes:
        stride, dilation: one value for each spatial dimension.
        padding: two values for each spatial dimension, before and after it.
        padding_mode: `zeros`, `reflect`, `replicate` or `circular`.
        groups: of channels that do not see each other.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    padding_mode: str = "zeros"
    groups: int = 1

    def outputs(self, input: Sequence[int], weight: Sequence[int]) -> tuple[int, ...]:
        """The spatial size of the output for these shapes of input and weight."""
        dims = len(self.stride)
        return tuple(
            (input[d - dims] + sum(self.padding[2 * d : 2 * d + 2]) - self.dilation[d] * (weight[d - dims] - 1) - 1)
            // self.stride[d]
            + 1
            for d in range(dims)
        )


_FEW_POSITIONS = 64
"""Output positions for which a decoded weight is never worth its memory."""


def _reads_planes() -> bool:
    """Whether the kernels multiply many positions without patches as a matrix."""
    return active_isa() in ("avx2", "avx512", "avx512_bf16")


def _positions_per_filter(dtype: torch.dtype) -> int:
    """Up to how many output positions for each filter the kernels are the faster way."""
    return 4 if dtype == torch.bfloat16 and active_isa() == "avx512_bf16" else 1


def _dtypes_without_kernels() -> frozenset[torch.dtype]:
    """Those that torch convolves element by element on this machine, in tens of times as long as float32."""
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return frozenset(
        dtype
        for dtype, name in supported.items()
        if not (hasattr(torch.ops.mkldnn, name) and getattr(torch.ops.mkldnn, name)())
    )


_WITHOUT_KERNELS = _dtypes_without_kernels()


def runs_kernels(walk: ConvWalk, positions: int, weight: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether a convolution for so many output positions, in all images, multiplies with the codes.

    Else the weight is decoded and torch's own convolution runs: in groups, where weights are few beside activations,
    and for many positions, where preparing activations costs more than decoding the weight, unless torch has no fast
    convolution for the dtype (`bench/conv_bench.py` measures both ways).

    Args:
        weight: its shape.
        dtype: of the input.
    """
    filters, taps = weight[0], math.prod(weight[2:])
    if walk.groups != 1:
        return False
    if dtype in _WITHOUT_KERNELS or positions <= max(_FEW_POSITIONS, filters * _positions_per_filter(dtype)):
        return True
    return _reads_planes() and taps == 1 and max(walk.stride) == 1 and max(walk.padding) == 0


class PackedLayout(NamedTuple):
    """What the bytes of a packed weight do not tell: bits of a code, elements of a group (0: a channel), the shape."""

    bits: int
    group_size: int
    size: tuple[int, ...]


def _run(input: Tensor, bias: Tensor | None, layout: PackedLayout | None, walk: ConvWalk, parts: Any) -> Tensor:
    arguments = (bias, walk.stride, walk.padding, walk.dilation, walk.padding_mode)
    if layout is None:
        return torch.ops.quanto.conv_qbytes(input, *parts, *arguments)
    return torch.ops.quanto.conv_qbits(input, *parts, *layout, *arguments)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, bias: Tensor | None, layout: PackedLayout | None, walk: ConvWalk, *parts: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*parts)
        ctx.layout, ctx.walk = layout, walk
        ctx.input = (input.shape, input.dtype)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return _run(input, bias, layout, walk, parts)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        input_grad = bias_grad = None
        if ctx.needs_input_grad[0]:
            weight = _dequantize(ctx.layout, ctx.saved_tensors).to(grad.dtype)
            input_grad = _input_grad(grad, weight, ctx.walk, *ctx.input)
        if ctx.needs_input_grad[1]:
            bias_grad = grad.sum([d for d in range(grad.ndim) if d != grad.ndim - 1 - len(ctx.walk.stride)])
            bias_grad = bias_grad.to(ctx.bias_dtype)
        return (input_grad, bias_grad, None, None, *[None] * len(ctx.saved_tensors))


def _dequantize(layout: PackedLayout | None, parts: Any) -> Tensor:
    if layout is None:
        return torch.ops.quanto.dequantize_symmetric(*parts)
    bits, group_size, size = layout
    return torch.ops.quanto.dequantize_affine(*parts, bits, 0, group_size or None, list(size), True)


def _input_grad(grad: Tensor, weight: Tensor, walk: ConvWalk, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    # The convolution is linear: its gradient is the same at every input.
    twice = torch.is_grad_enabled()
    with torch.enable_grad():
        anywhere = torch.zeros(shape, dtype=grad.dtype, device=grad.device, requires_grad=True)
        output = compositions.convolve(anywhere, weight, None, *walk)
        (input_grad,) = torch.autograd.grad(output, anywhere, grad, create_graph=twice)
    return input_grad.to(dtype)


def _conv(input: Tensor, bias: Tensor | None, layout: PackedLayout | None, walk: ConvWalk, *parts: Tensor) -> Tensor:
    size = parts[0].shape if layout is None else layout.size
    batch = 1 if input.ndim < len(size) else input.shape[0]
    if not runs_kernels(walk, batch * math.prod(walk.outputs(input.shape, size)), size, input.dtype):
        return compositions.convolve(input, _dequantize(layout, parts).to(input.dtype), bias, *walk)
    needs_grad = input.requires_grad or (bias is not None and bias.requires_grad)
    # A graph of torch.jit.trace cannot hold an autograd.Function; it is for inference.
    if needs_grad and torch.is_grad_enabled() and not torch.jit.is_tracing():  # type: ignore[attr-defined]
        return _Conv.apply(input, bias, layout, walk, *parts)
    return _run(input, bias, layout, walk, parts)


def conv_qbytes(input: Tensor, data: Tensor, scale: Tensor, bias: Tensor | None, walk: ConvWalk) -> Tensor:
    """A convolution with an 8-bit weight, over one or two spatial dimensions (see `runs_kernels`).

    Args:
        input: `(batch, channels, [height,] width)` or without a batch; float32, bfloat16 or float16.
        data: codes `(filters, channels / groups, [height,] width)`, int8 or float8.
        scale: one element for each filter, or a single one.
        bias: `(filters,)` or None.
        walk: strides, paddings, dilations and groups.

    Returns:
        `(batch, filters, [height,] width)` in the dtype of `input`, channels last if the input is.

    Raises:
        RuntimeError: a dtype or shape does not fit; the message names the argument.
    """
    return _conv(input, bias, None, walk, data, scale)


def conv_qbits(
    input: Tensor,
    data: Tensor,
    scale: Tensor,
    shift: Tensor,
    layout: PackedLayout,
    bias: Tensor | None,
    walk: ConvWalk,
) -> Tensor:
    """A convolution with a packed 2- or 4-bit weight (see `conv_qbytes` and `linear_qbits`)."""
    return _conv(input, bias, layout, walk, data, scale, shift)
