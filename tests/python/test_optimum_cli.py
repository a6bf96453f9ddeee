"""`optimum-cli quanto quantize`, through the console script of the `optimum` distribution."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_0_2_7 import IDS, llama

from optimum.quanto import QuantizedModelForCausalLM, qint4, quantization_map


def optimum_cli(*arguments):
    command = [Path(sys.executable).parent / "optimum-cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    llama().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "options", [[], ["--task", "text-generation", "--torch_dtype", "bf16", "--library", "transformers"]]
)
def test_quantize(checkpoint, options, tmp_path):
    result = optimum_cli("quanto", "quantize", "--model", checkpoint, "--weights", "int4", tmp_path / "out", *options)
    assert result.returncode == 0, result.stderr
    loaded = QuantizedModelForCausalLM.from_pretrained(tmp_path / "out")
    dtype = torch.bfloat16 if options else torch.float32
    expected = QuantizedModelForCausalLM.quantize(llama().to(dtype), weights=qint4)
    assert loaded.lm_head.weight.dtype == dtype
    assert quantization_map(loaded._wrapped) == quantization_map(expected._wrapped)
    with torch.no_grad():
        if not options:
            assert torch.equal(loaded(IDS).logits, expected(IDS).logits)


def test_wrong_arguments(checkpoint, tmp_path):
    result = optimum_cli("quanto", "quantize", "--model", checkpoint, "--weights", "int3", tmp_path / "out")
    assert result.returncode == 2
    assert "invalid choice: 'int3'" in result.stderr
    assert not (tmp_path / "out").exists()


def test_help_is_fast():
    result = optimum_cli("--help")
    assert result.returncode == 0
    assert "quanto" in result.stdout
    code = """
import sys
sys.argv = ["optimum-cli", "--help"]
from optimum.commands import optimum_cli
before = set(sys.modules)
try:
    optimum_cli.main()
except SystemExit:
    pass
added = {name.partition(".")[0] for name in set(sys.modules) - before}
heavy = {"torch", "transformers", "diffusers", "numpy", "safetensors"} & added
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "quanto" in result.stdout
