"""Quantized convolutions over one and two dimensions."""

import copy

import pytest
import torch
from oracle import weight_and_magnitude

from optimum.quanto import (
    ActivationQBytesTensor,
    Calibration,
    QConv1d,
    QConv2d,
    coverage,
    freeze,
    ops,
    quantization_map,
    quantize,
    quantize_activation,
    requantize,
)
from optimum.quanto.ops import conv as conv_ops


FUNCTIONS = {torch.nn.Conv1d: torch.nn.functional.conv1d, torch.nn.Conv2d: torch.nn.functional.conv2d}
ROUNDOFF = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def frozen(layer, weights):
    model = torch.nn.Sequential(layer)
    quantize(model, weights=weights)
    freeze(model)
    return model


def padded(layer, x):
    """The input with the padding of any mode, in float64."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return torch.nn.functional.pad(x.double(), list(layer._reversed_padding_repeated_twice), mode)


def misfit(layer, x, y):
    """The largest error of a frozen layer in units of the oracle's bound, as `misfit_of_product` has it."""
    function = torch.nn.functional.conv1d if isinstance(layer, QConv1d) else torch.nn.functional.conv2d
    value, magnitude = weight_and_magnitude(layer.weight)
    walk = (layer.stride, 0, layer.dilation, layer.groups)
    bias = None if layer.bias is None else layer.bias.double()
    reference = function(padded(layer, x), value, bias, *walk)
    total = function(padded(layer, x).abs(), magnitude, None if bias is None else bias.abs(), *walk)
    terms = value[0].numel() + 2
    bound = terms * 2**-24 * total + 2 * ROUNDOFF[y.dtype] * reference.abs() + 2**-24
    error = (y.double() - reference).abs()
    assert y.shape == reference.shape
    return 0.0 if y.numel() == 0 else torch.where(error.isfinite(), error / bound, torch.inf).max().item()


@pytest.mark.parametrize("kind", [QConv1d, QConv2d])
def test_few_positions_run_the_kernels(qtype_name, dtype, kind):
    float_kind = kind.__bases__[1]
    shape = (2, 8, 9) if kind is QConv1d else (2, 8, 9, 9)
    model = frozen(float_kind(8, 6, 3, stride=2, padding=1).to(dtype), qtype_name)
    x = torch.randn(shape).to(dtype)
    assert type(model[0]) is kind
    with torch.no_grad():
        assert misfit(model[0], x, model(x)) <= 1
    kernel = coverage(model).rows[0].kernel.split("/")
    assert kernel[1:3] == [qtype_name, str(dtype)[6:]]
    other = torch.nn.Sequential(float_kind(8, 6, 3, stride=2, padding=1).to(dtype))
    requantize(other, model.state_dict(), quantization_map(model))
    assert torch.equal(other(x), model(x))


def test_the_kernels_run_for_as_many_positions_as_there_are_filters():
    few = frozen(torch.nn.Conv2d(8, 16, 3), "qint8")[0]
    many = frozen(torch.nn.Conv2d(8, 100, 3), "qint8")[0]
    decodes = "decodes the weight for torch's convolution"
    assert [few.kernel(positions) == decodes for positions in (64, 65)] == [False, True]
    assert [many.kernel(positions) == decodes for positions in (100, 101)] == [False, True]


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_many_positions_and_groups_run_torchs_convolution(qtype_name, dtype, groups, monkeypatch):
    monkeypatch.setattr(conv_ops, "_WITHOUT_KERNELS", frozenset())
    model = frozen(torch.nn.Conv2d(8, 16, 3, padding=1, groups=groups).to(dtype), qtype_name)
    x = torch.randn(1, 8, 9, 9).to(dtype)
    layer = model[0]
    expected = torch.nn.functional.conv2d(x, layer.weight.dequantize(), layer.bias, padding=1, groups=groups)
    assert torch.equal(model(x), expected)
    row = coverage(model).rows[0]
    assert row.kernel_many_rows == "decodes the weight for torch's convolution"
    assert (row.kernel == row.kernel_many_rows) == (groups > 1)


def test_many_positions_run_the_kernels_where_torch_has_none(qtype_name, dtype, monkeypatch):
    monkeypatch.setattr(conv_ops, "_WITHOUT_KERNELS", frozenset([dtype]))
    model = frozen(torch.nn.Conv2d(8, 16, 3, padding=1).to(dtype), qtype_name)
    with torch.no_grad():
        x = torch.randn(2, 8, 21, 19).to(dtype)
        assert misfit(model[0], x, model(x)) <= 1
    assert coverage(model).rows[0].kernel_many_rows.split("/")[1:3] == [qtype_name, str(dtype)[6:]]
    assert coverage(frozen(torch.nn.Conv2d(8, 16, 3, groups=2).to(dtype), qtype_name)).rows[0].kernel_many_rows == (
        "decodes the weight for torch's convolution"
    )


def test_kernels_of_one_tap_run_for_any_number_of_positions(monkeypatch):
    walk = conv_ops.ConvWalk((1, 1), (0, 0, 0, 0), (1, 1))
    monkeypatch.setattr(conv_ops, "active_isa", lambda: "avx2")
    assert conv_ops.runs_kernels(walk, 1 << 20, (16, 8, 1, 1), torch.float32)
    assert not conv_ops.runs_kernels(walk, 1 << 20, (16, 8, 1, 3), torch.float32)
    assert not conv_ops.runs_kernels(walk._replace(stride=(2, 2)), 1 << 20, (16, 8, 1, 1), torch.float32)
    monkeypatch.setattr(conv_ops, "active_isa", lambda: "avx512_amx")
    assert not conv_ops.runs_kernels(walk, 1 << 20, (16, 8, 1, 1), torch.float32)


def test_the_way_that_is_faster_follows_the_instruction_set(monkeypatch):
    monkeypatch.setattr(conv_ops, "_WITHOUT_KERNELS", frozenset())
    walk = conv_ops.ConvWalk((1, 1), (0, 0, 0, 0), (1, 1))
    way = {}
    for isa in (isa["name"] for isa in ops.isas() if isa["supported"]):
        ops.force_isa(isa)
        try:
            one_tap = conv_ops.runs_kernels(walk, 1 << 20, (16, 8, 1, 1), torch.float32)
            way[isa] = (one_tap, conv_ops.runs_kernels(walk, 512, (128, 8, 3, 3), torch.bfloat16))
        finally:
            ops.force_isa("")
    dots = ("avx512_bf16",)
    assert way == {isa: (isa in ("avx2", "avx512", *dots), isa in dots) for isa in way}


OPTIONS = [
    {"padding": "same"},
    {"padding": "same", "dilation": 2},
    {"padding": "valid"},
    {"padding": 2, "stride": 2},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": 2, "padding_mode": "replicate", "stride": 3},
    {"padding": 3, "padding_mode": "circular"},
    {"padding": "same", "padding_mode": "circular"},
    {"dilation": 2, "bias": False},
    {"groups": 2},
    {"groups": 6, "padding": 1},
    {"groups": 3, "padding": 1, "padding_mode": "reflect"},
]


@pytest.mark.parametrize("weights", ["qint8", "qint4", "qfloat8"])
@pytest.mark.parametrize("kind", [torch.nn.Conv1d, torch.nn.Conv2d])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))
def test_options(weights, kind, options, monkeypatch):
    model = frozen(kind(6, 12, 3, **options), weights)
    x = torch.randn((2, 6, 11) if kind is torch.nn.Conv1d else (2, 6, 7, 11))
    with torch.no_grad():
        for kernels in (False, True):
            monkeypatch.setattr(conv_ops, "runs_kernels", lambda walk, *_, k=kernels: k and walk.groups == 1)
            assert misfit(model[0], x, model(x)) <= 1


def test_kernels_of_two_sizes_of_each_kind(monkeypatch):
    monkeypatch.setattr(conv_ops, "runs_kernels", lambda *_: True)
    model = frozen(torch.nn.Conv2d(5, 7, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 3)), "qint8")
    x = torch.randn(2, 5, 9, 12)
    assert misfit(model[0], x, model(x)) <= 1
    # Blocks of positions end within images, and images within blocks.
    model = frozen(torch.nn.Conv2d(64, 5, 3, padding=1), "qint4")
    for shape in ((1, 64, 61, 67), (40, 64, 5, 7), (3, 64, 33, 41)):
        x = torch.randn(shape)
        for layout in (torch.contiguous_format, torch.channels_last):
            assert misfit(model[0], x, model(x.to(memory_format=layout))) <= 1


@pytest.mark.parametrize("size", [3, 40])
@pytest.mark.parametrize("weights", ["qint8", "qint4"])
def test_shapes_and_memory_formats(weights, size):
    model = frozen(torch.nn.Conv2d(5, 7, 3, padding=1), weights)
    x = torch.randn(2, 5, size, size)
    y = model(x)
    assert y.is_contiguous()
    last = model(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, y)
    torch.testing.assert_close(model(x[0]), y[0])
    assert model(x[:0]).shape == (0, 7, size, size)
    torch.testing.assert_close(model(x.transpose(2, 3)), model(x.transpose(2, 3).contiguous()))
    before = [t.clone() for t in model.state_dict().values()]
    model.to(memory_format=torch.channels_last)
    assert all(map(torch.equal, before, model.state_dict().values()))
    torch.testing.assert_close(model(x), y)
    channels_last = frozen(torch.nn.Conv2d(5, 7, 3, padding=1).to(memory_format=torch.channels_last), weights)
    assert misfit(channels_last[0], x, channels_last(x)) <= 1


def test_errors_are_those_of_the_shapes():
    model = frozen(torch.nn.Conv2d(5, 7, 3), "qint8")
    with pytest.raises(RuntimeError, match="expected 36 for an input of 4 channels"):
        model(torch.randn(1, 4, 8, 8))
    with pytest.raises(RuntimeError, match=r"\[conv\] input: got torch.float64, expected torch.float32"):
        model(torch.randn(1, 5, 8, 8).double())


@pytest.mark.parametrize(
    "options", [{"padding": 1}, {"padding": 1, "padding_mode": "reflect"}, {"groups": 4}], ids=str
)
@pytest.mark.parametrize("weights", ["qint8", "qint4"])
@pytest.mark.parametrize("size", [4, 20])
def test_gradients_of_frozen_layers(options, weights, size):
    layer = frozen(torch.nn.Conv2d(8, 12, 3, **options), weights)[0]
    dense = torch.nn.Conv2d(8, 12, 3, **options)
    dense.weight.data, dense.bias.data = layer.weight.dequantize(), layer.bias.data.clone()
    for shape in ((2, 8, size, size), (8, size, size)):
        x = torch.randn(shape)
        found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, reference = layer(found), dense(expected)
        upstream = torch.randn_like(y)
        results = torch.autograd.grad(y, (found, layer.bias), upstream)
        for f, e in zip(results, torch.autograd.grad(reference, (expected, dense.bias), upstream), strict=True):
            torch.testing.assert_close(f, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.nn.Conv1d, torch.nn.Conv2d])
def test_gradients_reach_the_float_weight(qtype_name, kind):
    model = torch.nn.Sequential(kind(4, 6, 3, padding=1))
    quantize(model, weights=qtype_name)
    x = torch.randn((2, 4, 5) if kind is torch.nn.Conv1d else (2, 4, 5, 5))
    model(x).square().sum().backward()
    layer = model[0]
    weight = layer.qweight.dequantize().detach().requires_grad_()
    bias = layer.bias.detach().requires_grad_()
    FUNCTIONS[kind](x, weight, bias, padding=1).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, weight.grad)
    torch.testing.assert_close(layer.bias.grad, bias.grad)


@pytest.mark.parametrize("weights", ["qint8", "qint4"])
@pytest.mark.parametrize("kind", [torch.nn.Conv1d, torch.nn.Conv2d])
def test_quantized_activations(weights, kind):
    model = torch.nn.Sequential(kind(4, 6, 3, padding=1), kind(6, 3, 3))
    x = torch.randn((2, 4, 7) if kind is torch.nn.Conv1d else (2, 4, 7, 7))
    expected = model(x)
    quantize(model, weights=weights, activations="qint8")
    with torch.no_grad(), Calibration(streamline=False):
        model(x)
    freeze(model)
    inner = model[0](x)
    assert isinstance(inner, ActivationQBytesTensor)
    codes = quantize_activation(x, model[0].activation_qtype, x.abs().max() / 127)
    torch.testing.assert_close(
        model[0].weight.conv(codes, None, model[0].walk()),
        model[0].weight.conv(codes.dequantize(), None, model[0].walk()),
    )
    assert (model(x) - expected).abs().max() < (0.1 if weights == "qint8" else 0.5)


@pytest.mark.parametrize("weights", ["qint8", "qint4"])
@pytest.mark.parametrize("size", [4, 20])
def test_compiles_in_one_graph(weights, size):
    torch._dynamo.reset()
    model = frozen(torch.nn.Conv2d(8, 12, 3, padding=1), weights)
    x = torch.randn(1, 8, size, size)
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x), model(x))
    torch._dynamo.reset()
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    compiled(found).sum().backward()
    model(expected).sum().backward()
    torch.testing.assert_close(found.grad, expected.grad)
