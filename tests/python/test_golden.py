"""Bit for bit what optimum-quanto 0.2.7 computes, and its checkpoints."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))

from cases import CASES, base_tensor  # noqa: E402

from optimum.quanto import (  # noqa: E402
    AbsmaxOptimizer,
    MaxOptimizer,
    freeze,
    qtypes,
    quantization_map,
    quantize,
    quantize_weight,
    requantize,
)


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "quanto_0_2_7.safetensors")


def _same(found, expected):
    if found.dtype.itemsize == 1:
        found = found.contiguous().view(torch.uint8)
    return found.dtype == expected.dtype and torch.equal(found, expected)


@pytest.mark.parametrize("name", CASES)
def test_tensors(golden, name):
    qtype_name, dtype, shape, axis, group_size = CASES[name]
    base, qtype = base_tensor(shape, dtype), qtypes[qtype_name]
    if qtype.bits == 8:
        w = quantize_weight(base, qtype, axis, AbsmaxOptimizer()(base, qtype, axis))
        data = w._data
    else:
        scale, shift = MaxOptimizer()(base, qtype, axis, group_size)
        w = quantize_weight(base, qtype, axis, scale, shift, group_size)
        data = w._data._data
        assert _same(w._shift, golden[f"{name}._shift"])
    assert _same(w._scale, golden[f"{name}._scale"])
    assert _same(data, golden[f"{name}._data"])
    assert _same(w.dequantize(), golden[f"{name}.dequantized"])


def _model():
    return torch.nn.Sequential(torch.nn.Linear(160, 24), torch.nn.ReLU(), torch.nn.Linear(24, 6)).to(torch.bfloat16)


def _checkpoint(golden, weights):
    prefix = f"checkpoint.{weights}."
    dtype = qtypes[weights].dtype
    tensors = {key.removeprefix(prefix): t for key, t in golden.items() if key.startswith(prefix)}
    is_code = {key for key in tensors if key.endswith("weight._data")}
    return {key: t.view(dtype) if key in is_code else t for key, t in tensors.items()}


@pytest.mark.parametrize("weights", ["qint8", "qfloat8", "qint4", "qint2"])
def test_checkpoints_both_ways(golden, weights):
    model = _model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(base_tensor(tuple(parameter.shape), torch.bfloat16))
    quantize(model, weights=weights)
    freeze(model)
    theirs = _checkpoint(golden, weights)
    ours = model.state_dict()
    assert list(ours) == sorted(theirs, key=list(ours).index)
    for key, t in ours.items():
        assert t.shape == theirs[key].shape
        assert t.dtype == theirs[key].dtype
        assert _same(t, theirs[key].view(torch.uint8) if t.dtype.itemsize == 1 else theirs[key]), key

    loaded = _model()
    requantize(loaded, theirs, quantization_map(model))
    x = torch.randn(3, 160, dtype=torch.bfloat16)
    assert torch.equal(loaded(x), model(x))
