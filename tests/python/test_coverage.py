"""The report of what became of each module."""

import pytest
import torch

from optimum.quanto import coverage, freeze, ops, quantize


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


def test_reasons(model):
    rows = rows_of(model)
    assert {name: row.reason for name, row in rows.items()} == {
        "embedding": "no quantized counterpart",
        "first": "not frozen: quantizes on every forward",
        "norm": "no quantized counterpart",
        "second": "excluded",
        "conv": "not frozen: quantizes on every forward",
    }
    assert not any(row.quantized or row.kernel for row in rows.values())
    freeze(model)
    rows = rows_of(model)
    assert [name for name, row in rows.items() if row.quantized] == ["first", "conv"]
    assert rows["first"].reason == rows["conv"].reason == ""
    assert rows["conv"].kernel == "slow: decodes the weight on every forward"
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
    assert text.splitlines()[0].split() == ["module", "class", "weights", "MB", "kernel", "or", "reason"]
    assert "100.0% of the parameters are float" in text
    assert "warning: most parameters are float" in text
    freeze(model)
    assert "warning" not in str(coverage(model))
    assert str(coverage(torch.nn.ReLU())).splitlines()[-1] == "0.000 MB; 0.0% of the parameters are float"


def test_shared_tensors_count_once():
    net = torch.nn.Sequential(torch.nn.Embedding(7, 8), torch.nn.Linear(8, 7, bias=False))
    net[1].weight = net[0].weight
    report = coverage(net)
    assert [row.name for row in report.rows] == ["0"]
    assert report.bytes == 7 * 8 * 4
