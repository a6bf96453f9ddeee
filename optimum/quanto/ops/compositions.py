"""The operators as compositions of ordinary torch operators, for every device without kernels of its own.

`torch.compile` fuses them there. On the CPU they never run, but for `linear`: the compiled library serves it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .fakes import grouped_shape, packed_matrix, packed_rows
from .library import qtype_table


_QTYPES = {row["name"]: row for row in qtype_table()}


def _group(base: Tensor, axis: int, group_size: int | None) -> Tensor:
    if group_size is None:
        return base
    if axis == 0:
        return base.reshape(-1, group_size)
    columns = base.shape[-1]
    return base.reshape(-1, group_size, columns).permute(1, 2, 0).reshape(group_size, -1)


def _ungroup(grouped: Tensor, axis: int, group_size: int | None, size: Sequence[int]) -> Tensor:
    if group_size is None or axis == 0:
        return grouped.reshape(size)
    return grouped.reshape(group_size, size[-1], -1).permute(2, 0, 1).reshape(size)


def _other_dims(base: Tensor, axis: int) -> list[int]:
    return list(range(1, base.ndim)) if axis == 0 else list(range(base.ndim - 1))


def _keep_positive(scale: Tensor, range_is_empty: Tensor) -> Tensor:
    smallest = torch.finfo(scale.dtype).smallest_normal * torch.finfo(scale.dtype).eps
    return torch.where((scale == 0) & ~range_is_empty, smallest, scale)


def absmax_scale(base: Tensor, qtype: str, axis: int | None) -> Tensor:
    absmax = base.abs().amax() if axis is None else base.abs().amax(_other_dims(base, axis), keepdim=True)
    return _keep_positive(absmax / _QTYPES[qtype]["qmax"], absmax == 0)


def minmax_scale(base: Tensor, qtype: str, axis: int, group_size: int | None) -> tuple[Tensor, Tensor]:
    grouped = _group(base, axis, group_size)
    vector = base.ndim == 1  # which has a single scale
    low, high = (
        torch.aminmax(grouped.reshape(1, -1), dim=1)
        if vector
        else torch.aminmax(grouped.flatten(1), dim=1)
        if axis == 0
        else torch.aminmax(grouped.reshape(-1, grouped.shape[-1]), dim=0)
    )
    levels = 2 ** _QTYPES[qtype]["bits"] - 1
    extent = high - low
    wide = (high.double() - low.double()) / levels if extent.device.type != "mps" else high / levels - low / levels
    scale = torch.where(extent.isinf() & low.isfinite() & high.isfinite(), wide.to(base.dtype), extent / levels)
    shape = [1] * grouped.ndim
    shape[0 if axis == 0 else -1] = -1
    return _keep_positive(scale, high == low).reshape(shape), (-low).reshape(shape)


def hqq_scale(
    base: Tensor, qtype: str, axis: int, lp_norm: float, beta: float, kappa: float, iters: int
) -> tuple[Tensor, Tensor, Tensor]:
    bits = _QTYPES[qtype]["bits"]
    scale, shift = minmax_scale(base, qtype, axis, None)
    dims = list(range(base.ndim)) if base.ndim == 1 else _other_dims(base, axis)
    errors = torch.full((iters + 1,), -1.0, device=base.device)
    now = shift
    for step in range(iters + 1):
        codes = quantize_affine(base, bits, axis, None, scale, now)
        error = base - dequantize_affine(codes, scale, now, bits, axis, None, base.shape, False)
        errors[step] = error.abs().mean()
        if step > 0 and not bool(errors[step] < errors[step - 1]):
            break
        shift = now
        kept = _shrink(error, lp_norm, beta * kappa**step)
        wanted = (scale * codes.to(base.dtype) - (base - kept)).mean(dims, keepdim=True)
        now = torch.where(wanted.isfinite() & (scale != 0), wanted, now)
    return scale, shift, errors


def _shrink(error: Tensor, lp_norm: float, beta: float) -> Tensor:
    size = error.abs()
    threshold = 1.0 / beta if lp_norm == 1 else size.pow(lp_norm - 1) * (1.0 / beta)
    return error.sign() * torch.relu(size - threshold)


def quantize_symmetric(base: Tensor, dtype: torch.dtype, axis: int | None, scale: Tensor) -> Tensor:
    return _symmetric_codes(base, dtype, scale)


def _symmetric_codes(base: Tensor, dtype: torch.dtype, scale: Tensor) -> Tensor:
    ratio = torch.where(scale == 0, 0.0, base / scale)
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        return ratio.clamp(info.min, info.max).to(dtype)
    return torch.nan_to_num(ratio.round(), nan=0.0).clamp(-128, 127).to(dtype)


def quantize_per_token(input: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rows = input.reshape(-1, input.shape[-1]) if input.numel() else input.new_empty((math.prod(input.shape[:-1]), 0))
    absmax = rows.abs().amax(1, keepdim=True) if rows.shape[1] else rows.new_zeros((rows.shape[0], 1))
    qmax = 127 if dtype == torch.int8 else torch.finfo(dtype).max
    scale = _keep_positive(absmax / qmax, absmax == 0)
    codes = _symmetric_codes(rows, dtype, scale)
    return codes.reshape(input.shape), scale.reshape(*input.shape[:-1], 1)


def quantize_affine(
    base: Tensor, bits: int, axis: int, group_size: int | None, scale: Tensor, shift: Tensor
) -> Tensor:
    grouped = _group(base, axis, group_size)
    if shift.dtype.is_floating_point:
        total = grouped + shift
        ratio = torch.where(total.isinf(), (0.5 * grouped + 0.5 * shift) / (0.5 * scale), total / scale)
        codes = torch.where(scale == 0, 0.0, ratio).round()
    else:
        codes = torch.where(scale == 0, 0.0, grouped / scale).round() + shift
    return torch.nan_to_num(codes, nan=0.0).clamp(0, 2**bits - 1).to(torch.uint8)


def pack(self: Tensor, bits: int) -> Tensor:
    per_byte, rows = 8 // bits, packed_rows(self.shape[0], bits)
    padding = self.new_zeros((per_byte * rows - self.shape[0], *self.shape[1:]))
    fields = torch.cat([self, padding]).reshape(per_byte, rows, *self.shape[1:])
    packed = fields[0].clone()
    for index in range(1, per_byte):
        packed |= fields[index] << (bits * index)
    return packed


def unpack(self: Tensor, bits: int) -> Tensor:
    mask = 2**bits - 1
    return torch.cat([(self >> offset) & mask for offset in range(0, 8, bits)])


def quantize_affine_packed(
    base: Tensor, bits: int, axis: int, group_size: int | None, scale: Tensor, shift: Tensor
) -> Tensor:
    return pack(quantize_affine(base, bits, axis, group_size, scale, shift), bits)


def _saturate(value: Tensor, *operands: Tensor) -> Tensor:
    info = torch.finfo(value.dtype)
    finite = operands[0].isfinite()
    for operand in operands[1:]:
        finite = finite & operand.isfinite()
    return torch.where(finite, value.clamp(info.min, info.max), value)


def dequantize_symmetric(data: Tensor, scale: Tensor) -> Tensor:
    codes = data.to(scale.dtype)
    return _saturate(scale * codes, scale, codes)


def dequantize_affine(
    data: Tensor,
    scale: Tensor,
    shift: Tensor,
    bits: int,
    axis: int,
    group_size: int | None,
    size: Sequence[int],
    packed: bool,
) -> Tensor:
    codes = data
    if packed:
        codes = unpack(data, bits)[: grouped_shape(size, axis, group_size)[0]]
    values = codes.to(scale.dtype)
    if shift.dtype.is_floating_point:
        product = scale * values
        halved = 0.5 * scale * values - 0.5 * shift
        result = torch.where(product.isinf() & scale.isfinite() & shift.isfinite(), 2 * halved, product - shift)
        result = _saturate(result, scale, shift)
    else:
        result = _saturate(scale * (values - shift.to(scale.dtype)), scale)
    return _ungroup(result, axis, group_size, size)


def fake_quantize_symmetric(base: Tensor, qtype: str, axis: int | None, scale: Tensor | None) -> Tensor:
    scale = absmax_scale(base, qtype, axis) if scale is None else scale
    dtype = getattr(torch, _QTYPES[qtype]["storage"])
    return dequantize_symmetric(quantize_symmetric(base, dtype, axis, scale), scale)


def fake_quantize_affine(
    base: Tensor, qtype: str, axis: int, group_size: int | None, scale: Tensor | None, shift: Tensor | None
) -> Tensor:
    if scale is None or shift is None:
        scale, shift = minmax_scale(base, qtype, axis, group_size)
    bits = _QTYPES[qtype]["bits"]
    codes = quantize_affine(base, bits, axis, group_size, scale, shift)
    return dequantize_affine(codes, scale, shift, bits, axis, group_size, base.shape, False)


def _exponent_above(value: Tensor) -> Tensor:
    """The smallest exponent whose power of two is above a magnitude; for zero that of the smallest positive number."""
    return torch.frexp(torch.where(value == 0, 2.0**-149, value)).exponent.to(torch.int64)


def observe_magnitudes(base: Tensor, counts: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    if base.numel() == 0:
        return counts.clone(), exponent.clone()
    magnitudes = base.abs().flatten().to(_widest(base))
    largest = magnitudes.max()
    if not largest.isfinite():
        raise RuntimeError("[observe_magnitudes] base: got NaN or infinite elements, expected finite ones")
    bins, needed = counts.numel(), _exponent_above(largest)
    widened = torch.where(counts.any(), torch.maximum(exponent, needed), needed)
    merged = torch.arange(bins, device=counts.device) >> (widened - exponent).clamp(0, 62)
    result = torch.zeros_like(counts).index_add_(0, merged, counts)
    index = torch.ldexp(magnitudes, bins.bit_length() - 1 - widened).to(torch.int64)
    return result + torch.bincount(index, minlength=bins), widened.reshape(exponent.shape)


def _widest(t: Tensor) -> torch.dtype:
    return torch.float32 if t.device.type == "mps" else torch.float64


def _used_bins(counts: Tensor) -> Tensor:
    return torch.where(counts > 0, torch.arange(1, counts.numel() + 1, device=counts.device), 0).max()


def _unless_only_zeros(scale: Tensor, counts: Tensor, exponent: Tensor) -> Tensor:
    used = _used_bins(counts)
    zeros = (used == 0) | ((used == 1) & (exponent.reshape(()) <= -148))
    return torch.where(zeros, 0.0, scale.to(torch.float32).clamp(min=2.0**-149))


def _bin_width(counts: Tensor, exponent: Tensor) -> Tensor:
    one = torch.ones((), dtype=_widest(counts), device=counts.device)
    return torch.ldexp(one, exponent.reshape(()) - (counts.numel().bit_length() - 1))


def percentile_scale(counts: Tensor, exponent: Tensor, qtype: str, percentile: float) -> Tensor:
    wide = _widest(counts)
    sums = counts.cumsum(0).to(wide)
    wanted = sums[-1] * percentile / 100.0
    last = (_used_bins(counts) - 1).clamp(min=0)
    bin = torch.minimum((sums < wanted).sum(), last)
    count = counts[bin].to(wide)
    part = ((wanted - (sums[bin] - count)) / count.clamp(min=1)).clamp(0, 1)
    scale = (bin + part) * _bin_width(counts, exponent) / _QTYPES[qtype]["qmax"]
    return _unless_only_zeros(scale, counts, exponent)


def mse_scale(counts: Tensor, exponent: Tensor, qtype: str) -> Tensor:
    row, candidates = _QTYPES[qtype], 128
    wide, width, qmax = _widest(counts), _bin_width(counts, exponent), row["qmax"]
    steps = torch.arange(1, candidates + 1, dtype=wide, device=counts.device)
    scales = (_used_bins(counts) * width / qmax * steps / candidates).unsqueeze(1)
    centers = (torch.arange(counts.numel(), dtype=wide, device=counts.device) + 0.5) * width
    ratio = torch.nan_to_num(centers / scales).clamp(max=qmax)
    codes = ratio.to(torch.float32).to(getattr(torch, row["storage"])).to(wide) if qmax != 127 else ratio.round()
    errors = (counts * (centers - scales * codes).square()).sum(1)
    return _unless_only_zeros(scales[errors.argmin(), 0], counts, exponent)


def all_finite(base: Tensor) -> Tensor:
    return base.isfinite().all()


def _sums_of_codes(input: Tensor, data: Tensor) -> Tensor:
    # Sums of integer products are exact in float64, which every torch device but MPS multiplies.
    wide = torch.float32 if input.device.type == "mps" else torch.float64
    return torch.matmul(input.to(wide), data.to(wide).t()).to(torch.float32)


def qbytes_mm(A: Tensor, B: Tensor, scales: Tensor) -> Tensor:
    if A.dtype == torch.int8 and B.dtype == torch.int8:
        return (_sums_of_codes(A, B) * scales.flatten().to(torch.float32)).to(scales.dtype)
    return linear_qbytes(A.to(scales.dtype), B, scales, None)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer: the weight's own, if it has one, else torch's. It serves the CPU too, and has gradients."""
    own = getattr(weight, "linear", None)
    return torch.nn.functional.linear(input, weight, bias) if own is None else own(input, bias)


def linear_qbytes(input: Tensor, data: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    weight = dequantize_symmetric(data, scale).to(input.dtype)
    return torch.nn.functional.linear(input, weight, None if bias is None else bias.to(input.dtype))


def _dequantized_matrix(op: str, input: Tensor, data: Tensor, scale: Tensor, shift: Tensor, bits: int) -> Tensor:
    in_features = input.shape[-1]
    out_features, group_size = packed_matrix(op, data, scale, in_features)
    return dequantize_affine(data, scale, shift, bits, 0, group_size, (out_features, in_features), True)


def linear_qbits(
    input: Tensor,
    data: Tensor,
    scale: Tensor,
    shift: Tensor,
    bias: Tensor | None = None,
    bits: int = 4,
) -> Tensor:
    weight = _dequantized_matrix("linear_qbits", input, data, scale, shift, bits).to(input.dtype)
    return torch.nn.functional.linear(input, weight, None if bias is None else bias.to(input.dtype))


def _row_scaled(sums: Tensor, input_scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    single = input_scale.numel() == 1
    scale = input_scale.reshape(()) if single else input_scale.reshape(*sums.shape[:-1], 1)
    output = sums * scale.to(torch.float32)
    return (output if bias is None else output + bias.to(dtype).to(torch.float32)).to(dtype)


def linear_codes_qbytes(
    input: Tensor, input_scale: Tensor, data: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    sums = _sums_of_codes(input, data) * scale.flatten().to(torch.float32)
    return _row_scaled(sums, input_scale, bias, dtype)


def linear_codes_qbits(
    input: Tensor,
    input_scale: Tensor,
    data: Tensor,
    scale: Tensor,
    shift: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    bits: int = 4,
) -> Tensor:
    offset = shift.to(torch.float32) if shift.dtype.is_floating_point else shift
    weight = _dequantized_matrix("linear_codes_qbits", input, data, scale.to(torch.float32), offset, bits)
    return _row_scaled(torch.nn.functional.linear(input.to(torch.float32), weight), input_scale, bias, dtype)


def _codes_of(input: Tensor, dtype: torch.dtype, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    return quantize_per_token(input, dtype) if scale is None else (_symmetric_codes(input, dtype, scale), scale)


def linear_quantizing_qbytes(
    input: Tensor, dtype: torch.dtype, input_scale: Tensor | None, data: Tensor, scale: Tensor, bias: Tensor | None
) -> Tensor:
    return linear_codes_qbytes(*_codes_of(input, dtype, input_scale), data, scale, bias, scale.dtype)


def linear_quantizing_qbits(
    input: Tensor,
    dtype: torch.dtype,
    input_scale: Tensor | None,
    data: Tensor,
    scale: Tensor,
    shift: Tensor,
    bias: Tensor | None = None,
    bits: int = 4,
) -> Tensor:
    codes, codes_scale = _codes_of(input, dtype, input_scale)
    return linear_codes_qbits(codes, codes_scale, data, scale, shift, bias, scale.dtype, bits)


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    padding_mode: str,
    groups: int = 1,
) -> Tensor:
    functional = torch.nn.functional
    function = functional.conv1d if len(stride) == 1 else functional.conv2d
    before, after = list(padding[::2]), list(padding[1::2])
    if padding_mode != "zeros" or before != after:
        # torch pads the last dimension first.
        pairs = [amount for d in reversed(range(len(stride))) for amount in padding[2 * d : 2 * d + 2]]
        input = functional.pad(input, pairs, "constant" if padding_mode == "zeros" else padding_mode)
        before = [0] * len(stride)
    return function(input, weight, bias, list(stride), before, list(dilation), groups)


def conv_qbytes(
    input: Tensor,
    data: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    padding_mode: str,
) -> Tensor:
    weight = dequantize_symmetric(data, scale.reshape(-1, *[1] * (data.ndim - 1))).to(input.dtype)
    bias = None if bias is None else bias.to(input.dtype)
    return convolve(input, weight, bias, stride, padding, dilation, padding_mode)


def conv_qbits(
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
    weight = dequantize_affine(data, scale, shift, bits, 0, group_size or None, size, True).to(input.dtype)
    bias = None if bias is None else bias.to(input.dtype)
    return convolve(input, weight, bias, stride, padding, dilation, padding_mode)


def embedding_qbytes(indices: Tensor, data: Tensor, scale: Tensor) -> Tensor:
    rows = data.view(torch.uint8)[indices].view(data.dtype)  # not every device indexes float8
    return dequantize_symmetric(rows, scale.reshape(-1) if scale.numel() == 1 else scale.reshape(-1, 1)[indices])


def embedding_qbits(
    indices: Tensor, data: Tensor, scale: Tensor, shift: Tensor, bits: int, group_size: int, size: Sequence[int]
) -> Tensor:
    rows, columns = size
    group_size = group_size or columns
    groups = columns // group_size
    # Grouped row r = index * groups + j lies in field r // packed of packed row r % packed.
    packed = packed_rows(rows * groups, bits)
    grouped = indices.unsqueeze(-1) * groups + torch.arange(groups, device=indices.device)
    codes = data.reshape(packed, group_size)[grouped % packed]
    codes = (codes >> (bits * (grouped // packed)).to(torch.uint8).unsqueeze(-1)) & (2**bits - 1)
    scale, shift = scale.reshape(-1, 1)[grouped], shift.reshape(-1, 1)[grouped]
    return dequantize_affine(codes, scale, shift, bits, 0, None, (*indices.shape, columns), False)


def register() -> None:
    """Register every composition for the devices that have no kernel of their own."""
    torch.library.impl("quanto::linear", "CompositeImplicitAutograd", linear)
    for composition in (
        quantize_symmetric,
        quantize_affine,
        quantize_affine_packed,
        absmax_scale,
        quantize_per_token,
        observe_magnitudes,
        percentile_scale,
        mse_scale,
        minmax_scale,
        hqq_scale,
        dequantize_symmetric,
        dequantize_affine,
        fake_quantize_symmetric,
        fake_quantize_affine,
        pack,
        unpack,
        all_finite,
        qbytes_mm,
        linear_qbytes,
        linear_qbits,
        linear_codes_qbytes,
        linear_codes_qbits,
        linear_quantizing_qbytes,
        linear_quantizing_qbits,
        conv_qbytes,
        conv_qbits,
        embedding_qbytes,
        embedding_qbits,
    ):
        torch.library.impl(f"quanto::{composition.__name__}", "default", composition)
