"""Quantized embeddings, and tables that are tied to a linear layer."""

import copy
import io

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model

from optimum.quanto import (
    QEmbedding,
    QLinear,
    coverage,
    freeze,
    qint8,
    quantization_map,
    quantize,
    quantize_module,
    requantize,
)


class Tied(torch.nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.embed = torch.nn.Embedding(50, 160)
        self.hidden = torch.nn.Linear(160, 160)
        self.head = torch.nn.Linear(160, 50, bias=False)
        self.to(dtype)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(torch.relu(self.hidden(self.embed(ids))))


IDS = torch.tensor([[3, 49, 0], [7, 7, 12]])


def tied(weights, dtype=torch.float32, **options):
    model = Tied(dtype)
    quantize(model, weights=weights, embeddings=True, **options)
    freeze(model)
    return model


def inner(weight):
    return [t._data if hasattr(t, "_bits") else t for t in weight.inner_tensors().values()]


def shares(model):
    pairs = zip(inner(model.embed.weight), inner(model.head.weight), strict=True)
    return model.embed.weight is model.head.weight and all(a.data_ptr() == b.data_ptr() for a, b in pairs)


def test_embeddings_stay_float_unless_asked_for():
    model = Tied()
    quantize(model, weights="qint8")
    assert type(model.embed) is torch.nn.Embedding
    assert isinstance(model.head, QLinear)
    assert quantize_module(torch.nn.Embedding(4, 8), weights=qint8) is None
    assert isinstance(quantize_module(torch.nn.Embedding(4, 8), weights=qint8, embeddings=True), QEmbedding)
    with pytest.raises(ValueError, match="got a Embedding, expected a model with submodules"):
        quantize(torch.nn.Embedding(4, 8), weights=qint8, embeddings=True)


def test_rows_are_those_of_the_dequantized_table(qtype_name, dtype):
    for options in ({}, {"padding_idx": 2}):
        model = torch.nn.Sequential(torch.nn.Embedding(11, 96, **options).to(dtype))
        quantize(model, weights=qtype_name, embeddings=True)
        unfrozen = model(IDS % 11)
        freeze(model)
        layer = model[0]
        assert repr(layer) == f"QEmbedding(11, 96{', padding_idx=2' if options else ''})"
        for ids in (IDS % 11, (IDS % 11).int(), torch.tensor(4), torch.empty(0, 3, dtype=torch.long), IDS.t() % 11):
            assert torch.equal(layer(ids), layer.weight.dequantize()[ids])
        assert torch.equal(layer(IDS % 11), unfrozen)
        assert (layer.weight.dequantize()[2] == 0).all() == bool(options)
        other = torch.nn.Sequential(torch.nn.Embedding(11, 96, **options).to(dtype))
        requantize(other, model.state_dict(), quantization_map(model))
        assert torch.equal(other(IDS % 11), layer(IDS % 11))


def test_the_table_is_never_decoded_as_a_whole(qtype_name, monkeypatch):
    model = tied(qtype_name)
    monkeypatch.setattr(type(model.embed.weight), "dequantize", lambda self: pytest.fail("decodes the table"))
    with torch.no_grad():
        assert model(IDS).shape == (2, 3, 50)


def test_torch_embedding_of_a_quantized_table_decodes_the_rows_that_it_names(qtype_name, dtype, monkeypatch):
    weight = tied(qtype_name).to(dtype).embed.weight
    expected = weight.dequantize()[IDS]
    monkeypatch.setattr(type(weight), "dequantize", lambda self: pytest.fail("decodes the table"))
    assert torch.equal(torch.nn.functional.embedding(IDS, weight, padding_idx=1), expected)
    torch._dynamo.reset()
    compiled = torch.compile(torch.nn.functional.embedding, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(IDS, weight), expected)


@pytest.mark.parametrize("weights", ["qint8", "qint4"])
def test_an_index_without_a_row(weights):
    model = tied(weights)
    for bad in (-1, 50):
        with pytest.raises(IndexError, match=f"index: got {bad}, expected 0 to 49"):
            model.embed(torch.tensor([3, bad]))


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_options_without_a_quantized_form_stay_float(option):
    model = torch.nn.Sequential(torch.nn.Embedding(5, 32, **option), torch.nn.Linear(32, 64))
    quantize(model, weights="qint8", embeddings=True)
    assert type(model[0]) is torch.nn.Embedding
    assert coverage(model).rows[0].reason == f"its option {next(iter(option))} has no quantized form"


def test_a_subclass_with_a_forward_of_its_own():
    class Scaled(torch.nn.Embedding):
        def forward(self, ids):
            return super().forward(ids) * 12.0

    class Renamed(torch.nn.Embedding):
        def forward(self, input_ids):
            return super().forward(input_ids)

    model = torch.nn.Sequential(Scaled(5, 32), Renamed(5, 32))
    quantize(model, weights="qint8", embeddings=True)
    assert type(model[0]) is Scaled
    assert type(model[1]) is QEmbedding
    assert coverage(model).rows[0].reason == "its forward is not that of Embedding"


def test_gradients_reach_the_float_table():
    model = torch.nn.Sequential(torch.nn.Embedding(5, 32, padding_idx=1))
    quantize(model, weights="qint4", embeddings=True)
    model(torch.tensor([0, 1, 3, 3])).sum().backward()
    assert model[0].weight.grad.sum(1).tolist() == [32, 0, 0, 64, 0]


def test_tied_tables_share_their_bytes(qtype_name, dtype, tmp_path):
    model = tied(qtype_name, dtype)
    expected = model(IDS)
    assert isinstance(model.embed, QEmbedding)
    assert shares(model)
    report = coverage(model)
    rows = {row.name: row for row in report.rows}
    assert rows["head"].shared_with == "embed"
    assert rows["head"].bytes == 0
    assert report.float_bytes == (50 * 160 + 160 * 161) * model.embed.weight.dtype.itemsize
    assert report.bytes == sum(t.numel() * t.element_size() for t in inner(model.embed.weight)) + rows["hidden"].bytes

    copied = copy.deepcopy(model)
    assert shares(copied)
    assert inner(copied.embed.weight)[0].data_ptr() != inner(model.embed.weight)[0].data_ptr()
    assert torch.equal(copied(IDS), expected)

    buffer = io.BytesIO()
    torch.save(model, buffer)
    whole_size = buffer.tell()
    buffer.seek(0)
    assert shares(torch.load(buffer, weights_only=False))

    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    assert buffer.tell() < report.bytes + 20_000
    assert whole_size < report.bytes + 20_000
    buffer.seek(0)
    reloaded = Tied(dtype)
    requantize(reloaded, torch.load(buffer, weights_only=True), quantization_map(model))
    assert shares(reloaded)
    assert torch.equal(reloaded(IDS), expected)

    save_model(model, str(tmp_path / "model.safetensors"))
    with torch.device("meta"):
        reloaded = Tied(dtype)
    requantize(reloaded, load_file(tmp_path / "model.safetensors"), quantization_map(model))
    assert shares(reloaded)
    assert torch.equal(reloaded(IDS), expected)

    # A file may hold both copies.
    state = {name: t.clone() for name, t in model.state_dict().items()}
    parts = [name for name in state if name.startswith("embed.weight.")]
    state.update({name.replace("embed", "head"): state[name].clone() for name in parts})
    save_file(state, tmp_path / "both.safetensors")
    reloaded = Tied(dtype)
    requantize(reloaded, load_file(tmp_path / "both.safetensors"), quantization_map(model))
    assert shares(reloaded)

    for move in (lambda m: m.to("cpu"), lambda m: m.half(), lambda m: m.to(torch.bfloat16)):
        moved = move(copy.deepcopy(model))
        assert shares(moved)
        assert moved(IDS).isfinite().all()
    assert shares(copy.deepcopy(model).to("meta"))


def test_tables_that_differ_stay_apart():
    model = tied("qint8")
    state = {name: t.clone() for name, t in model.state_dict().items()}
    state["head.weight._data"] = state["embed.weight._data"] + 1
    state["head.weight._scale"] = state["embed.weight._scale"]
    reloaded = Tied()
    requantize(reloaded, state, quantization_map(model))
    assert not shares(reloaded)
    assert torch.equal(reloaded.head.weight._data, state["head.weight._data"])


def test_a_tied_pair_of_which_one_is_excluded_comes_apart():
    model = Tied()
    quantize(model, weights="qint8", embeddings=True, exclude="head")
    table = model.head.weight
    freeze(model)
    assert type(model.head) is torch.nn.Linear
    assert model.head.weight is table
    assert isinstance(model.embed, QEmbedding)


@pytest.mark.parametrize("weights", ["qint8", "qint4"])
def test_compiles_in_one_graph(weights):
    torch._dynamo.reset()
    model = tied(weights)
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(IDS), model(IDS))


def test_loading_into_a_frozen_model_keeps_the_tie():
    model, other = tied("qint4"), tied("qint4")
    for assign in (False, True):
        other.load_state_dict(model.state_dict(), assign=assign)
        assert torch.equal(other(IDS), model(IDS))
        assert assign or shares(other)
