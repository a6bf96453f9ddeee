"""Linear layers of quantized activations: the codes go into the kernels."""

import pytest
import torch
from oracle import misfit_of_product, weight_and_magnitude

from optimum.quanto import (
    AbsmaxOptimizer,
    ActivationQBytesTensor,
    MaxOptimizer,
    absmax_scale,
    qfloat8_e4m3fn,
    qfloat8_e5m2,
    qint2,
    qint4,
    qint8,
    quantize_activation,
    quantize_weight,
)


WEIGHTS = [qint8, qint4, qint2, qfloat8_e4m3fn]


def weight_of(qtype, dtype, shape=(24, 96)):
    base = torch.randn(shape).to(dtype)
    if qtype.bits == 8:
        return quantize_weight(base, qtype, 0, AbsmaxOptimizer()(base, qtype, 0))
    scale, shift = MaxOptimizer()(base, qtype, 0, 32)
    return quantize_weight(base, qtype, 0, scale, shift, 32)


def per_token(base, qtype):
    data, scale = torch.ops.quanto.quantize_per_token(base, qtype.dtype)
    return ActivationQBytesTensor(qtype, data.size(), data.stride(), data, scale)


@pytest.mark.parametrize("granularity", ["tensor", "token"])
@pytest.mark.parametrize("activations", [qint8, qfloat8_e4m3fn, qfloat8_e5m2], ids=str)
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_codes_are_multiplied_as_the_numbers_that_they_stand_for(weights, activations, granularity, dtype):
    weight, bias = weight_of(weights, dtype), torch.randn(24).to(dtype)
    for shape in ((1, 96), (5, 96), (2, 40, 96)):
        base = torch.randn(shape).to(dtype)
        x = per_token(base, activations) if granularity == "token" else None
        if x is None:
            x = quantize_activation(base, activations, absmax_scale(base, activations))
        with torch.no_grad():
            y = torch.nn.functional.linear(x, weight, bias)
        assert type(y) is torch.Tensor
        assert y.dtype == dtype
        numbers = x._data.double() * x._scale.double()
        value, magnitude = weight_and_magnitude(weight)
        ratio, where = misfit_of_product(numbers, value, magnitude * 99 / 98, bias, y)
        assert ratio <= 1, where


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_gradients_pass_straight_through(weights):
    weight = weight_of(weights, torch.float32)
    base, bias = torch.randn(5, 96, requires_grad=True), torch.randn(24, requires_grad=True)
    x = quantize_activation(base, qint8, absmax_scale(base.detach(), qint8))
    y = torch.nn.functional.linear(x, weight, bias)
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, (base, bias), upstream)
    torch.testing.assert_close(found[0], upstream @ weight.dequantize())
    torch.testing.assert_close(found[1], upstream.sum(0))
