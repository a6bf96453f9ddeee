"""Devices without kernels of their own: an out-of-tree one with real memory, meta, and fake tensors."""

import copy
import io

import host_device
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from optimum.quanto import (
    ActivationQBytesTensor,
    Calibration,
    QTensor,
    coverage,
    freeze,
    quantization_map,
    quantize,
    requantize,
)


ACTIVATIONS = [None, "qint8", "qfloat8_e4m3fn"]


# While tests are collected: autograd counts the devices when the first backward runs.
DEVICE = host_device.register()


@pytest.fixture
def device():
    return DEVICE


@pytest.fixture(params=ACTIVATIONS)
def activations(request):
    return request.param


def float_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(160, 96), torch.nn.ReLU(), torch.nn.Linear(96, 48), torch.nn.LayerNorm(48)
    )


def plain(output):
    return output.dequantize() if isinstance(output, QTensor) else output


def calibrated(model, weights, activations, x, observer):
    quantize(model, weights=weights, activations=activations)
    if activations is not None:
        with torch.no_grad(), Calibration(observer=observer):
            for _ in range(2):
                model(x)
    freeze(model)
    return model


def quantized(model, weights, activations, x):
    return calibrated(model, weights, activations, x, "absmax")


def as_bytes(t):
    return t.cpu().contiguous().flatten().view(torch.uint8)


def inner_tensors(model):
    """Every tensor of the state dict: codes, scales and shifts apart."""
    return model.state_dict().values()


def test_quantize_calibrate_freeze_and_forward(device, qtype_name, activations):
    x = torch.randn(4, 160)
    ours = quantized(float_model().to(device), qtype_name, activations, x.to(device))
    expected = quantized(float_model(), qtype_name, activations, x)
    assert {t.device for t in inner_tensors(ours)} == {device}
    for name, t in ours.state_dict().items():
        theirs = expected.state_dict()[name]
        if name.endswith("put_scale"):
            # A code of an activation that lies between two may fall to either side, and moves the next layers' scales.
            torch.testing.assert_close(t.cpu(), theirs, rtol=2e-2, atol=0)
        else:
            assert torch.equal(as_bytes(t), as_bytes(theirs)), name
    with torch.no_grad():
        found = ours(x.to(device))
        assert found.device == device
        tolerance = 1e-5 if activations is None else 0.1
        torch.testing.assert_close(plain(found).cpu(), plain(expected(x)), rtol=tolerance, atol=tolerance)
    assert "composition of torch operators on host" in str(coverage(ours))


def test_moves_and_copies(device, qtype_name):
    x = torch.randn(4, 160)
    model = quantized(float_model(), qtype_name, None, x)
    expected = {name: t.clone() for name, t in model.state_dict().items()}
    with torch.no_grad():
        there = copy.deepcopy(model).to(device)
        torch.testing.assert_close(there(x.to(device)).cpu(), model(x), rtol=1e-5, atol=1e-5)
        back = copy.deepcopy(there).to("cpu")
        assert torch.equal(back(x), model(x))
    for name, t in back.state_dict().items():
        assert torch.equal(as_bytes(t), as_bytes(expected[name])), name


def test_save_and_load(device, qtype_name, activations, tmp_path):
    x = torch.randn(4, 160)
    model = quantized(float_model().to(device), qtype_name, activations, x.to(device))
    qmap = quantization_map(model)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    save_file({name: t.cpu().contiguous() for name, t in model.state_dict().items()}, tmp_path / "model.safetensors")
    states = {
        "torch.save": torch.load(buffer, weights_only=True, map_location=device),
        "safetensors": load_file(tmp_path / "model.safetensors"),
    }
    for name, state in states.items():
        with torch.device("meta"):
            loaded = float_model()
        requantize(loaded, state, qmap, device=device)
        assert {t.device for t in inner_tensors(loaded)} == {device}, name
        with torch.no_grad():
            assert torch.equal(plain(loaded(x.to(device))).cpu(), plain(model(x.to(device))).cpu()), name


def test_a_state_dict_of_another_device_is_copied_to_that_of_the_model(device, qtype_name):
    x = torch.randn(4, 160)
    state = quantized(float_model(), qtype_name, None, None).state_dict()
    model = float_model().to(device)
    quantize(model, weights=qtype_name)
    model.load_state_dict(state)
    assert {t.device for t in inner_tensors(model)} == {device}
    for name, t in model.state_dict().items():
        assert torch.equal(as_bytes(t), as_bytes(state[name])), name
    assert model(x.to(device)).device == device


def test_training(device, qtype_name):
    model = float_model().to(device)
    quantize(model, weights=qtype_name)
    model(torch.randn(4, 160).to(device)).pow(2).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.device == device, name
        assert parameter.grad.cpu().isfinite().all(), name


def test_mixed_devices_are_an_error(device):
    model = quantized(float_model(), "qint4", None, None).to(device)
    with pytest.raises(RuntimeError, match=r"got device cpu, expected host:0"):
        model(torch.randn(4, 160))


@pytest.mark.parametrize("observer", ["absmax", "percentile", "mse"])
def test_meta(qtype_name, activations, observer):
    model = calibrated(float_model().to("meta"), qtype_name, activations, torch.empty(4, 160, device="meta"), observer)
    expected = calibrated(float_model(), qtype_name, activations, torch.randn(4, 160), observer).state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, t in model.state_dict().items():
        assert (t.device.type, t.shape, t.dtype) == ("meta", expected[name].shape, expected[name].dtype), name
    output = model(torch.empty(4, 160, device="meta"))
    assert (output.device.type, output.shape) == ("meta", (4, 48))
    model.load_state_dict(expected, assign=True)
    x = torch.randn(4, 160)
    assert plain(model(x)).isfinite().all()


@pytest.mark.parametrize("observer", ["absmax", "percentile", "mse"])
def test_fake_tensors(qtype_name, activations, observer):
    with FakeTensorMode():
        model = calibrated(float_model(), qtype_name, activations, torch.randn(4, 160), observer)
        output = model(torch.randn(4, 160))
        assert isinstance(output, FakeTensor | ActivationQBytesTensor)
        assert output.shape == (4, 48)
        model.load_state_dict(model.state_dict(), assign=True)
        assert all(isinstance(t, FakeTensor) for t in inner_tensors(model))
