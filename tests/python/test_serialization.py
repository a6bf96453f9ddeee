"""What saving, loading and copying quantized models keep, and what they cost."""

import copy
import io

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch.profiler import ProfilerActivity, profile

from optimum.quanto import (
    Calibration,
    freeze,
    quantization_map,
    quantize,
    requantize,
)
from optimum.quanto.report import tensor_bytes
from optimum.quanto.ties import save_ties_once


def sequential(dtype=torch.float32, **options):
    layers = [torch.nn.Linear(512, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 256)]
    model = torch.nn.Sequential(*layers).to(dtype)
    quantize(model, **{"weights": "qint4", **options})
    freeze(model)
    return model


class Tied(torch.nn.Module):
    """A layer that stands twice, two layers with one weight, and one more."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(64, 64)
        self.again = self.first
        self.body = torch.nn.Linear(64, 64)
        self.head = torch.nn.Linear(64, 64)
        self.head.weight = self.first.weight

    def forward(self, x):
        return self.head(self.body(self.again(self.first(x))))


def tied(weights, is_frozen=True):
    model = Tied()
    quantize(model, weights=weights)
    if is_frozen:
        freeze(model)
    return model


def assert_tied(model):
    pointers = [[t.data_ptr() for t in flat(module.weight)] for module in (model.first, model.head)]
    assert pointers[0] == pointers[1]


def flat(t):
    return (
        [inner for part in t.inner_tensors().values() for inner in flat(part)] if hasattr(t, "inner_tensors") else [t]
    )


X = torch.linspace(-1, 1, 3 * 64).reshape(3, 64)


@pytest.mark.parametrize("wrapped", [False, True])
def test_tied_weights_are_saved_once(qtype_name, wrapped, tmp_path):
    def maybe_wrapped(model):
        return torch.nn.Sequential(model) if wrapped else model

    model = maybe_wrapped(tied(qtype_name))
    expected, state = model(X), model.state_dict()
    assert not [key for key in state if "head.weight" in key or "again." in key]
    save_file(state, tmp_path / "file.safetensors")
    save_model(model, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "state.pt")
    states = [
        load_file(tmp_path / "file.safetensors"),
        load_file(tmp_path / "model.safetensors"),
        torch.load(tmp_path / "state.pt", weights_only=True),
        state,
    ]
    for loaded in states:
        for assign in (False, True):
            for is_frozen in (False, True):
                other = maybe_wrapped(tied(qtype_name, is_frozen))
                assert not torch.equal(other(X), expected)
                other.load_state_dict(loaded, assign=assign)
                assert torch.equal(other(X), expected)
                inner = other[0] if wrapped else other
                if is_frozen or assign:
                    assert_tied(inner)
                    assert not [key for key in other.state_dict() if "head.weight" in key]
    other = maybe_wrapped(tied(qtype_name))
    assert load_model(other, tmp_path / "model.safetensors") == (set(), [])
    assert torch.equal(other(X), expected)


def test_tied_weights_are_requantized_and_copied(qtype_name):
    model = tied(qtype_name)
    expected = model(X)
    other = Tied()
    requantize(other, model.state_dict(), quantization_map(model))
    for one in (other, copy.deepcopy(model), copy.deepcopy(model).to("cpu"), copy.deepcopy(model).bfloat16()):
        if one.head.weight.dtype == torch.float32:
            assert torch.equal(one(X), expected)
        assert_tied(one)
        assert one.state_dict().keys() == model.state_dict().keys()


def test_a_missing_tied_weight_is_named():
    state = tied("qint8").state_dict()
    del state["first.weight._scale"]
    with pytest.raises(RuntimeError, match=r"first\.weight\._scale"):
        tied("qint8").load_state_dict(state)
    result = tied("qint8").load_state_dict(state, strict=False)
    assert "first.weight._scale" in result.missing_keys
    assert result.unexpected_keys == []


def test_loading_into_a_frozen_model_changes_its_tensors_in_place(qtype_name):
    model, other = sequential(weights=qtype_name), sequential(weights=qtype_name)
    weight, pointers = other[0].weight, [t.data_ptr() for t in flat(other[0].weight)]
    other.load_state_dict(model.state_dict())
    assert other[0].weight is weight
    assert [t.data_ptr() for t in flat(weight)] == pointers
    assert weight.equal(model[0].weight)
    other[0].weight._scale.zero_()
    assert not weight.equal(model[0].weight)


def test_weights_that_lie_in_one_piece_of_memory_are_not_tied():
    """As those of a file that is mapped."""
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32))
    quantize(model, weights="qint8")
    freeze(model)
    codes = torch.stack([layer.weight._data for layer in model])
    for layer, own in zip(model, codes, strict=True):
        layer.weight._data = own
    save_ties_once(model)
    assert {"0.weight._data", "1.weight._data"} < model.state_dict().keys()
    model[1].weight._data = codes[0]
    save_ties_once(model)
    assert "1.weight._data" not in model.state_dict()


def test_no_scale_is_saved_under_two_names(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16))
    quantize(model, weights="qint8", activations="qint8")
    with torch.no_grad(), Calibration(streamline=False):
        model(torch.randn(5, 32))
    assert model[0].output_scale == model[2].input_scale  # which adopts it
    save_file(model.state_dict(), tmp_path / "model.safetensors")  # refuses tensors that share memory


@pytest.mark.parametrize("activations", ["qint8", "qfloat8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_calibrated_state_survives(activations, dtype, tmp_path):
    layers = [
        torch.nn.Linear(32, 16),
        torch.nn.LayerNorm(16),
        torch.nn.Linear(16, 16),
        torch.nn.SiLU(),
        torch.nn.Linear(16, 4),
    ]
    model, x = torch.nn.Sequential(*copy.deepcopy(layers)).to(dtype), torch.randn(5, 32).to(dtype)
    quantize(model, weights="qint8", activations=activations)
    with torch.no_grad(), Calibration():
        model(x)
        model(2 * x)
    freeze(model)
    expected = model(x)
    quantized = [m.quantizes_output for m in model if hasattr(m, "quantizes_output")]
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    reloaded = torch.nn.Sequential(*layers).to(dtype)
    requantize(reloaded, load_file(tmp_path / "model.safetensors"), quantization_map(model))
    assert type(reloaded(x)) is type(expected)
    assert torch.equal(torch.as_tensor(dequantized(reloaded(x))), dequantized(expected))
    assert [m.quantizes_output for m in reloaded if hasattr(m, "quantizes_output")] == quantized
    assert quantization_map(reloaded) == quantization_map(model)


def dequantized(t):
    return t.dequantize() if hasattr(t, "qtype") else t


# Costs


COPYING = {
    f"aten::{name}"
    for name in (
        *("alias", "as_strided", "clone", "contiguous", "copy_", "detach", "detach_", "empty", "empty_like", "item"),
        *("empty_strided", "resize_", "set_", "to", "_to_copy", "view", "lift_fresh", "_local_scalar_dense"),
        *("new_empty", "_has_compatible_shallow_copy_type"),
    )
}


def cost(function):
    """The operators that a function runs, and the bytes that it allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    events = profiler.events()
    names = {event.name for event in events if event.name.startswith(("aten::", "quanto::"))}
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in events)
    del result
    return names, allocated


def model_bytes(model):
    return sum(tensor_bytes(t) for t in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("deepcopy", copy.deepcopy),
        ("half", lambda model: model.half()),
        ("to dtype", lambda model: model.to(torch.bfloat16)),
        ("to device", lambda model: model.to("cpu")),
        ("state dict", lambda model: model.state_dict()),
        ("load", lambda model: model.load_state_dict(model.state_dict())),
        ("assign", lambda model: model.load_state_dict(model.state_dict(), assign=True)),
        ("save", lambda model: torch.save(model.state_dict(), io.BytesIO())),
        ("save whole", lambda model: torch.save(model, io.BytesIO())),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("weights", ["qint8", "qint4", "qint2", "qfloat8"])
def test_copying_costs_no_more_than_the_bytes(name, function, weights):
    model = sequential(weights=weights)
    size = model_bytes(model)
    operators, allocated = cost(lambda: function(model))
    assert operators <= COPYING
    share = name in ("deepcopy", "half", "to dtype")
    assert allocated <= share * size + 4096
    if name == "deepcopy":
        assert allocated >= size


@pytest.mark.parametrize("weights", ["qint8", "qint4", "qint2", "qfloat8"])
def test_files_are_as_large_as_the_tensors(weights, tmp_path):
    model = sequential(weights=weights)
    for write in (
        lambda path: torch.save(model.state_dict(), path),
        lambda path: torch.save(model, path),
        lambda path: save_file(model.state_dict(), path),
    ):
        write(tmp_path / "file")
        assert model_bytes(model) <= (tmp_path / "file").stat().st_size <= model_bytes(model) + 16384


@pytest.mark.parametrize("weights", ["qint8", "qint4", "qfloat8"])
def test_keys_have_the_order_of_0_2_7(weights):
    model = torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.Linear(8, 4, bias=False))
    quantize(model, weights=weights)
    freeze(model)
    parts = ["_data._data", "_scale", "_shift"] if weights == "qint4" else ["_data", "_scale"]
    weight, scales = [f"weight.{part}" for part in parts], ["input_scale", "output_scale"]
    expected = [*(f"0.{key}" for key in [*weight, "bias", *scales]), *(f"1.{key}" for key in [*weight, *scales])]
    assert list(model.state_dict()) == expected


def _answer(model, x, answers):
    answers.put(model(x).sum().item())
    model[0].weight._scale.mul_(2)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("weights", ["qint8", "qint4"])
def test_processes_share_a_model(weights, method):
    model, x = torch.nn.Sequential(torch.nn.Linear(32, 8, bias=False)).requires_grad_(False), torch.ones(1, 32)
    quantize(model, weights=weights)
    freeze(model)
    assert not model[0].weight.is_shared()
    model.share_memory()
    assert model[0].weight.is_shared()
    context = torch.multiprocessing.get_context(method)
    answers, expected, scale = context.Queue(), model(x).sum().item(), model[0].weight._scale.clone()
    process = context.Process(target=_answer, args=(model, x, answers))
    process.start()
    assert answers.get(timeout=60) == expected
    process.join(timeout=120)
    assert torch.equal(model[0].weight._scale, 2 * scale)
