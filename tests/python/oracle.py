"""The truth that matmul tests compare with: double precision, and a bound for each element."""

import torch
from torch import Tensor


_ROUNDOFF = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}
_HALF_SUBNORMAL = {
    dtype: torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 2 for dtype in (torch.bfloat16, torch.float16)
}


def decoded(codes: Tensor, scale: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes as the numbers that they stand for, in float64, and what rounding errors are relative to.

    That is `|scale * code| + |shift|` for a float shift: both terms may be large where their difference is small.
    """
    codes, scale = codes.double(), scale.double()
    if shift is None:
        value = scale * codes
        return value, value.abs()
    if shift.dtype.is_floating_point:
        return scale * codes - shift.double(), (scale * codes).abs() + shift.double().abs()
    return scale * (codes - shift.double()), scale.abs() * (codes + shift.double().abs())


def weight_and_magnitude(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`decoded` for a quantized weight of two dimensions."""
    if weight.qtype.bits == 8:
        return decoded(weight._data, weight._scale)
    value, magnitude = decoded(weight._data.unpack(), weight._scale, weight._shift)
    return value.reshape(weight.shape), magnitude.reshape(weight.shape)


def misfit_of_product(
    input: Tensor, value: Tensor, magnitude: Tensor, bias: Tensor | None, output: Tensor
) -> tuple[float, str]:
    """The largest error of `output` against `input @ value.T + bias` in units of its bound, and where it is.

    The bound is `(K + 2) * 2^-24 * sum |x| * magnitude + 2 * u_out * |reference|`, and half of the smallest number of
    the output's dtype, which a tiny result is rounded to. At most 1 is right. Whatever is not a number is infinitely
    wrong, and so is a result of another shape.
    """
    x = input.detach().double()
    reference, total = x @ value.T, x.abs() @ magnitude.T
    if bias is not None:
        reference, total = reference + bias.detach().double(), total + bias.detach().double().abs()
    if output.shape != reference.shape:
        return float("inf"), f"shape {tuple(output.shape)}, expected {tuple(reference.shape)}"
    bound = (x.shape[-1] + 2) * 2**-24 * total + 2 * _ROUNDOFF[output.dtype] * reference.abs()
    bound = bound + _HALF_SUBNORMAL.get(output.dtype, 2**-150)
    error = (output.detach().double() - reference).abs()
    # 0 / 0 is no misfit, but NaN is.
    ratio = torch.where(error <= bound, error / bound.clamp(min=2**-1000), float("inf"))
    ratio = torch.where((error > bound) & error.isfinite(), error / bound, ratio).flatten()
    if ratio.numel() == 0:
        return 0.0, "empty"
    worst = int(ratio.argmax())
    found, expected = output.flatten()[worst].item(), reference.flatten()[worst].item()
    return ratio[worst].item(), f"element {worst} of {tuple(output.shape)}: got {found}, expected {expected}"


def misfit(input: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor) -> float:
    """`misfit_of_product` for a quantized weight."""
    return misfit_of_product(input, *weight_and_magnitude(weight), bias, output)[0]
