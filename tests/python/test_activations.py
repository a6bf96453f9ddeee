"""What torch's functions do to quantized activations, and calibration."""

import copy
import json

import pytest
import torch

from optimum.quanto import (
    ActivationQBytesTensor,
    Calibration,
    QLinear,
    QTensor,
    absmax_scale,
    freeze,
    qfloat8,
    qint8,
    quantization_map,
    quantize,
    quantize_activation,
    quantize_weight,
    requantize,
)


def activation(qtype=qint8, shape=(4, 6), dtype=torch.float32):
    base = torch.randn(shape).to(dtype)
    return quantize_activation(base, qtype, absmax_scale(base, qtype))


MOVES = {
    "view": lambda t: t.view(6, 4),
    "reshape": lambda t: t.reshape(2, 12),
    "transpose": lambda t: t.transpose(0, 1),
    "t": lambda t: t.t(),
    "permute": lambda t: t.permute(1, 0),
    "slice": lambda t: t[1:3],
    "select": lambda t: t[2],
    "unsqueeze": lambda t: t.unsqueeze(1),
    "expand": lambda t: t.unsqueeze(0).expand(3, 4, 6),
    "clone": lambda t: t.clone(),
    "detach": lambda t: t.detach(),
    "split": lambda t: t.split(2)[1],
}


@pytest.mark.parametrize("qtype", [qint8, qfloat8], ids=str)
@pytest.mark.parametrize("name", MOVES)
def test_moves_keep_the_codes(name, qtype):
    t = activation(qtype)
    moved = MOVES[name](t)
    assert isinstance(moved, ActivationQBytesTensor)
    assert moved.qtype is qtype
    assert torch.equal(moved.dequantize(), MOVES[name](t.dequantize()))


ON_CODES = {
    "relu": torch.relu,
    "neg": torch.neg,
    "mul": lambda t: t * 2.0,
    "rmul": lambda t: 0.5 * t,
    "div": lambda t: t / 4.0,
    "mul tensor": lambda t: t * torch.tensor(2.0),
    "cat": lambda t: torch.cat([t, t]),
    "stack": lambda t: torch.stack([t, t]),
}


@pytest.mark.parametrize("name", ON_CODES)
def test_arithmetic_on_codes(name):
    t = activation()
    result = ON_CODES[name](t)
    assert isinstance(result, ActivationQBytesTensor)
    assert torch.equal(result.dequantize(), ON_CODES[name](t.dequantize()))


FLOATS = {
    "add": lambda t: t + 1,
    "silu": torch.nn.functional.silu,
    "mul by a tensor": lambda t: t * torch.arange(6.0),
    "sum": lambda t: t.sum(),
    "layer norm": lambda t: torch.nn.functional.layer_norm(t, (6,)),
}


@pytest.mark.parametrize("qtype", [qint8, qfloat8], ids=str)
@pytest.mark.parametrize("name", FLOATS)
def test_other_functions_see_floats(name, qtype):
    t = activation(qtype)
    result = FLOATS[name](t)
    assert not isinstance(result, QTensor)
    assert torch.equal(result, FLOATS[name](t.dequantize()))


def test_softmax_has_the_scale_of_its_range():
    result = torch.softmax(activation(), -1)
    assert isinstance(result, ActivationQBytesTensor)
    assert result._scale == torch.tensor(1 / 127)


def test_codes_of_different_scales_do_not_mix():
    a, b = activation(), activation(shape=(4, 6))
    assert not isinstance(torch.cat([a, b]), QTensor)
    assert torch.equal(torch.cat([a, b]), torch.cat([a.dequantize(), b.dequantize()]))
    assert torch.equal(a < b, a.dequantize() < b.dequantize())


def test_negating_the_lowest_code_does_not_wrap():
    t = quantize_activation(torch.tensor([-2.0, 1.0]), qint8, torch.tensor(1 / 128))
    assert (t._data == -128).any()
    assert torch.equal(-t.dequantize(), (-t) if not isinstance(-t, QTensor) else (-t).dequantize())


@pytest.mark.parametrize("factor", [-2.0, 0.0, 2.0])
@pytest.mark.parametrize("qtype", [qint8, qfloat8], ids=str)
def test_codes_that_a_product_turned_around(qtype, factor):
    t = activation(qtype) * factor
    other = t[torch.tensor([1, 2, 3, 0])]
    assert isinstance(t, ActivationQBytesTensor)
    assert torch.equal(torch.relu(t).dequantize(), torch.relu(t.dequantize()))
    assert torch.equal(t < other, t.dequantize() < other.dequantize())
    expected = torch.relu(t.dequantize())
    assert torch.equal(torch.nn.functional.relu(t, inplace=True).dequantize(), expected)


def test_bmm_of_codes_is_exact():
    a, b = activation(shape=(2, 3, 2000)), activation(shape=(2, 2000, 5))
    sums = a._data.long() @ b._data.long()
    torch.testing.assert_close(torch.bmm(a, b), (sums * (a._scale * b._scale).double()).float(), rtol=1e-6, atol=0)


def operators_of(function):
    """The result of a call, and the names of the operators of this library that ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = function()
    return result, [e.name.removeprefix("quanto::") for e in profile.events() if e.name.startswith("quanto::")]


PRODUCTS_OF_CODES = {
    "mm": (lambda a, w: a @ a.t(), "qbytes_mm"),
    "bmm": (lambda a, w: torch.bmm(a.unsqueeze(0), a.t().unsqueeze(0)), "qbytes_mm"),
    "batches": (lambda a, w: a.view(1, 1, 4, 6) @ a.t().view(1, 1, 6, 4), "qbytes_mm"),
    "linear": (lambda a, w: torch.nn.functional.linear(a, w), "linear_codes_qbytes"),
    "a transposed weight": (lambda a, w: a @ w.t(), "linear_codes_qbytes"),
    "floats and a transposed weight": (lambda a, w: a.dequantize() @ w.t(), "linear_qbytes"),
}


@pytest.mark.parametrize("name", PRODUCTS_OF_CODES)
def test_products_of_codes_run_the_kernels_of_codes(name):
    function, expected = PRODUCTS_OF_CODES[name]
    base = torch.randn(5, 6)
    w = quantize_weight(base, qint8, 0, absmax_scale(base, qint8, 0))
    a = activation()
    with torch.no_grad():
        found, operators = operators_of(lambda: function(a, w))
    assert [op for op in operators if not op.startswith("dequantize")] == [expected]
    torch.testing.assert_close(found, function(a.dequantize(), w.dequantize()), rtol=1e-5, atol=1e-5)


def test_a_streamlined_model_multiplies_codes():
    net, x = model(), torch.randn(16, 64)
    quantize(net, weights=qint8, activations=qint8)
    with torch.no_grad(), Calibration():
        net(x)
    freeze(net)
    with torch.no_grad():
        _, operators = operators_of(lambda: net(x))
    # The second layer takes the codes of the first through relu; the others those that they make of floats.
    assert operators == [
        "linear_quantizing_qbytes",
        "quantize_symmetric",
        "linear_codes_qbytes",
        "linear_quantizing_qbytes",
    ]


@pytest.mark.parametrize("weights", ["qint8", "qint4", "qfloat8"])
def test_codes_of_inputs_go_to_the_product_without_a_tensor_around_them(weights):
    model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    quantize(model, weights=weights, activations=qint8)
    with torch.no_grad(), Calibration():
        model(torch.randn(8, 64))
    freeze(model)
    layer, x = model[0], torch.randn(2, 3, 64)
    layer.disable_output_quantization()
    assert not layer._forward_pre_hooks
    expected = layer(quantize_activation(x, qint8, layer.input_scale))
    assert torch.equal(layer(x), expected)
    with torch.no_grad():
        found, operators = operators_of(lambda: layer(x))
    assert torch.equal(found, expected)
    assert operators == [f"linear_quantizing_{'qbits' if weights == 'qint4' else 'qbytes'}"]
    trained = x.clone().requires_grad_()
    layer(trained).sum().backward()
    assert torch.allclose(trained.grad, layer.weight.dequantize().sum(0).expand_as(x), atol=1e-5)


def test_a_forward_of_its_own_finds_quantized_inputs():
    class Doubled(QLinear):
        def forward(self, input):
            seen.append(type(input))
            return 2 * super().forward(input)

    seen = []
    layer = Doubled(64, 32, weights=qint8, activations=qint8, quantize_input=True)
    layer.disable_output_quantization()
    layer.freeze()
    layer(torch.randn(2, 64))
    assert seen == [ActivationQBytesTensor]


def test_where_keeps_the_scale():
    t = activation()
    result = torch.where(t.dequantize() > 0, t, torch.zeros(()))
    assert isinstance(result, ActivationQBytesTensor)
    assert result._scale == t._scale


def test_gradients_pass_straight_through():
    base = torch.randn(4, 6, requires_grad=True)
    t = quantize_activation(base, qint8, absmax_scale(base.detach()))
    upstream = torch.randn(4, 6)
    (gradient,) = torch.autograd.grad(t.dequantize(), base, upstream)
    assert torch.equal(gradient, upstream)


def test_only_scalar_scales():
    with pytest.raises(ValueError, match="expected a scalar"):
        quantize_activation(torch.ones(2, 2), qint8, torch.ones(2, 1))


def model():
    return torch.nn.Sequential(
        torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.SiLU(), torch.nn.Linear(32, 8)
    )


@pytest.mark.parametrize("activations", [qint8, qfloat8], ids=str)
@pytest.mark.parametrize("weights", ["qint8", "qfloat8", "qint4"])
def test_calibrated_models_are_close(weights, activations):
    net, samples = model(), [torch.randn(16, 64) for _ in range(4)]
    with torch.no_grad():
        expected = net(samples[0])
        quantize(net, weights=weights, activations=activations)
        with Calibration():
            for x in samples:
                net(x)
        freeze(net)
        output = net(samples[0])
    found = output.dequantize() if isinstance(output, QTensor) else output
    assert net[0].input_scale != 1
    assert (found - expected).abs().max() < 0.25 * expected.abs().max()


def test_streamline_leaves_outputs_float_where_only_floats_are_wanted():
    for streamline in (True, False):
        net = model()
        quantize(net, weights=qint8, activations=qint8)
        with torch.no_grad(), Calibration(streamline=streamline):
            net(torch.randn(16, 64))
        quantizes = ["output" in net[i]._quantize_hooks for i in (0, 2, 4)]
        # relu has a quantized form, silu has none, and nothing consumes the last output.
        assert quantizes == ([True, False, False] if streamline else [True, True, True])


def test_momentum():
    net = torch.nn.Sequential(torch.nn.Linear(4, 4))
    quantize(net, weights=qint8, activations=qint8)
    with torch.no_grad(), Calibration(momentum=0.75):
        net(torch.full((1, 4), 2.0))
        net(torch.full((1, 4), 6.0))
    torch.testing.assert_close(net[0].input_scale, torch.tensor((0.75 * 2 + 0.25 * 6) / 127))


def _plain(t):
    return t.dequantize() if isinstance(t, QTensor) else t


@pytest.mark.parametrize("streamline", [True, False])
@pytest.mark.parametrize("weights", ["qint8", "qint4"])
def test_a_calibrated_model_survives_copies_and_checkpoints(weights, streamline):
    net, x = model(), torch.randn(16, 64)
    quantize(net, weights=weights, activations=qint8)
    with torch.no_grad(), Calibration(streamline=streamline):
        net(x)
    freeze(net)
    expected = net(x)
    assert torch.equal(_plain(copy.deepcopy(net)(x)), _plain(expected))
    reloaded, qmap = model(), quantization_map(net)
    requantize(reloaded, net.state_dict(), json.loads(json.dumps(qmap)))
    found = reloaded(x)
    assert type(found) is type(expected)
    assert torch.equal(_plain(found), _plain(expected))
    assert quantization_map(reloaded) == qmap
    # Which outputs stay float is said only where it differs from what earlier versions do with such a map.
    assert [name for name, entry in qmap.items() if "outputs" in entry] == (["2", "4"] if streamline else [])


def test_a_copy_has_hooks_of_its_own():
    net = model()
    quantize(net, weights=qint8, activations=qint8)
    other = copy.deepcopy(net)
    other[0].disable_output_quantization()
    assert net[0].quantizes_output
    assert not other[0].quantizes_output
    assert (len(net[0]._forward_hooks), len(other[0]._forward_hooks)) == (1, 0)


@pytest.mark.parametrize("streamline", [True, False])
def test_calibration_removes_its_hooks(streamline):
    net = model()
    quantize(net, weights=qint8, activations=qint8)
    before = [len(m._forward_hooks) for m in net.modules()]
    with pytest.raises(RuntimeError), Calibration(streamline=streamline):
        net(torch.randn(2, 63))
    assert [len(m._forward_hooks) for m in net.modules()] == before
    assert not torch.nn.modules.module._global_forward_hooks
    scale = net[0].input_scale.clone()
    net(1000 * torch.randn(2, 64))
    assert torch.equal(net[0].input_scale, scale)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_samples_without_finite_values_are_refused(value):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    quantize(model, weights=qint8, activations=qint8)
    sample = torch.ones(2, 8)
    with Calibration():
        model(sample)
        before = model[0].input_scale
        sample[1, 3] = value
        with pytest.raises(ValueError, match=r"\[Calibration\] input of 0: got NaN or infinite values"):
            model(sample)
    assert model[0].input_scale is before


def test_calibration_can_tell_what_it_does(capsys):
    net = model()
    quantize(net, weights=qint8, activations=qint8)
    with torch.no_grad(), Calibration(debug=True):
        net(torch.randn(2, 64))
    assert "0(QLinear): activations are quanto.qint8 with scale" in capsys.readouterr().out


def test_other_activations_than_the_module_wants_are_refused():
    net = torch.nn.Sequential(torch.nn.Linear(6, 4))
    quantize(net, weights=qint8, activations=qint8)
    with pytest.raises(ValueError, match="got qfloat8_e4m3fn activations, expected qint8"):
        net(activation(qfloat8))
