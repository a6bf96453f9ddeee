"""Bit for bit what optimum-quanto 0.2.7 computes, and its checkpoints."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open


GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))

from cases import (  # noqa: E402
    ACTIVATIONS,
    CASES,
    CHECKPOINTS,
    ZERO_POINT_CASES,
    base_tensor,
    calibration_model,
    calibration_samples,
    float_model,
)

from optimum.quanto import (  # noqa: E402
    AbsmaxOptimizer,
    Calibration,
    MaxOptimizer,
    QTensor,
    absmax_scale,
    freeze,
    qtypes,
    quantization_map,
    quantize,
    quantize_activation,
    quantize_weight,
    requantize,
)


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN / "quanto_0_2_7.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["facts"])


def _part(golden, prefix):
    parts = {key.removeprefix(f"{prefix}."): t for key, t in golden[0].items() if key.startswith(f"{prefix}.")}
    assert parts
    return parts


def _assert_same(found, expected, what):
    if found.dtype.itemsize == 1:
        found, expected = found.contiguous().view(torch.uint8), expected.view(torch.uint8)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape), what
    # As integers, so that a negative zero is not a zero.
    as_integers = {4: torch.int32, 2: torch.int16, 1: torch.uint8, 8: torch.int64}[found.dtype.itemsize]
    assert torch.equal(found.contiguous().view(as_integers), expected.contiguous().view(as_integers)), what


@pytest.mark.parametrize("name", [*CASES, *ZERO_POINT_CASES])
def test_tensors(golden, name):
    qtype_name, dtype, shape, axis, group_size = {**CASES, **ZERO_POINT_CASES}[name]
    base, qtype = base_tensor(shape, dtype), qtypes[qtype_name]
    if qtype.bits == 8:
        w = quantize_weight(base, qtype, axis, AbsmaxOptimizer()(base, qtype, axis))
        found = {"_data": w._data}
    else:
        scale, shift = MaxOptimizer()(base, qtype, axis, group_size, name in ZERO_POINT_CASES)
        w = quantize_weight(base, qtype, axis, scale, shift, group_size)
        found = {"_data": w._data._data, "_shift": w._shift}
    found.update(_scale=w._scale, dequantized=w.dequantize())
    expected = _part(golden, name)
    assert found.keys() == expected.keys()
    for part, t in found.items():
        _assert_same(t, expected[part], part)


def test_a_single_row_of_0_2_7_loads():
    """It has a scale, zero, and a shift for each element."""
    rows = torch.randn(1, 8)
    model = torch.nn.Sequential(torch.nn.Linear(8, 1, bias=False))
    state = {"0.weight._data._data": torch.zeros(1, 8, dtype=torch.uint8), "0.weight._scale": torch.zeros(1, 8)}
    state |= {"0.weight._shift": -rows, "0.input_scale": torch.ones(()), "0.output_scale": torch.ones(())}
    requantize(model, dict(state), {"0": {"weights": "qint4", "activations": "none"}})
    assert torch.equal(model[0].weight.dequantize(), rows)
    x = torch.randn(3, 8)
    torch.testing.assert_close(model(x), x @ rows.t())
    assert all(torch.equal(t, state[key]) for key, t in model.state_dict().items())


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_both_ways(golden, name):
    weights, dtype = CHECKPOINTS[name]
    model = float_model(dtype)
    quantize(model, weights=weights)
    freeze(model)
    theirs, ours = _part(golden, name), model.state_dict()
    # The file has float8 codes as bytes.
    theirs = {k: t.view(qtypes[weights].dtype) if k.endswith("weight._data") else t for k, t in theirs.items()}
    assert set(ours) == set(theirs)
    for key, t in ours.items():
        assert t.dtype == theirs[key].dtype, key
        _assert_same(t, theirs[key], key)

    loaded = torch.nn.Sequential(torch.nn.Linear(160, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6)).to(dtype)
    requantize(loaded, theirs, quantization_map(model))
    x = torch.randn(3, 160).to(dtype)
    assert torch.equal(loaded(x), model(x))


# 0.2.7 gives parts of a split the size of the whole.
WRONG_SHAPES = {"split.qint8", "split.qfloat8_e4m3fn"}
# Sums in another order.
PRODUCTS = {"matmul", "bmm", "linear", "attention"}
# torch computes these with the vectors of the CPU that it runs on: other last bits, other orders of summation.
ROUNDED_BY_THE_CPU = {"silu", "gelu", "tanh", "layer norm", "pow", "sum", "mean"}


@pytest.mark.parametrize("qtype_name", ["qint8", "qfloat8_e4m3fn"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(golden, name, qtype_name):
    base, qtype = base_tensor((4, 6), torch.float32), qtypes[qtype_name]
    activations = quantize_activation(base, qtype, absmax_scale(base, qtype))
    result = ACTIVATIONS[name](activations)
    found = result.dequantize() if isinstance(result, QTensor) else result
    key = f"{name}.{qtype_name}"
    classes, expected = golden[1][f"activations.{qtype_name}"], _part(golden, f"activations.{qtype_name}")[name]
    assert type(result).__name__ == classes[name]
    if key in WRONG_SHAPES:
        assert found.shape == (4, 6)
    elif name in PRODUCTS:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    elif name in ROUNDED_BY_THE_CPU:
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
        _assert_same(found, ACTIVATIONS[name](activations.dequantize()), name)
    else:
        assert found.dtype == expected.dtype or expected.dtype == torch.uint8
        _assert_same(found, expected, name)


@pytest.mark.parametrize("activations", ["qint8", "qfloat8_e4m3fn"])
def test_calibration(golden, activations):
    model = calibration_model()
    quantize(model, weights="qint8", activations=activations)
    with torch.no_grad(), Calibration():
        for x in calibration_samples():
            model(x)
    freeze(model)
    theirs, facts = _part(golden, f"calibration.{activations}"), golden[1][f"calibration.{activations}"]
    ours = model.state_dict()
    assert set(ours) == set(theirs)
    for key, t in ours.items():
        if key.endswith("put_scale") and key != "0.input_scale":
            # Scales of outputs of layers, whose sums are in another order.
            torch.testing.assert_close(t, theirs[key], rtol=2e-2 if key[0] != "0" else 1e-6, atol=0)
        else:
            _assert_same(t, theirs[key], key)
    # 0.2.7 overlooks that relu has a quantized form for integers, and leaves all outputs float.
    hooks = {name: len(model.get_submodule(name)._forward_hooks) for name in facts["hooks"]}
    assert facts["hooks"] == {"0": 0, "2": 0, "4": 0}
    assert hooks == {"0": int(activations == "qint8"), "2": 0, "4": 0}
    kept = ("weights", "activations")
    assert {n: {k: e[k] for k in kept} for n, e in quantization_map(model).items()} == facts["map"]
    reloaded = calibration_model()
    codes = {key: t.view(torch.int8) for key, t in theirs.items() if key.endswith("_data")}
    requantize(reloaded, {**theirs, **codes}, facts["map"])
    assert torch.equal(reloaded[4].output_scale, theirs["4.output_scale"])
