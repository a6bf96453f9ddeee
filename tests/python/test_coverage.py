"""The report of what became of each module."""

import json
import warnings

import pytest
import torch

from optimum.quanto import coverage, freeze, ops, qint8, quantize, quantize_weight


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 160)
        self.first = torch.nn.Linear(160, 48)
        self.norm = torch.nn.LayerNorm(48)
        self.second = torch.nn.Linear(48, 9, bias=False)
        self.conv = torch.nn.Conv2d(1, 4, 3)
        self.to(torch.bfloat16)


@pytest.fixture
def model():
    net = Model()
    quantize(net, weights="qint4", exclude="second")
    return net


def rows_of(net):
    return {row.name: row for row in coverage(net).rows}


def test_reasons(model, monkeypatch):
    monkeypatch.setattr(ops.conv, "_WITHOUT_KERNELS", frozenset())
    rows = rows_of(model)
    assert {name: row.reason for name, row in rows.items()} == {
        "embedding": "quantized only with embeddings=True",
        "first": "not frozen: quantizes on every forward",
        "norm": "its weight is not quantized, only its activations are",
        "second": "excluded by 'second'",
        "conv": "not frozen: quantizes on every forward",
    }
    assert not any(row.quantized or row.kernel for row in rows.values())
    freeze(model)
    rows = rows_of(model)
    assert [name for name, row in rows.items() if row.quantized] == ["first", "conv"]
    assert rows["first"].reason == rows["conv"].reason == ""
    assert rows["conv"].kernel.split("/")[1:3] == ["qint4", "bfloat16"]
    assert rows["conv"].kernel_many_rows == "decodes the weight for torch's convolution"
    assert [rows[name].weights for name in ("first", "norm", "conv")] == ["qint4", "bfloat16", "qint4"]
    assert [rows[name].kind for name in ("first", "second")] == ["QLinear", "Linear"]


@pytest.mark.parametrize("isa", [isa["name"] for isa in ops.isas() if isa["supported"]])
def test_kernels_are_those_of_the_active_instruction_set(model, isa):
    freeze(model)
    ops.force_isa(isa)
    try:
        kernel = rows_of(model)["first"].kernel
    finally:
        ops.force_isa("")
    assert kernel.split("/")[1:3] == ["qint4", "bfloat16"]
    assert kernel.split("/")[0] in {entry["name"] for entry in ops.isas() if entry["supported"]}
    if isa == "portable":
        assert kernel.startswith("portable/")


def test_bytes_and_shares(model):
    freeze(model)
    rows, report = rows_of(model), coverage(model)
    # 160 inputs make 5 groups of 32: half a byte for a code, two bytes each for scale, shift and bias.
    assert rows["first"].bytes == 48 * 160 // 2 + 2 * 2 * 48 * 5 + 2 * 48
    assert rows["first"].elements == 48 * 160 + 48
    assert rows["second"].bytes == 2 * 48 * 9
    assert report.bytes == sum(row.bytes for row in report.rows)
    floats = 10 * 160 + 2 * 48 + 48 * 9
    assert report.float_share == floats / (floats + 48 * 160 + 48 + 4 * 9 + 4)


def test_the_table(model):
    text = str(coverage(model))
    header = ["module", "class", "weights", "activations", "MB", "kernel", "or", "reason"]
    assert text.splitlines()[0].split() == header
    assert "100.0% of the parameters are float" in text
    assert "warning: most parameters are float" in text
    freeze(model)
    assert "warning" not in str(coverage(model))
    last = str(coverage(torch.nn.ReLU())).splitlines()[-1]
    assert last == "0.000 MB, 0.000 MB as floats; 0.0% of the parameters are float"


@pytest.mark.parametrize("isa", [isa["name"] for isa in ops.isas() if isa["supported"]])
def test_kernels_of_all_numbers_of_rows(model, isa, monkeypatch):
    monkeypatch.setattr(ops.conv, "_WITHOUT_KERNELS", frozenset())
    freeze(model)
    ops.force_isa(isa)
    try:
        for name in ("first", "conv"):
            kernels = [model.get_submodule(name).kernel(rows) for rows in range(1, 513)]
            seams = [rows for rows in range(1, 513) if rows == 1 or kernels[rows - 1] != kernels[rows - 2]]
            row = rows_of(model)[name]
            assert row.kernels == tuple((rows, kernels[rows - 1]) for rows in seams)
            assert row.remark.count("; from ") == len(seams) - 1
    finally:
        ops.force_isa("")


def test_shared_tensors_count_once():
    net = torch.nn.Sequential(torch.nn.Embedding(7, 8), torch.nn.Linear(8, 7, bias=False))
    net[1].weight = net[0].weight
    report = coverage(net)
    assert [(row.name, row.bytes, row.shared_with) for row in report.rows] == [("0", 7 * 8 * 4, ""), ("1", 0, "0")]
    assert report.bytes == report.float_bytes == 7 * 8 * 4
    assert "shares the bytes of 0" in str(report)


def test_data_that_json_takes(model):
    freeze(model)
    data = json.loads(json.dumps(coverage(model).to_dict()))
    assert data["bytes"] == coverage(model).bytes
    assert data["float_bytes"] == 2 * sum(p.numel() for p in Model().parameters())
    row = {row["name"]: row for row in data["rows"]}["first"]
    assert (row["kind"], row["weights"], row["activations"], row["quantized"]) == ("QLinear", "qint4", "none", True)
    assert row["kernel"].split("/")[3] != row["kernel_many_rows"].split("/")[3]
    assert [row["kernels"][0], row["kernels"][-1][1]] == [[1, row["kernel"]], row["kernel_many_rows"]]
    assert row["float_bytes"] == 2 * (160 * 48 + 48)


def test_what_has_no_kernel_says_so(model):
    quantize(model, weights="qint8", activations="qint8", exclude="second", embeddings=True)
    freeze(model)
    rows = rows_of(model)
    assert rows["embedding"].kernel == "rows decoded by index"
    assert rows["norm"].activations == "qint8"
    assert rows["norm"].reason == "its weight is not quantized, only its activations are"
    model.to("meta")
    assert rows_of(model)["first"].kernel == "composition of torch operators on meta"
    odd = torch.nn.Sequential(torch.nn.Linear(64, 32))
    quantize(odd, weights="qint8")
    scale = torch.ones(1, 64)
    odd[0].weight = torch.nn.Parameter(quantize_weight(odd[0].weight, qint8, -1, scale), requires_grad=False)
    assert coverage(odd).rows[0].kernel == "slow: decodes the weight on every forward"


def test_freeze_warns_once_when_most_parameters_stay_float():
    def net():
        return torch.nn.Sequential(torch.nn.Embedding(100, 64), torch.nn.Linear(64, 64))

    model = net()
    quantize(model, weights="qint8")
    with pytest.warns(UserWarning, match=r"6\d% of the parameters stay float; the largest are those of 0 \(Embedding"):
        freeze(model)
    quiet = [net(), net(), torch.nn.Sequential(torch.nn.Linear(64, 64))]
    quantize(quiet[0], weights="qint8", embeddings=True)
    quantize(quiet[1], weights="qint8", exclude="0")  # wanted
    quantize(quiet[2], weights="qint8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in quiet:
            freeze(other)
        freeze(model)  # nothing was left to freeze


def test_patterns_are_named():
    model = Model()
    quantize(model, weights="qint8", include=["fir*", "conv"])
    rows = rows_of(model)
    assert rows["second"].reason == "not included by 'fir*', 'conv'"
    assert rows["second"].excluded
    quantize(model, weights="qint8")
    assert rows_of(model)["second"].reason == "not frozen: quantizes on every forward"
