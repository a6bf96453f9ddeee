"""The oracle must catch what it is there for."""

import pytest
import torch
from oracle import misfit

from optimum.quanto import AbsmaxOptimizer, MaxOptimizer, qint4, qint8, quantize_weight


def _weight(qtype):
    base = torch.randn(12, 128)
    if qtype is qint8:
        return quantize_weight(base, qint8, 0, AbsmaxOptimizer()(base, qint8, 0))
    scale, shift = MaxOptimizer()(base, qtype, 0, 32)
    return quantize_weight(base, qtype, 0, scale, shift, 32)


def _other_scale(weight, scale):
    inner = {**weight.inner_tensors(), "_scale": scale}
    return weight.from_parts(inner, weight.metadata(), weight.size(), weight.stride())


FAULTS = {
    "wrong scale": lambda x, w: _linear(x, _other_scale(w, w._scale * 1.01)),
    "rotated scales": lambda x, w: _linear(x, _other_scale(w, w._scale.roll(1, 0))),
    "dropped last k": lambda x, w: _linear(torch.cat([x[:, :-1], torch.zeros_like(x[:, -1:])], 1), w),
    "swapped columns": lambda x, w: _linear(x, w)[:, torch.tensor([1, 0, *range(2, 12)])],
    "zeroed row": lambda x, w: _linear(x, w) * torch.tensor([[1.0], [0.0], [1.0]]),
    "negated element": lambda x, w: _linear(x, w) * (1 - 2 * (torch.arange(36).reshape(3, 12) == 17)),
    "one NaN": lambda x, w: _linear(x, w).masked_fill(torch.arange(36).reshape(3, 12) == 5, float("nan")),
    "another magnitude": lambda x, w: _linear(x, w) * 1000,
}


def _linear(x, w):
    return torch.nn.functional.linear(x, w)


@pytest.mark.parametrize("qtype", [qint8, qint4], ids=str)
@pytest.mark.parametrize("fault", FAULTS)
def test_catches(qtype, fault):
    x, w = torch.randn(3, 128), _weight(qtype)
    assert misfit(x, w, None, _linear(x, w)) <= 1
    assert misfit(x, w, None, FAULTS[fault](x, w)) > 1
