"""Shapes and dtypes of the operators' results, for tracing (`torch.compile`, `torch.export`, the meta device)."""

import math
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from . import library as _library  # noqa: F401  (defines the operators)


def packed_rows(rows: int, bits: int) -> int:
    """Rows of a packed tensor: `rows` codes of `bits` bits along the first dimension, 8 / bits to a byte."""
    per_byte = 8 // bits
    return (rows + per_byte - 1) // per_byte


def scale_shape(shape: Sequence[int], axis: int | None) -> tuple[int, ...]:
    """The shape of the scales of a tensor quantized along `axis`: ones, but for that dimension. Vectors have one."""
    if axis is None:
        return ()
    if len(shape) == 1:
        return (1,)
    kept = axis % len(shape)
    return tuple(size if dim == kept else 1 for dim, size in enumerate(shape))


def grouped_shape(shape: Sequence[int], axis: int, group_size: int | None) -> tuple[int, ...]:
    """The shape of a tensor cut into groups of `group_size`: (groups, group_size) for axis 0, transposed for -1."""
    if group_size is None:
        return tuple(shape)
    groups = math.prod(shape) // group_size
    return (groups, group_size) if axis == 0 else (group_size, groups)


def packed_matrix(op: str, data: Tensor, scale: Tensor, in_features: int) -> tuple[int, int | None]:
    """Output channels and group size (None where rows are not cut) of a packed matrix `in_features` wide.

    Raises:
        RuntimeError: the shapes are not those of such a matrix, as the operator `op` says on the CPU.
    """

    def fail(what: str, t: Tensor, expected: str) -> NoReturn:
        raise RuntimeError(f"[{op}] {what}: got shape ({', '.join(map(str, t.shape))}), expected {expected}")

    if data.ndim != 2:
        fail("data", data, "2 dimensions")
    columns, count = data.shape[1], scale.numel()
    if columns == in_features:
        return count, None
    if columns == 0 or in_features == 0 or in_features % columns != 0:
        fail("data", data, f"a number of columns that divides {in_features}")
    groups = in_features // columns
    if count % groups != 0:
        fail("scale", scale, f"a multiple of {groups} elements")
    return count // groups, columns


def _quantize_symmetric(base: Tensor, dtype: torch.dtype, axis: int | None, scale: Tensor) -> Tensor:
    return torch.empty(base.shape, dtype=dtype, device=base.device)


def _quantize_affine(
    base: Tensor, bits: int, axis: int, group_size: int | None, scale: Tensor, shift: Tensor
) -> Tensor:
    return torch.empty(grouped_shape(base.shape, axis, group_size), dtype=torch.uint8, device=base.device)


def _quantize_affine_packed(
    base: Tensor, bits: int, axis: int, group_size: int | None, scale: Tensor, shift: Tensor
) -> Tensor:
    shape = grouped_shape(base.shape, axis, group_size)
    return torch.empty((packed_rows(shape[0], bits), *shape[1:]), dtype=torch.uint8, device=base.device)


def _absmax_scale(base: Tensor, qtype: str, axis: int | None) -> Tensor:
    return base.new_empty(scale_shape(base.shape, axis))


def _quantize_per_token(input: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.empty(input.shape, dtype=dtype, device=input.device), input.new_empty((*input.shape[:-1], 1))


def _observe_magnitudes(base: Tensor, counts: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    return counts.new_empty(counts.shape), exponent.new_empty(exponent.shape)


def _percentile_scale(counts: Tensor, exponent: Tensor, qtype: str, percentile: float) -> Tensor:
    return torch.empty((), dtype=torch.float32, device=counts.device)


def _mse_scale(counts: Tensor, exponent: Tensor, qtype: str) -> Tensor:
    return torch.empty((), dtype=torch.float32, device=counts.device)


def _minmax_scale(base: Tensor, qtype: str, axis: int, group_size: int | None) -> tuple[Tensor, Tensor]:
    shape = scale_shape(grouped_shape(base.shape, axis, group_size), axis)
    return base.new_empty(shape), base.new_empty(shape)


def _hqq_scale(
    base: Tensor, qtype: str, axis: int, lp_norm: float, beta: float, kappa: float, iters: int
) -> tuple[Tensor, Tensor, Tensor]:
    errors = torch.empty((iters + 1,), dtype=torch.float32, device=base.device)
    return *_minmax_scale(base, qtype, axis, None), errors


def _dequantize_symmetric(data: Tensor, scale: Tensor) -> Tensor:
    return torch.empty(data.shape, dtype=scale.dtype, device=data.device)


def _dequantize_affine(
    data: Tensor,
    scale: Tensor,
    shift: Tensor,
    bits: int,
    axis: int,
    group_size: int | None,
    size: Sequence[int],
    packed: bool,
) -> Tensor:
    return scale.new_empty(size)


def _fake_quantize_symmetric(base: Tensor, qtype: str, axis: int | None, scale: Tensor | None) -> Tensor:
    return base.new_empty(base.shape)


def _fake_quantize_affine(
    base: Tensor, qtype: str, axis: int, group_size: int | None, scale: Tensor | None, shift: Tensor | None
) -> Tensor:
    return base.new_empty(base.shape)


def _pack(self: Tensor, bits: int) -> Tensor:
    return self.new_empty((packed_rows(self.shape[0], bits), *self.shape[1:]))


def _unpack(self: Tensor, bits: int) -> Tensor:
    return self.new_empty((self.shape[0] * (8 // bits), *self.shape[1:]))


def _all_finite(base: Tensor) -> Tensor:
    return torch.empty((), dtype=torch.bool, device=base.device)


def _qbytes_mm(A: Tensor, B: Tensor, scales: Tensor) -> Tensor:
    return torch.empty((*A.shape[:-1], B.shape[0]), dtype=scales.dtype, device=A.device)


def _linear_qbytes(input: Tensor, data: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return input.new_empty((*input.shape[:-1], data.shape[0]))


def _linear_qbits(
    input: Tensor,
    data: Tensor,
    scale: Tensor,
    shift: Tensor,
    bias: Tensor | None = None,
    bits: int = 4,
) -> Tensor:
    out_features, _ = packed_matrix("linear_qbits", data, scale, input.shape[-1])
    return input.new_empty((*input.shape[:-1], out_features))


def _linear_codes_qbytes(
    input: Tensor, input_scale: Tensor, data: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return torch.empty((*input.shape[:-1], data.shape[0]), dtype=dtype, device=input.device)


def _linear_codes_qbits(
    input: Tensor,
    input_scale: Tensor,
    data: Tensor,
    scale: Tensor,
    shift: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    bits: int = 4,
) -> Tensor:
    out_features, _ = packed_matrix("linear_codes_qbits", data, scale, input.shape[-1])
    return torch.empty((*input.shape[:-1], out_features), dtype=dtype, device=input.device)


def _linear_quantizing_qbytes(
    input: Tensor, dtype: torch.dtype, input_scale: Tensor | None, data: Tensor, scale: Tensor, bias: Tensor | None
) -> Tensor:
    return scale.new_empty((*input.shape[:-1], data.shape[0]))


def _linear_quantizing_qbits(
    input: Tensor,
    dtype: torch.dtype,
    input_scale: Tensor | None,
    data: Tensor,
    scale: Tensor,
    shift: Tensor,
    bias: Tensor | None = None,
    bits: int = 4,
) -> Tensor:
    out_features, _ = packed_matrix("linear_quantizing_qbits", data, scale, input.shape[-1])
    return scale.new_empty((*input.shape[:-1], out_features))


def _conv(
    input: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    dims = len(stride)
    outputs = [
        (input.shape[d - dims] + padding[2 * d] + padding[2 * d + 1] - dilation[d] * (size[d - dims] - 1) - 1)
        // stride[d]
        + 1
        for d in range(dims)
    ]
    output = input.new_empty((*input.shape[: -dims - 1], size[0], *outputs))
    channels_last = (
        input.ndim == 4 and not input.is_contiguous() and input.is_contiguous(memory_format=torch.channels_last)
    )
    return output.contiguous(memory_format=torch.channels_last) if channels_last else output


def _conv_qbytes(
    input: Tensor,
    data: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    padding_mode: str,
) -> Tensor:
    return _conv(input, data.shape, stride, padding, dilation)


def _conv_qbits(
    input: Tensor,
    data: Tensor,
    scale: Tensor,
    shift: Tensor,
    bits: int,
    group_size: int,
    size: Sequence[int],
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    padding_mode: str,
) -> Tensor:
    return _conv(input, size, stride, padding, dilation)


def _embedding_qbytes(indices: Tensor, data: Tensor, scale: Tensor) -> Tensor:
    return scale.new_empty((*indices.shape, data.shape[1]))


def _embedding_qbits(
    indices: Tensor, data: Tensor, scale: Tensor, shift: Tensor, bits: int, group_size: int, size: Sequence[int]
) -> Tensor:
    return scale.new_empty((*indices.shape, size[1]))


def register() -> None:
    """Register every function of this file as the fake of the operator of its name."""
    for fake in (
        _quantize_symmetric,
        _quantize_affine,
        _quantize_affine_packed,
        _absmax_scale,
        _quantize_per_token,
        _observe_magnitudes,
        _percentile_scale,
        _mse_scale,
        _minmax_scale,
        _hqq_scale,
        _dequantize_symmetric,
        _dequantize_affine,
        _fake_quantize_symmetric,
        _fake_quantize_affine,
        _pack,
        _unpack,
        _all_finite,
        _qbytes_mm,
        _linear_qbytes,
        _linear_qbits,
        _linear_codes_qbytes,
        _linear_codes_qbits,
        _linear_quantizing_qbytes,
        _linear_quantizing_qbits,
        _conv_qbytes,
        _conv_qbits,
        _embedding_qbytes,
        _embedding_qbits,
    ):
        torch.library.register_fake(f"quanto::{fake.__name__.removeprefix('_')}", fake)
