import copy
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracle import misfit
from own_process import in_a_process_of_its_own
from safetensors.torch import load_file, save_file

import optimum.quanto
from optimum.quanto import (
    AbsmaxOptimizer,
    MaxOptimizer,
    QLayerNorm,
    QLinear,
    QModuleMixin,
    coverage,
    freeze,
    qint4,
    qint8,
    quantization_map,
    quantize,
    quantize_module,
    register_qmodule,
    requantize,
)


class Model(torch.nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.first = torch.nn.Linear(160, 48)
        self.norm = torch.nn.LayerNorm(48)
        self.second = torch.nn.Linear(48, 9, bias=False)
        self.to(dtype)

    def forward(self, x):
        return self.second(self.norm(torch.relu(self.first(x))))


def frozen(weights, dtype=torch.float32):
    model = Model(dtype)
    quantize(model, weights=weights)
    freeze(model)
    return model


def sample(dtype=torch.float32):
    return torch.randn(2, 3, 160, dtype=dtype)


def test_quantized_model_is_close_and_small(qtype_name, dtype):
    model, x = Model(dtype), sample(dtype)
    with torch.no_grad():
        expected = model(x)
        float_bytes = coverage(model).bytes
        quantize(model, weights=qtype_name)
        unfrozen = model(x)
        freeze(model)
        assert torch.equal(model(x), unfrozen)
    assert isinstance(model.first, QLinear)
    assert isinstance(model.norm, torch.nn.LayerNorm)
    tolerance = {"qint8": 0.05, "qint4": 0.4, "qint2": 2.0}.get(qtype_name, 0.4)
    assert (unfrozen - expected).abs().max() < tolerance
    assert coverage(model).bytes < float_bytes * (0.7 if dtype != torch.float32 else 0.4)


@pytest.mark.parametrize("name", ["qint8", "int8", qint8])
def test_names_with_and_without_q(name):
    model = Model()
    quantize(model, weights=name)
    assert model.first.weight_qtype is qint8


def test_group_sizes_step_down_until_they_divide():
    for in_features, expected in ((128, None), (256, 128), (192, 96), (160, 32), (136, None), (100, None)):
        layer = quantize_module(torch.nn.Linear(in_features, 4), weights=qint4)
        assert layer.weight_group_size == expected, in_features


def test_include_and_exclude():
    model = Model()
    quantize(model, weights=qint8, include="fir*")
    assert isinstance(model.first, QLinear)
    assert not isinstance(model.second, QLinear)
    quantize(model, weights=qint4, exclude=["first"])
    assert model.first.weight_qtype is qint8
    assert model.second.weight_qtype is qint4


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"weights": "int3"}, ValueError, "weights: got 'int3', expected one of"),
        ({"weights": torch.int8}, TypeError, "weights: got dtype"),
        ({"weights": qint8, "activations": "int4"}, ValueError, "activations: got qint4, expected an 8-bit qtype"),
        ({"weights": qint8, "include": [3]}, TypeError, "include"),
        ({"weights": qint8, "exclude": 3}, TypeError, "exclude: got 3, expected a pattern"),
        (
            {"weights": "qint4", "optimizer": AbsmaxOptimizer()},
            ValueError,
            "got AbsmaxOptimizer, expected one of AffineOptimizer for qint4",
        ),
        (
            {"weights": "qint8", "optimizer": MaxOptimizer()},
            ValueError,
            "got MaxOptimizer, expected one of SymmetricOptimizer for qint8",
        ),
        ({"weights": "qint4", "optimizer": "hqq"}, TypeError, "optimizer: got 'hqq', expected an Optimizer or None"),
    ],
)
def test_an_error_leaves_the_model_as_it_was(arguments, kind, message):
    model = Model()
    with pytest.raises(kind, match=message):
        quantize(model, **arguments)
    assert type(model.first) is torch.nn.Linear
    assert type(model.second) is torch.nn.Linear


def test_a_single_layer_is_not_a_model():
    with pytest.raises(ValueError, match="use quantize_module"):
        quantize(torch.nn.Linear(3, 3), weights=qint8)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_freeze_names_the_module_with_a_non_finite_weight(value):
    model = Model()
    quantize(model, weights=qint4)
    with torch.no_grad():
        model.second.weight[3, 5] = value
    with pytest.raises(ValueError, match="weight of second: got NaN or infinite"):
        freeze(model)
    assert not model.first.frozen
    freeze(model, allow_non_finite=True)
    assert model.second.frozen


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_freeze_names_the_module_that_it_cannot_quantize_and_freezes_none():
    model = Model()
    model.second = torch.nn.Linear(0, 9)
    quantize(model, weights=qint4)
    source = model.first.weight
    with pytest.raises(ValueError, match=r"weight of second: \[minmax_scale\] base: got shape \(9, 0\)"):
        freeze(model)
    assert model.first.weight is source
    assert not model.first.frozen


class Wrong(MaxOptimizer):
    """Finds scales for the first of two layers only."""

    def optimize(self, base, qtype, axis):
        scale, shift = super().optimize(base, qtype, axis)
        return (scale, shift) if base.numel() > 1000 else (scale[:2], shift)


def test_freeze_freezes_none_if_an_optimizer_finds_no_scales():
    model = Model()
    quantize(model, weights=qint4, optimizer=Wrong())
    source = model.first.weight
    with pytest.raises(ValueError, match=r"\[Wrong\] scale, shift: got shapes \(2, 1\) and \(9, 1\)"):
        freeze(model)
    assert model.first.weight is source


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("weights", ["qint8", "qint4"])
def test_freezing_needs_no_memory_besides_the_float_model(weights):
    in_a_process_of_its_own(check_the_memory_of_freezing, weights)


def check_the_memory_of_freezing(weights):
    def megabytes(field):
        status = Path("/proc/self/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+) kB", status).group(1)) / 1024

    for features in (64, 2048):  # the first one for what is allocated only once
        model = torch.nn.Sequential(*(torch.nn.Linear(features, features) for _ in range(12)))  # 192 MB
        quantize(model, weights=weights)
        if features == 64:
            freeze(model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = megabytes("VmRSS")
    freeze(model)
    assert megabytes("VmHWM") < before + 12  # the codes of one layer and the scales; those of all are 24 or 48 MB
    assert megabytes("VmRSS") < before - 100


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    ("in_features", "out_features"), [(4, 0), (1, 1), (1, 5), (5, 1), (128, 1), (256, 1), (256, 3), (257, 2)]
)
def test_odd_sizes(qtype_name, in_features, out_features):
    model, x = torch.nn.Sequential(torch.nn.Linear(in_features, out_features)), torch.randn(2, in_features)
    quantize(model, weights=qtype_name)
    freeze(model)
    assert misfit(x, model[0].weight, model[0].bias, model(x)) <= 1
    assert copy.deepcopy(model)(x).shape == model(torch.randn(0, 2, in_features)).shape[1:] == (2, out_features)
    other = torch.nn.Sequential(torch.nn.Linear(in_features, out_features))
    requantize(other, model.state_dict(), quantization_map(model))
    assert torch.equal(other(x), model(x))


def test_shared_modules_and_tied_weights_stay_shared():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(32, 32)
            self.b = self.a
            self.c = torch.nn.Linear(32, 32)
            self.c.weight = self.a.weight

    model = Tied()
    quantize(model, weights=qint8)
    assert model.a is model.b
    assert model.a.weight is model.c.weight
    freeze(model)
    assert model.a.weight is model.c.weight
    assert model.a.frozen


def test_mode_and_hooks_of_training():
    model = Model().eval()
    quantize(model, weights=qint8)
    assert not model.first.training


def test_gradients_reach_the_float_weight(qtype_name):
    model = Model()
    quantize(model, weights=qtype_name)
    model(sample()).square().sum().backward()
    for layer in (model.first, model.second):
        assert layer.weight.grad is not None
        assert layer.weight.grad.isfinite().all()
        assert layer.weight.grad.abs().sum() > 0


def test_frozen_models_pass_gradients_to_their_inputs(qtype_name):
    model = frozen(qtype_name)
    x = sample().requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None
    assert model.first.bias.grad is not None
    assert not model.first.weight.requires_grad


def test_state_dict_round_trips(qtype_name, dtype, tmp_path):
    model, x = frozen(qtype_name, dtype), sample(dtype)
    expected = model(x)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    states = [load_file(tmp_path / "model.safetensors"), torch.load(buffer, weights_only=True)]
    for state in states:
        into_float = Model(dtype)
        requantize(into_float, state, quantization_map(model))
        assert torch.equal(into_float(x), expected)
        into_unfrozen = Model(dtype)
        quantize(into_unfrozen, weights=qtype_name)
        into_unfrozen.load_state_dict(state)
        assert torch.equal(into_unfrozen(x), expected)
        into_frozen = frozen(qtype_name, dtype)
        into_frozen.load_state_dict(state, assign=True)
        assert torch.equal(into_frozen(x), expected)
    with torch.device("meta"):
        on_meta = Model(dtype)
    requantize(on_meta, states[0], quantization_map(model))
    assert torch.equal(on_meta(x), expected)


def test_loading_copies():
    model, other = frozen("qint8"), frozen("qint8")
    other.load_state_dict(model.state_dict())
    other.first.weight._scale.zero_()
    assert model.first.weight._scale.abs().sum() > 0


@pytest.mark.parametrize("weights", ["qint8", "qint4"])
@pytest.mark.parametrize("strict", [True, False])
def test_loading_names_what_does_not_fit(weights, strict):
    state = frozen(weights).state_dict()
    key = "first.weight._scale"

    missing = {k: v for k, v in state.items() if k != key}
    if strict:
        with pytest.raises(RuntimeError, match=rf"Missing key.*{key}"):
            frozen(weights).load_state_dict(missing)
    else:
        assert key in frozen(weights).load_state_dict(missing, strict=False).missing_keys

    extra = {**state, "first.weight._zero": torch.zeros(1)}
    if strict:
        with pytest.raises(RuntimeError, match=r"Unexpected key.*first\.weight\._zero"):
            frozen(weights).load_state_dict(extra)
    else:
        assert frozen(weights).load_state_dict(extra, strict=False).unexpected_keys == ["first.weight._zero"]

    misshapen = {**state, key: state[key][:3]}
    with pytest.raises(RuntimeError, match=rf"{key}: got shape \(3, 1\), expected"):
        frozen(weights).load_state_dict(misshapen, strict=strict)


@pytest.mark.parametrize("weights", ["qint8", "qint4"])
def test_the_parts_that_are_there_are_not_unexpected(weights):
    state = frozen(weights).state_dict()
    del state["first.weight._scale"]
    result = frozen(weights).load_state_dict(state, strict=False)
    assert result.missing_keys == ["first.weight._scale"]
    assert result.unexpected_keys == []


def test_a_checkpoint_of_another_qtype_is_refused():
    with pytest.raises(RuntimeError, match=r"first\.weight\._data: got torch\.int8, expected torch\.float8_e4m3fn"):
        frozen("qfloat8").load_state_dict(frozen("qint8").state_dict())
    with pytest.raises(RuntimeError, match=r"first\.weight\._data\._data"):
        frozen("qint4").load_state_dict(frozen("qint2").state_dict())


@pytest.mark.parametrize("weights", ["qint8", "qint4"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.float64, torch.uint8])
def test_scales_of_a_checkpoint_are_floats_of_the_kernels(weights, dtype):
    state = frozen(weights).state_dict()
    key = "first.weight._scale"
    state[key] = state[key].to(dtype)
    with pytest.raises(RuntimeError, match=rf"{key}: got {dtype}, expected torch\.float32 or"):
        frozen(weights).load_state_dict(state)
    with pytest.raises(RuntimeError, match=rf"{key}: got {dtype}, expected torch\.float32 or"):
        requantize(Model(), state, quantization_map(frozen(weights)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_zero_points_of_a_checkpoint(dtype):
    state = frozen("qint4").state_dict()
    state["first.weight._shift"] = torch.full(state["first.weight._shift"].shape, 3, dtype=dtype)
    model = frozen("qint4")
    model.load_state_dict(state)
    weight = model.first.weight
    expected = weight._scale * (weight._data.unpack() - 3.0)
    assert torch.equal(weight.dequantize().reshape(expected.shape), expected)


def test_requantize_names_what_does_not_fit():
    model = frozen("qint8")
    state, qmap = model.state_dict(), quantization_map(model)
    missing = {k: v for k, v in state.items() if k != "second.weight._data"}
    with pytest.raises(RuntimeError, match=r"missing: second\.weight\._data"):
        requantize(Model(), missing, qmap)
    with pytest.raises(RuntimeError, match=r"unexpected: third\.weight"):
        requantize(Model(), {**state, "third.weight": torch.ones(1)}, qmap)
    with pytest.raises(ValueError, match="got module 'third'"):
        requantize(Model(), state, {**qmap, "third": {"weights": "qint8", "activations": "none"}})
    with pytest.raises(ValueError, match="got module 'norm', a LayerNorm"):
        requantize(Model(), state, {**qmap, "norm": {"weights": "qint8", "activations": "none"}})
    with pytest.raises(ValueError, match="got 'qint9'"):
        requantize(Model(), state, {**qmap, "first": {"weights": "qint9", "activations": "none"}})


def test_deepcopy_of_a_frozen_model(qtype_name):
    model, x = frozen(qtype_name), sample()
    other = copy.deepcopy(model)
    assert torch.equal(other(x), model(x))
    other.first.weight._scale.zero_()
    assert not torch.equal(other(x), model(x))


def test_moving_a_frozen_model_between_dtypes(qtype_name):
    model = frozen(qtype_name)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        model.to(dtype)
        assert model.first.frozen
        assert model(sample(dtype)).dtype == dtype


def test_whole_models_can_be_pickled(qtype_name):
    model, x, buffer = frozen(qtype_name), sample(), io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert torch.equal(loaded(x), model(x))
    assert [isinstance(p, torch.nn.Parameter) for p in loaded.parameters()] == [True] * len(list(model.parameters()))


def test_layer_norm_is_quantized_for_activations_only():
    assert quantize_module(torch.nn.LayerNorm(4), weights=qint8) is None
    assert isinstance(quantize_module(torch.nn.LayerNorm(4), weights=qint8, activations=qint8), QLayerNorm)


def test_users_own_modules():
    class Scaled(torch.nn.Linear):
        pass

    @register_qmodule(Scaled)
    class QScaled(QModuleMixin, Scaled):
        @classmethod
        def qcreate(cls, module, weights, activations=None, optimizer=None, device=None):
            return cls(
                module.in_features, module.out_features, weights=weights, activations=activations, device=device
            )

        def forward(self, x):
            return 2 * torch.nn.functional.linear(x, self.qweight, self.bias)

    try:
        from optimum.quanto.nn import qmodule

        # The most specific class wins, however late it is registered.
        layer = quantize_module(Scaled(32, 4), weights=qint8)
        assert isinstance(layer, QScaled)
    finally:
        qmodule._QMODULE_TABLE.pop(Scaled)


def test_the_mixin_must_come_first():
    class Wrong(torch.nn.Linear, QModuleMixin):
        def __init__(self):
            QModuleMixin.__init__(self)

    with pytest.raises(TypeError, match="expected QModuleMixin before"):
        Wrong()


def test_given_optimizer_is_used():
    class Half(MaxOptimizer):
        def optimize(self, base, qtype, axis):
            scale, shift = super().optimize(base, qtype, axis)
            return scale / 2, shift

    model, other = Model(), None
    other = copy.deepcopy(model)
    quantize(model, weights=qint4, optimizer=Half())
    quantize(other, weights=qint4)
    freeze(model)
    freeze(other)
    assert torch.equal(model.first.weight._scale * 2, other.first.weight._scale)


class Narrow(MaxOptimizer):
    """Clamps the outer half."""

    def optimize(self, base, qtype, axis):
        scale, shift = super().optimize(base, qtype, axis)
        return scale / 2, shift / 2


def test_a_tied_weight_with_two_searches_comes_apart():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    model[1].weight = model[0].weight
    alone = copy.deepcopy(model)
    quantize(model, weights="qint4", include="0")
    quantize(model, weights="qint4", include="1", optimizer=Narrow())
    freeze(model)
    quantize(alone, weights="qint4", optimizer=Narrow())
    freeze(alone)
    assert alone[0].weight is alone[1].weight
    assert torch.equal(model[1].weight, alone[1].weight)
    assert not torch.equal(model[0].weight, model[1].weight)


def test_the_package_is_lazy_and_complete():
    code = "import sys, optimum.quanto; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    for name in optimum.quanto.__all__:
        assert getattr(optimum.quanto, name) is not None
    assert optimum.quanto.__version__ == "1.0.0"
    namespace = {}
    exec("from optimum.quanto import *", namespace)
    assert set(optimum.quanto.__all__) <= set(namespace)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = optimum.quanto.no_such_name


def test_import_paths_of_earlier_versions():
    from optimum.quanto.library.extensions import is_extension_available
    from optimum.quanto.nn import QLinear as from_nn
    from optimum.quanto.tensor.packed import PackedTensor
    from optimum.quanto.tensor.qtype import qint2
    from optimum.quanto.tensor.weights.qbytes import WeightQBytesTensor

    assert from_nn is QLinear
    assert is_extension_available("quanto_cpp")
    assert not is_extension_available("quanto_cuda")
    assert PackedTensor
    assert qint2
    assert WeightQBytesTensor


def test_requantize_that_fails_leaves_buffers_as_they_were():
    def layers():
        return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))

    source, model = layers(), layers()
    quantize(source, weights="qint8")
    freeze(source)
    before = dict(model.named_buffers())
    state = {**source.state_dict(), "1.running_mean": torch.ones(8), "extra": torch.ones(1)}
    with pytest.raises(RuntimeError, match="unexpected: extra"):
        requantize(model, state, quantization_map(source))
    assert all(buffer is before[name] for name, buffer in model.named_buffers())
    assert not model[1].running_mean.any()


def test_requantize_that_fails_leaves_the_model_as_it_was():
    state, qmap = frozen("qint4").state_dict(), quantization_map(frozen("qint4"))
    model, x = Model(), sample()
    expected, before = model(x), {name: id(p) for name, p in model.named_parameters()}
    for bad in ({k: v for k, v in state.items() if k != "second.weight._scale"}, {**state, "extra": torch.ones(1)}):
        with pytest.raises(RuntimeError):
            requantize(model, bad, qmap)
        assert type(model.first) is torch.nn.Linear
        assert {name: id(p) for name, p in model.named_parameters()} == before
        assert torch.equal(model(x), expected)


_RESIDENT_SET = """
import sys, torch
from optimum.quanto import coverage, freeze, quantize

def resident():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024

def frozen(layers):
    model = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024, bias=False) for _ in range(layers)])
    quantize(model, weights="qint4")
    freeze(model)
    return model

frozen(1)(torch.zeros(1, 1024))
before = resident()
model = frozen(40)
print(resident() - before, coverage(model).bytes)
"""


def test_a_frozen_model_holds_its_bytes_and_nothing_else():
    found = subprocess.run([sys.executable, "-c", _RESIDENT_SET], check=True, capture_output=True, text=True)
    grown, held = map(int, found.stdout.split())
    assert held < 25e6
    assert grown < held + 8e6


@pytest.mark.parametrize("function", [quantize, freeze, coverage, quantization_map, lambda m: requantize(m, {}, {})])
def test_what_is_no_module_is_refused(function):
    with pytest.raises(TypeError, match=r"model: got a NoneType, expected a torch\.nn\.Module"):
        function(None)


def test_weights_of_float64_are_refused_by_name():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8).double())
    quantize(model, weights=qint8)
    with pytest.raises(ValueError, match=r"weight of 1 \(torch\.float64\): expected torch\.float32"):
        freeze(model)
    assert not model[0].frozen
