"""Loading, saving and reloading through transformers."""

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, QuantoConfig

from optimum.quanto import QLinear, coverage


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        max_position_embeddings=128,
        tie_word_embeddings=request.param,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


IDS = torch.tensor([[1, 5, 9, 13, 17]])


def load(folder, weights=None, **options):
    config = None if weights is None else QuantoConfig(weights=weights, **options)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=config)


@pytest.mark.parametrize("weights", ["int8", "float8", "int4", "int2"])
def test_load_generate_save_and_reload(checkpoint, weights, tmp_path):
    model = load(checkpoint, weights)
    layers = [m for m in model.modules() if isinstance(m, QLinear)]
    assert len(layers) == 14
    assert all(layer.frozen for layer in layers)
    assert type(model.lm_head) is torch.nn.Linear
    assert coverage(model).bytes < 0.75 * coverage(load(checkpoint)).bytes
    with torch.no_grad():
        logits = model(IDS).logits
        assert logits.isfinite().all()
        assert model.generate(IDS, max_new_tokens=4, do_sample=False).shape == (1, 9)
    # A second round trip shows that a reloaded model is as good as the first.
    for name in ("first", "second"):
        model.save_pretrained(tmp_path / name)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        with torch.no_grad():
            assert torch.equal(model(IDS).logits, logits)


def test_a_new_process_reloads_without_importing_the_package(checkpoint, tmp_path):
    model = load(checkpoint, "int4")
    model.save_pretrained(tmp_path)
    torch.save(model(IDS).logits, tmp_path / "logits.pt")
    code = f"""
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})
assert torch.equal(model(torch.tensor({IDS.tolist()})).logits, torch.load({str(tmp_path / "logits.pt")!r}))
"""
    result = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_modules_to_not_convert_keep_a_tied_head_float(checkpoint):
    model = load(checkpoint, "int8", modules_to_not_convert=["q_proj"])
    attention = model.model.layers[0].self_attn
    assert type(attention.q_proj) is torch.nn.Linear
    assert attention.k_proj.frozen
    if model.config.tie_word_embeddings:
        assert type(model.lm_head) is torch.nn.Linear
        assert model.lm_head.weight is model.model.embed_tokens.weight
    else:
        assert model.lm_head.frozen


def test_a_damaged_checkpoint_is_an_error(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    load(checkpoint, "int4").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    key = "model.layers.1.mlp.up_proj.weight._scale"
    tensors[key] = tensors[key][:3].clone()
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(RuntimeError):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    del tensors[key]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises((RuntimeError, ValueError)):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_weight_that_is_not_finite_is_an_error(checkpoint, tmp_path):
    model = load(checkpoint)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[2, 3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError):
        load(tmp_path, "int4")


def test_the_quantized_key_value_cache(checkpoint):
    from transformers.cache_utils import QuantizedCache

    model = load(checkpoint)
    cache = QuantizedCache("quanto", model.config, nbits=4, residual_length=4, q_group_size=32)
    with torch.no_grad():
        output = model.generate(IDS, past_key_values=cache, max_new_tokens=12, do_sample=False)
    assert output.shape == (1, 17)
