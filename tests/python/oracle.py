"""The truth that matmul tests compare with: double precision, and a bound for each element."""

import torch
from torch import Tensor


_ROUNDOFF = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def weight_and_magnitude(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A quantized weight as float64, and what its rounding errors are relative to: |scale * code| + |shift|."""
    scale = weight._scale.double()
    if weight.qtype.bits == 8:
        value = scale * weight._data.double()
        return value, value.abs()
    codes = weight._data.unpack().double()
    shift = weight._shift.double()
    if weight._shift.dtype.is_floating_point:
        value, magnitude = scale * codes - shift, (scale * codes).abs() + shift.abs()
    else:
        value, magnitude = scale * (codes - shift), scale.abs() * (codes + shift)
    return value.reshape(weight.shape), magnitude.reshape(weight.shape)


def misfit(input: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor) -> float:
    """The largest error of `output` against `input @ weight.T + bias`, in units of its bound: at most 1 is right.

    The bound is `(K + 2) * 2^-24 * sum |x| * magnitude + 2 * u_out * |reference|`. NaN gives infinity.
    """
    value, magnitude = weight_and_magnitude(weight)
    x = input.detach().double()
    reference = x @ value.T
    scale = x.abs() @ magnitude.T
    if bias is not None:
        reference = reference + bias.double()
        scale = scale + bias.double().abs()
    bound = (x.shape[-1] + 2) * 2**-24 * scale + 2 * _ROUNDOFF[output.dtype] * reference.abs() + 2**-24
    error = ((output.detach().double() - reference).abs() / bound).nan_to_num(nan=float("inf"))
    return float(error.max()) if error.numel() else 0.0
