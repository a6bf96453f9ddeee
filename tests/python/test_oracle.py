"""The oracle must catch what it is there for, at every magnitude and in every dtype."""

import pytest
import torch
from oracle import misfit, misfit_of_product, weight_and_magnitude

from optimum.quanto import AbsmaxOptimizer, MaxOptimizer, qint4, qint8, quantize_weight


def _weight(qtype, dtype, magnitude):
    base = (torch.randn(12, 128) * magnitude).to(dtype)
    if qtype is qint8:
        return quantize_weight(base, qtype, 0, AbsmaxOptimizer()(base, qtype, 0))
    scale, shift = MaxOptimizer()(base, qtype, 0, 32)
    return quantize_weight(base, qtype, 0, scale, shift, 32)


def _other_scale(weight, scale):
    inner = {**weight.inner_tensors(), "_scale": scale}
    return weight.from_parts(inner, weight.metadata(), weight.size(), weight.stride())


def _linear(x, w):
    return torch.nn.functional.linear(x, w)


def _at(index, y):
    return torch.arange(y.numel()).reshape(y.shape) == index


def _without_last_k(x, w):
    return _linear(torch.cat([x[:, :-1], torch.zeros_like(x[:, -1:])], 1), w)


def _zeroed_row(x, w):
    y = _linear(x, w)
    y[1] = 0
    return y


def _largest_negated(x, w):
    y = _linear(x, w)
    return torch.where(_at(int(y.abs().argmax()), y), -y, y)


FAULTS = {
    "wrong scale": lambda x, w: _linear(x, _other_scale(w, w._scale * 1.03)),
    "rotated scales": lambda x, w: _linear(x, _other_scale(w, w._scale.roll(1, 0))),
    "dropped last k": _without_last_k,
    "swapped columns": lambda x, w: _linear(x, w)[:, torch.tensor([1, 0, *range(2, 12)])],
    "zeroed row": _zeroed_row,
    "negated element": _largest_negated,
    "one NaN": lambda x, w: _linear(x, w).masked_fill(_at(5, torch.empty(3, 12)), float("nan")),
    "one infinity": lambda x, w: _linear(x, w).masked_fill(_at(5, torch.empty(3, 12)), float("inf")),
    "another magnitude": lambda x, w: _linear(x, w) * 1000,
    "zeros": lambda x, w: torch.zeros_like(_linear(x, w)),
    "a row too few": lambda x, w: _linear(x, w)[:2],
}


@pytest.mark.parametrize("exponent", [0, -30, 30])
@pytest.mark.parametrize("qtype", [qint8, qint4], ids=str)
@pytest.mark.parametrize("fault", FAULTS)
def test_catches(qtype, fault, dtype, exponent):
    magnitude = 2.0 ** (exponent / 5 if dtype == torch.float16 else exponent)
    x, w = torch.randn(3, 128).to(dtype), _weight(qtype, dtype, magnitude)
    assert misfit(x, w, None, _linear(x, w)) <= 1
    assert misfit(x, w, None, FAULTS[fault](x, w)) > 1


@pytest.mark.parametrize("qtype", [qint8, qint4], ids=str)
def test_the_bound_is_not_loose(qtype):
    """A single element that is off by what the last of the summed products contributes fails in float32."""
    x, w = torch.randn(3, 128), _weight(qtype, torch.float32, 1.0)
    value, magnitude = weight_and_magnitude(w)
    exact = (x.double() @ value.T).float()
    assert misfit_of_product(x, value, magnitude, None, exact)[0] < 0.2
    nudged = exact.clone()
    nudged[2, 7] += 1e-4 * (x[2].abs() @ magnitude[7].float())
    ratio, where = misfit_of_product(x, value, magnitude, None, nudged)
    assert ratio > 1
    assert where.startswith("element 31 of (3, 12): got ")


def test_a_forgotten_bias_is_caught():
    x, w, bias = torch.randn(3, 128), _weight(qint8, torch.float32, 1.0), torch.randn(12)
    assert misfit(x, w, bias, _linear(x, w) + bias) <= 1
    assert misfit(x, w, bias, _linear(x, w)) > 1


def test_zero_is_exactly_zero():
    x, w = torch.zeros(3, 128), _weight(qint8, torch.float32, 1.0)
    y = _linear(x, w)
    assert misfit(x, w, None, y) == 0
    assert misfit(x, w, None, y + 1e-30) > 1
