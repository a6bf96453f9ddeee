"""Observers, and dynamic activations, which need none."""

import copy
import math

import pytest
import torch

from optimum.quanto import (
    AbsmaxObserver,
    Calibration,
    MseObserver,
    Observer,
    PercentileObserver,
    QTensor,
    absmax_scale,
    freeze,
    qfloat8_e4m3fn,
    qfloat8_e5m2,
    qint8,
    quantization_map,
    quantize,
    quantize_activation,
    requantize,
)


ACTIVATIONS = [qint8, qfloat8_e4m3fn, qfloat8_e5m2]
OBSERVERS = {"absmax": AbsmaxObserver, "percentile": PercentileObserver, "mse": MseObserver}


def model():
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))


def samples(count=4):
    """With one outlier, which takes the full range of codes from all others."""
    found = [torch.randn(16, 64) for _ in range(count)]
    found[1][3, 5] = 60.0
    return found


def calibrated(observer, activations=qint8, weights=qint8, batches=None):
    torch.manual_seed(3)
    net = model()
    quantize(net, weights=weights, activations=activations)
    with torch.no_grad(), Calibration(observer=observer, streamline=False):
        for x in samples() if batches is None else batches:
            net(x)
    return net


class Largest(Observer):
    """A user's observer: the largest magnitude of all samples."""

    def __call__(self, sample, qtype, scale, state):
        largest = torch.maximum(sample.abs().max(), state.get("largest", torch.zeros(())))
        state["largest"] = largest
        return largest / qtype.qmax


def rounding_error(x, qtype, scale):
    return float((quantize_activation(x, qtype, scale).dequantize() - x).square().sum())


@pytest.mark.parametrize("qtype", ACTIVATIONS, ids=str)
def test_mse_has_the_least_error(qtype):
    batches = samples()
    x = torch.cat(batches)
    errors = {
        name: rounding_error(x, qtype, calibrated(name, qtype, batches=batches)[0].input_scale) for name in OBSERVERS
    }
    errors["largest"] = rounding_error(x, qtype, absmax_scale(x, qtype))
    assert errors["mse"] <= 1.05 * min(errors.values())


def test_percentile_is_that_of_all_samples():
    batches = samples()
    magnitudes = torch.cat(batches).abs().flatten().sort().values
    for percentile in (50.0, 99.0, 99.9, 100.0):
        scale = calibrated(PercentileObserver(percentile), batches=batches)[0].input_scale
        expected = magnitudes[math.ceil(percentile / 100 * len(magnitudes)) - 1]
        torch.testing.assert_close(127 * scale, expected, atol=1.01 * 64 / 2048, rtol=0)


@pytest.mark.parametrize("name", ["percentile", "mse"])
def test_histograms_do_not_depend_on_the_order_of_samples(name):
    batches = samples()
    a, b = calibrated(name, batches=batches), calibrated(name, batches=batches[::-1])
    assert torch.equal(a[0].input_scale, b[0].input_scale)
    assert torch.equal(a[0].input_observer["counts"], b[0].input_observer["counts"])
    assert int(a[0].input_observer["counts"].sum()) == 4 * 16 * 64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OBSERVERS)
def test_scales_have_the_dtype_of_the_samples(name, dtype):
    net = model().to(dtype)
    quantize(net, weights=qint8, activations=qint8)
    with torch.no_grad(), Calibration(observer=name):
        net(torch.randn(3, 64).to(dtype))
        net(torch.zeros(3, 64).to(dtype))
    assert net[0].input_scale.dtype == dtype
    assert 0 < net[0].input_scale < 1


def test_zeros_have_a_zero_scale():
    for name in OBSERVERS:
        assert calibrated(name, batches=[torch.zeros(2, 64)])[0].input_scale == 0


@pytest.mark.parametrize("observer", [*OBSERVERS, Largest])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_empty_samples_say_nothing(observer, at):
    """What an expert sees that got no token."""
    torch.manual_seed(1)
    batches = samples()
    found = calibrated(observer, batches=[*batches[:at], torch.empty(0, 64), *batches[at:]]).state_dict()
    expected = calibrated(observer, batches=batches).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert calibrated(observer, batches=[torch.empty(0, 64)])[0].input_scale == 1


def test_default_is_the_absmax_of_0_2_7_and_keeps_no_state():
    net = calibrated("absmax")
    assert torch.equal(net[0].input_scale, calibrated(AbsmaxObserver)[0].input_scale)
    assert not [key for key in net.state_dict() if "observer" in key]
    with torch.no_grad(), Calibration(momentum=0.5, observer="absmax") as calibration:
        pass
    assert calibration.observer.momentum == 0.5


@pytest.mark.parametrize("observer", [Largest, Largest()], ids=["class", "object"])
def test_an_observer_of_ones_own(observer):
    net = calibrated(observer)
    assert net[0].input_observer["largest"] == 60.0
    torch.testing.assert_close(net[0].input_scale, torch.tensor(60.0 / 127))


@pytest.mark.parametrize("observer", ["percentile", "mse", Largest])
@pytest.mark.parametrize("how", ["requantize", "load_state_dict", "deepcopy"])
def test_observer_state_survives(observer, how):
    net = calibrated(observer)
    freeze(net)
    state, qmap, other = net.state_dict(), quantization_map(net), model()
    if how == "requantize":
        requantize(other, state, qmap)
    elif how == "deepcopy":
        other = copy.deepcopy(net)
    else:
        quantize(other, weights=qint8, activations=qint8)
        other.load_state_dict(state)
    assert other.state_dict().keys() == state.keys()
    for key, t in state.items():
        assert torch.equal(other.state_dict()[key], t), key
    # Calibration goes on where it stopped.
    more = samples()
    for n in (net, other):
        with torch.no_grad(), Calibration(observer=observer, streamline=False):
            for x in more:
                n(x)
    assert torch.equal(net[0].input_scale, other[0].input_scale)
    assert not torch.equal(net[0].input_scale, torch.ones(()))


def test_a_checkpoint_without_observers_removes_their_state():
    net, plain = calibrated("mse"), calibrated("absmax")
    net.load_state_dict(plain.state_dict())
    assert net.state_dict().keys() == plain.state_dict().keys()


def test_what_is_no_observer_is_refused():
    with pytest.raises(ValueError, match="got 'entropy', expected one of absmax, mse, percentile"):
        Calibration(observer="entropy")
    with pytest.raises(TypeError, match="expected a name, an Observer or its class"):
        Calibration(observer=torch.nn.ReLU)
    with pytest.raises(ValueError, match="percentile"):
        PercentileObserver(0)
    with pytest.raises(ValueError, match="power of two"):
        MseObserver(bins=100)
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        calibrated("mse", batches=[torch.full((1, 64), float("nan"))])


WEIGHTS = ["qint8", "qint4", "qint2", "qfloat8_e4m3fn"]


def dynamic_model(weights, activations, dtype=torch.float32, frozen=True):
    torch.manual_seed(4)
    net = model().to(dtype)
    quantize(net, weights=weights, activations=activations, dynamic=True)
    if frozen:
        freeze(net)
    return net


def per_token(x, qtype):
    """Each row rounded with a scale of its own."""
    rows = [quantize_activation(row, qtype, absmax_scale(row, qtype)).dequantize() for row in x]
    return torch.stack(rows)


@pytest.mark.parametrize("activations", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_dynamic_rounds_each_token(weights, activations, dtype):
    net = dynamic_model(weights, activations, dtype)
    x = (torch.randn(5, 64) * torch.logspace(-2, 2, 5).unsqueeze(1)).to(dtype)
    hidden = torch.nn.functional.linear(
        per_token(x, activations).double(), net[0].weight.dequantize().double(), net[0].bias.double()
    )
    with torch.no_grad():
        found = net[0](x)
        assert torch.equal(net[0](x[None]), found[None])
        assert torch.equal(net[0](x[2]), net[0](x[2:3])[0])
    assert found.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    assert ((found.double() - hidden).abs().amax(1) <= tolerance * hidden.abs().amax(1) + 1e-6).all()


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_dynamic_gradients_pass_straight_through(weights, frozen):
    net = dynamic_model(weights, qint8, frozen=frozen)
    x = torch.randn(5, 64, requires_grad=True)
    upstream = torch.randn(5, 32)
    output = net[0](x)
    output.backward(upstream)
    weight = net[0].qweight.detach().dequantize()
    torch.testing.assert_close(x.grad, upstream @ weight)
    torch.testing.assert_close(net[0].bias.grad, upstream.sum(0))
    if not frozen:
        torch.testing.assert_close(net[0].weight.grad, upstream.t() @ per_token(x.detach(), qint8))
    with torch.no_grad():
        torch.testing.assert_close(net[0](x), output.detach())


@pytest.mark.parametrize("activations", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_dynamic_compiles_to_one_graph(weights, activations):
    torch._dynamo.reset()
    net, x = dynamic_model(weights, activations), torch.randn(5, 64)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), net(x))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("activations", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_dynamic_linear_layers_of_gpt2(weights, activations, frozen):
    """Their weight is that of a linear layer, transposed."""
    from transformers.pytorch_utils import Conv1D

    linear = torch.nn.Linear(64, 32)
    conv = Conv1D(32, 64)
    with torch.no_grad():
        conv.weight.copy_(linear.weight.t())
        conv.bias.copy_(linear.bias)
    nets = [torch.nn.Sequential(layer) for layer in (conv, linear)]
    for net in nets:
        quantize(net, weights=weights, activations=activations, dynamic=True)
        if frozen:
            freeze(net)
    assert quantization_map(nets[0]) == quantization_map(nets[1])
    x = torch.randn(2, 5, 64, requires_grad=True)
    assert torch.equal(nets[0](x), nets[1](x))
    found, expected = (torch.autograd.grad(net(x).square().sum(), (x, net[0].bias)) for net in nets)
    assert all(map(torch.equal, found, expected))
    reloaded = torch.nn.Sequential(Conv1D(32, 64))
    if frozen:
        requantize(reloaded, nets[0].state_dict(), quantization_map(nets[0]))
        assert torch.equal(reloaded(x), nets[1](x))


@pytest.mark.parametrize("weights", ["qint8", "qint4"])
def test_dynamic_compiles_with_inductor(weights):
    from transformers.pytorch_utils import Conv1D

    torch._dynamo.reset()
    net, x = torch.nn.Sequential(Conv1D(96, 64), torch.nn.GELU(), torch.nn.Linear(96, 8)), torch.randn(5, 64)
    quantize(net, weights=weights, activations="qint8", dynamic=True)
    freeze(net)
    with torch.no_grad():
        found = torch.compile(net, fullgraph=True)(x)
        torch.testing.assert_close(found, net(x), rtol=1e-4, atol=2e-2)  # GELU of another last bit rounds elsewhere


@pytest.mark.parametrize("weights", ["qint8", "qint4"])
def test_dynamic_survives_a_checkpoint(weights):
    net, x = dynamic_model(weights, qfloat8_e4m3fn), torch.randn(5, 64)
    qmap = quantization_map(net)
    # A version that knows nothing of it takes the model for one with quantized weights alone.
    assert qmap["0"] == {"weights": weights, "activations": "none", "dynamic": "qfloat8_e4m3fn"}
    reloaded = model()
    requantize(reloaded, net.state_dict(), qmap)
    assert quantization_map(reloaded) == qmap
    with torch.no_grad():
        assert torch.equal(reloaded(x), net(x))
        assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_dynamic_leaves_other_modules_inputs_float():
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.Flatten(), torch.nn.LayerNorm(12))
    quantize(net, weights=qint8, activations=qint8, dynamic=True)
    freeze(net)
    assert quantization_map(net) == {"0": {"weights": "qint8", "activations": "none"}}
    assert not isinstance(net(torch.randn(1, 2, 2, 2)), QTensor)


def test_dynamic_needs_no_calibration():
    net, x = dynamic_model("qint8", qint8, frozen=False), torch.randn(5, 64)
    with torch.no_grad(), Calibration():
        net(x)
    assert net[0].input_scale == 1
    with pytest.raises(ValueError, match="expected an 8-bit qtype for dynamic=True"):
        quantize(model(), weights=qint8, dynamic=True)
    with pytest.raises(ValueError, match="expected an 8-bit qtype"):
        quantize(model(), weights=qint8, activations="qint4", dynamic=True)
