"""Models of transformers whose checkpoints, modules or options ask for more than a plain language model does."""

import copy
import importlib
import itertools
import json
import logging
import os
import pickle
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    CompileConfig,
    Dinov2Config,
    Dinov2Model,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    QuantoConfig,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)
from transformers.cache_utils import QuantizedCache

from optimum.quanto import (
    Calibration,
    QLayerNorm,
    QLinear,
    QuantizedModelForCausalLM,
    freeze,
    quantization_map,
    quantize,
)
from optimum.quanto.nn.experts import UnfusedExperts
from optimum.quanto.unquantize import unquantize


IDS = torch.tensor([[1, 5, 9, 13, 17, 2, 8]])
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


def randomized(model):
    """Weights that make outputs depend on them."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def llama(**options):
    return randomized(LlamaForCausalLM(LlamaConfig(**{**SMALL, **options})))


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def from_folder(folder, dtype=torch.float32, **options):
    config = {"quantization_config": QuantoConfig(**options)} if options else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weights", ["int8", "float8", "int4", "int2"])
@pytest.mark.parametrize("tied", [True, False])
def test_sharded_checkpoints_reload_exactly(dtype, weights, tied, tmp_path):
    llama(tie_word_embeddings=tied).save_pretrained(tmp_path / "float")
    model = from_folder(tmp_path / "float", dtype, weights=weights)
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    assert (tmp_path / "saved" / "model.safetensors.index.json").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert loaded.dtype == dtype
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(t.dtype == after[k].dtype and torch.equal(t.float(), after[k].float()) for k, t in before.items())
    assert torch.equal(logits(loaded), logits(model))
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["quanto"] == {
        "quantization_map": quantization_map(model)
    }


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_saved_model_can_be_loaded_in_another_dtype(weights, tmp_path):
    llama().save_pretrained(tmp_path / "float")
    model = from_folder(tmp_path / "float", torch.bfloat16, weights=weights)
    model.save_pretrained(tmp_path / "saved")
    loaded = from_folder(tmp_path / "saved", torch.float16)
    assert {p.dtype for p in loaded.parameters()} == {torch.float16}
    torch.testing.assert_close(logits(loaded).float(), logits(model).float(), rtol=0.1, atol=0.05)


def test_what_was_quantized_by_hand_reloads(tmp_path):
    """Another qtype here, a float layer there: the map in the config says it."""
    llama().save_pretrained(tmp_path / "float")
    model = from_folder(tmp_path / "float", weights="int8", modules_to_not_convert=["up_proj"])
    quantize(model, weights="qint4", include="model.layers.0.mlp.*")
    assert {entry["weights"] for entry in quantization_map(model).values()} == {"qint8", "qint4"}
    assert len(quantization_map(model)) == 14
    freeze(model)
    model.save_pretrained(tmp_path / "saved")
    loaded = from_folder(tmp_path / "saved")
    assert quantization_map(loaded) == quantization_map(model)
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weights", ["qint8", "qint4", "qfloat8_e5m2"])
def test_a_model_frozen_by_hand_is_saved_as_what_it_is(weights, tied, tmp_path):
    model = llama(tie_word_embeddings=tied)
    quantize(model, weights=weights, exclude="lm_head")
    freeze(model)
    torch.save(model, tmp_path / "whole")
    for saved in (model, copy.deepcopy(model), torch.load(tmp_path / "whole", weights_only=False)):
        saved.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
        for cls in (AutoModelForCausalLM, QuantizedModelForCausalLM):
            loaded = cls.from_pretrained(tmp_path / "saved")
            assert quantization_map(getattr(loaded, "_wrapped", loaded)) == quantization_map(model)
            assert torch.equal(logits(loaded), logits(model))
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1


def test_a_model_that_is_float_again_is_saved_as_such(tmp_path):
    model = llama()
    quantize(model, weights="qint8")
    freeze(model)
    unquantize(model)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_unfrozen_models_are_not_saved(tmp_path):
    llama().save_pretrained(tmp_path / "float")
    model = from_folder(tmp_path / "float", weights="int8", modules_to_not_convert=["up_proj"])
    quantize(model, weights="qint4", include="*up_proj")
    with pytest.raises(ValueError, match=r"up_proj: got float weights, expected frozen ones"):
        model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("activations", ["int8", "float8"])
def test_activations(activations, tmp_path):
    llama().save_pretrained(tmp_path / "float")
    model = from_folder(tmp_path / "float", weights="int8", activations=activations)
    reference = llama()
    quantize(reference, weights="qint8", activations=f"q{activations}", exclude="lm_head")
    freeze(reference)
    for one in (model, reference):
        with torch.no_grad(), Calibration():
            one(IDS)
    assert quantization_map(model) == quantization_map(reference)
    assert torch.equal(logits(model), logits(reference))
    model.save_pretrained(tmp_path / "saved")
    torch.save(logits(model), tmp_path / "logits.pt")
    loaded = from_folder(tmp_path / "saved")
    assert quantization_map(loaded) == quantization_map(model)
    assert torch.equal(logits(loaded), logits(model))
    # In a process that does not import this package itself.
    code = f"""
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "saved")!r})
with torch.no_grad():
    assert torch.equal(model(torch.tensor({IDS.tolist()})).logits, torch.load({str(tmp_path / "logits.pt")!r}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("weights", ["qint8", "qint4"])
@pytest.mark.parametrize("max_shard_size", ["50GB", "20KB"])
def test_ties_and_observers_survive_all_ways_of_saving(weights, max_shard_size, tmp_path):
    """The tied table and head have one set of bytes, in memory and in files; the scales, what observers saw and which
    outputs are quantized are those of the model that was calibrated."""
    model = llama(tie_word_embeddings=True)
    quantize(model, weights=weights, activations="qint8", embeddings=True)
    with torch.no_grad(), Calibration(observer="mse"):
        model(IDS)
    freeze(model)
    state, expected = model.state_dict(), logits(model)
    assert not any(name.startswith("lm_head.weight") for name in state)
    assert any("observer" in name for name in state)
    size = sum(t.numel() * t.element_size() for t in state.values())

    def check(found, folder):
        assert found.lm_head.weight is found.model.embed_tokens.weight
        reloaded = found.state_dict()
        assert reloaded.keys() == state.keys()
        assert all(torch.equal(reloaded[name], t) and reloaded[name].dtype == t.dtype for name, t in state.items())
        assert quantization_map(found) == quantization_map(model)
        assert torch.equal(logits(found), expected)
        files = list(folder.glob("*.safetensors"))
        assert (len(files) > 1) == (max_shard_size == "20KB")
        overhead = 200 * len(state) + 1000 * len(files)  # names, and headers
        assert sum(file.stat().st_size for file in files) < size + overhead

    QuantizedModelForCausalLM(model).save_pretrained(tmp_path / "class", max_shard_size=max_shard_size)
    check(QuantizedModelForCausalLM.from_pretrained(tmp_path / "class")._wrapped, tmp_path / "class")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "class")
    check(loaded, tmp_path / "class")
    loaded.save_pretrained(tmp_path / "auto", max_shard_size=max_shard_size)
    check(AutoModelForCausalLM.from_pretrained(tmp_path / "auto"), tmp_path / "auto")
    check(pickle.loads(pickle.dumps(loaded)), tmp_path / "auto")


def test_what_observers_kept_must_be_in_the_checkpoint(tmp_path):
    model = llama()
    quantize(model, weights="qint8", activations="qint8", exclude="lm_head")
    with torch.no_grad(), Calibration(observer="percentile"):
        model(IDS)
    freeze(model)
    QuantizedModelForCausalLM(model).save_pretrained(tmp_path)
    path, name = tmp_path / "model.safetensors", "model.layers.1.mlp.up_proj.input_observer.counts"
    tensors = load_file(path)
    save_file({key: t for key, t in tensors.items() if key != name}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=f"got no {name}"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quanto"]["observers"] = {"model.norm.input_observer.counts": {"dtype": "int64", "shape": [4]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"observers: model\.norm\.input_observer\.counts: got"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_activations_of_layer_norms(tmp_path):
    """With and without weights of their own."""
    torch.manual_seed(5)
    model = BertModel(BertConfig(**ENCODER))
    model.encoder.layer[0].output.LayerNorm = torch.nn.LayerNorm(32, elementwise_affine=False)
    model.save_pretrained(tmp_path)

    class Changed(BertModel):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.encoder.layer[0].output.LayerNorm = torch.nn.LayerNorm(32, elementwise_affine=False)

    options = QuantoConfig(weights="int8", activations="int8")
    loaded = Changed.from_pretrained(tmp_path, quantization_config=options)
    norms = [m for m in loaded.modules() if isinstance(m, QLayerNorm)]
    assert len(norms) == 3
    assert all(norm.output_scale == 1 for norm in norms)
    with torch.no_grad(), Calibration():
        loaded(IDS)
    assert all(norm.output_scale != 1 for norm in norms)


# Checkpoints whose tensors are cut or joined


def dinov2():
    config = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    return randomized(Dinov2Model(Dinov2Config(**config, use_swiglu_ffn=True)))


def gte():
    return randomized(AutoModel.from_config(AutoConfig.for_model("gte", **ENCODER)))


def nomic_bert():
    return randomized(AutoModel.from_config(AutoConfig.for_model("nomic_bert", **ENCODER)))


ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
}


def hidden(model):
    with torch.no_grad():
        pixels = torch.arange(3 * 28 * 28).reshape(1, 3, 28, 28) / 1000
        return (model(pixels) if isinstance(model, Dinov2Model) else model(IDS)).last_hidden_state


@pytest.mark.parametrize(
    ("make", "joined", "layer"),
    [
        (dinov2, "mlp.weights_in.weight", "up_proj"),
        (gte, "mlp.up_gate_proj.weight", "gate_proj"),
        (nomic_bert, "attn.Wqkv.weight", "v_proj"),
    ],
)
def test_one_tensor_for_several_weights(make, joined, layer, tmp_path):
    make().save_pretrained(tmp_path / "float")
    assert any(name.endswith(joined) for name in load_file(tmp_path / "float" / "model.safetensors"))
    model = AutoModel.from_pretrained(tmp_path / "float", quantization_config=QuantoConfig(weights="int4"))
    assert any(name.endswith(layer) for name in quantization_map(model))
    reference = make()
    quantize(reference, weights="qint4", include=list(quantization_map(model)))
    freeze(reference)
    assert torch.equal(hidden(model), hidden(reference))
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(hidden(AutoModel.from_pretrained(tmp_path / "saved")), hidden(reference))


@pytest.mark.parametrize("kept", ["gate_proj", "up_proj"])
def test_one_tensor_for_a_float_and_a_quantized_weight(kept, tmp_path):
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, use_swiglu_ffn=True
    )
    source = randomized(Dinov2Model(config))
    source.save_pretrained(tmp_path)
    options = QuantoConfig(weights="int8", modules_to_not_convert=[kept])
    mlp = AutoModel.from_pretrained(tmp_path, quantization_config=options).encoder.layer[0].mlp
    for name in ("gate_proj", "up_proj"):
        layer, weight = getattr(mlp, name), getattr(source.encoder.layer[0].mlp, name).weight
        assert isinstance(layer, QLinear) == (name != kept)
        torch.testing.assert_close(
            layer.weight.dequantize() if name != kept else layer.weight, weight, rtol=0, atol=0.01
        )


# Mixtures of experts


def mixtral():
    config = MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)
    return randomized(MixtralForCausalLM(config))


def qwen2_moe():
    config = Qwen2MoeConfig(
        **SMALL,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        decoder_sparse_step=1,
    )
    return randomized(Qwen2MoeForCausalLM(config))


def gpt_oss():
    """Transposed weights, biases, and a gate of its own."""
    config = GptOssConfig(**SMALL, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=16)
    return randomized(GptOssForCausalLM(config))


MIXTURES = [mixtral, qwen2_moe, gpt_oss]


def experts_of(model):
    return [m for m in model.modules() if isinstance(m, UnfusedExperts)]


@pytest.mark.parametrize("make", MIXTURES)
def test_experts_taken_apart_compute_the_same(make):
    model = make()
    expected = logits(model)
    for name, module in list(model.named_modules()):
        if name.endswith("experts"):
            model.set_submodule(name, UnfusedExperts(module))
    assert len(experts_of(model)) == 2
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", MIXTURES)
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_experts_are_quantized_and_reload(make, weights, tmp_path, caplog):
    make().save_pretrained(tmp_path / "float")
    with caplog.at_level(logging.WARNING, "optimum.quanto"):
        model = from_folder(tmp_path / "float", weights=weights)
    assert "left float" not in caplog.text
    assert len(experts_of(model)) == 2
    names = list(quantization_map(model))
    assert len([name for name in names if ".experts." in name]) == 2 * 4 * 2
    reference = make()
    quantize(reference, weights=f"q{weights}", include=names)
    freeze(reference)
    assert quantization_map(reference).keys() == set(names)
    assert torch.equal(logits(model), logits(reference))
    for folder in ("first", "second"):
        model.save_pretrained(tmp_path / folder, max_shard_size="50KB")
        model = from_folder(tmp_path / folder)
        assert torch.equal(logits(model), logits(reference))


def test_experts_that_are_excluded_stay_as_they_are(tmp_path, caplog):
    mixtral().save_pretrained(tmp_path / "float")
    with caplog.at_level(logging.WARNING, "optimum.quanto"):
        model = from_folder(tmp_path / "float", weights="int8", modules_to_not_convert=["experts"])
    assert experts_of(model) == []
    assert "model.layers.0.mlp.experts.gate_up_proj" in caplog.text
    expected = logits(model)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(from_folder(tmp_path / "saved")), expected)


@pytest.mark.parametrize("make", MIXTURES)
def test_mixtures_through_the_model_class(make, tmp_path):
    model = QuantizedModelForCausalLM.quantize(make(), weights="qint8")
    assert len(experts_of(model)) == 2
    expected = logits(model)
    model.save_pretrained(tmp_path)
    loaded = QuantizedModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), expected)


def test_experts_in_training_and_as_pickles(tmp_path):
    model = mixtral()
    quantize(model, weights="qint4")
    model(IDS).logits.sum().backward()
    layer = experts_of(model)[0]
    assert any(getattr(layer, str(i)).down_proj.weight.grad is not None for i in range(4))
    freeze(model)
    torch.save(model, tmp_path / "model.pt")
    assert torch.equal(logits(torch.load(tmp_path / "model.pt", weights_only=False)), logits(model))


@pytest.mark.parametrize("make", MIXTURES)
@pytest.mark.parametrize("activations", [None, "dynamic", "static"])
def test_experts_compile_to_one_graph(make, activations):
    """For any number of tokens, and of tokens that an expert gets."""
    model = make()
    options = {"activations": "qint8", "dynamic": activations == "dynamic"} if activations else {}
    quantize(model, weights="qint4", exclude="lm_head", **options)
    if activations == "static":
        with torch.no_grad(), Calibration():
            model(IDS)
    freeze(model)
    experts = experts_of(model)[0]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(experts, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for tokens in (7, 5, 2):
            call = (torch.randn(tokens, 64), torch.randint(0, 5, (tokens, 2)), torch.rand(tokens, 2))
            assert torch.equal(compiled(*call), experts(*call))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_compiled_experts_train():
    model = mixtral()
    quantize(model, weights="qint4", include="*experts*")
    experts = experts_of(model)[0]
    call = (torch.randint(0, 4, (6, 2)), torch.rand(6, 2))

    def gradients(function):
        x = torch.ones(6, 64, requires_grad=True)
        experts.zero_grad()
        function(x, *call).square().sum().backward()
        return [x.grad, *(p.grad for p in experts.parameters())]

    torch._dynamo.reset()
    compiled = gradients(torch.compile(experts, backend="aot_eager", fullgraph=True))
    for found, expected in zip(compiled, gradients(experts), strict=True):
        torch.testing.assert_close(found, expected if expected is not None else torch.zeros_like(found))


@pytest.mark.parametrize("make", [llama, mixtral])
def test_models_with_quantized_activations_compile_to_one_graph(make):
    model = make()
    quantize(model, weights="qint8", activations="qint8", exclude="lm_head")
    with torch.no_grad(), Calibration():
        model(IDS)
    freeze(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(IDS, use_cache=False).logits, logits(model))


def test_an_error_leaves_experts_fused():
    model = mixtral()
    with pytest.raises(ValueError, match="expected an 8-bit qtype"):
        quantize(model, weights="qint8", activations="qint4")
    assert experts_of(model) == []


# Generation


def test_generate_compiles_by_itself(tmp_path):
    llama().save_pretrained(tmp_path)
    model = from_folder(tmp_path, weights="int4")
    options = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": "static"}
    expected = model.generate(IDS, **options, disable_compile=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiling = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    compiling._compile_all_devices = True
    assert torch.equal(model.generate(IDS, **options, compile_config=compiling), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("nbits", [4, 2])
@pytest.mark.parametrize("axis", [0, -1])
def test_the_quantized_cache(nbits, axis):
    model = llama(hidden_size=128)  # heads of 32
    options = {"nbits": nbits, "axis_key": axis, "axis_value": axis, "q_group_size": 32, "residual_length": 16}
    ids, generation = torch.arange(3, 19)[None], {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
    quantized = {"cache_implementation": "quantized", "cache_config": {"backend": "quanto", **options}}
    with torch.no_grad():
        output = model.generate(ids, **generation, **quantized)
        cache = QuantizedCache("quanto", model.config, **options)
        again = model.generate(ids, **generation, past_key_values=cache)
        plain = model.generate(ids, max_new_tokens=1, do_sample=False)
    assert output.shape == (1, 36)
    assert torch.equal(output, again)
    assert torch.equal(output[:, :17], plain)
    layer = cache.layers[0]
    assert type(layer._quantized_keys).__name__ == "WeightQBitsTensor"
    assert layer._quantized_keys.shape == layer._quantized_keys.dequantize().shape
    assert cache.get_seq_length() == 35


def test_a_float_checkpoint_of_a_wrong_shape_is_an_error(tmp_path):
    llama().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    key = "model.layers.0.mlp.up_proj.weight"
    save_file({**tensors, key: tensors[key][:-1].clone()}, path, {"format": "pt"})
    with pytest.raises(RuntimeError):
        from_folder(tmp_path, weights="int8")


def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    llama().save_pretrained(tmp_path / "float")
    model = from_folder(tmp_path / "float", weights="int8")
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    expected = logits(model)
    (tmp_path / "saved" / "tokenizer.json").write_text("{}")
    other = from_folder(tmp_path / "float", weights="int4")
    written = []

    def full(tensors, path, **kwargs):
        written.append(path)
        if len(written) > 3:
            raise OSError("No space left on device")
        save_file(tensors, path, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("transformers.modeling_utils.safe_save_file", full)
        with pytest.raises(OSError, match="No space left"):
            other.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    assert torch.equal(logits(from_folder(tmp_path / "saved")), expected)
    assert {path.name for path in tmp_path.iterdir()} == {"float", "saved"}
    for one in (other, copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        one.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
        assert torch.equal(logits(from_folder(tmp_path / "saved")), logits(other))
    assert (tmp_path / "saved" / "tokenizer.json").exists()
    assert (tmp_path / "saved" / "config.json").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask():
    found = os.umask(0)
    os.umask(found)
    return found


UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("part", ["bias", "input_scale", "weight._scale", "weight._shift", "weight._data._data"])
def test_what_a_saved_checkpoint_lacks_is_named(part, tmp_path, caplog):
    llama(mlp_bias=True).save_pretrained(tmp_path / "float")
    from_folder(tmp_path / "float", weights="int4").save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "model.safetensors"
    tensors = load_file(path)
    del tensors[f"{UP}.{part}"]
    save_file(tensors, path, {"format": "pt"})
    transformers.logging.set_verbosity_warning()  # what the report is
    with pytest.raises((ValueError, RuntimeError)) as error:
        from_folder(tmp_path / "saved")
    assert f"{UP}.{part.partition('.')[0]}" in str(error.value) + caplog.text


BESIDES = ("weight._zero", "bias", "extra", "adapter.weight")


@pytest.mark.parametrize(
    ("weights", "part"), [("int8", "weight._shift"), *itertools.product(["int8", "int4"], BESIDES)]
)
def test_what_a_saved_checkpoint_has_besides_is_an_error(weights, part, tmp_path, caplog):
    llama().save_pretrained(tmp_path / "float")
    from_folder(tmp_path / "float", weights=weights).save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "model.safetensors"
    save_file({**load_file(path), f"{UP}.{part}": torch.ones(1)}, path, {"format": "pt"})
    transformers.logging.set_verbosity_warning()  # what the report is
    with pytest.raises((ValueError, RuntimeError)) as error:
        from_folder(tmp_path / "saved")
    assert f"{UP}.{part.removesuffix('._zero')}" in str(error.value) + caplog.text


def test_what_a_saved_checkpoint_has_for_modules_of_others_is_reported(tmp_path, caplog):
    llama().save_pretrained(tmp_path / "float")
    from_folder(tmp_path / "float", weights="int4").save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "model.safetensors"
    save_file({**load_file(path), "model.norm.extra": torch.ones(1)}, path, {"format": "pt"})
    transformers.logging.set_verbosity_warning()
    model = from_folder(tmp_path / "saved")
    assert "model.norm.extra" in caplog.text
    assert "_adjust_missing_and_unexpected_keys" not in vars(model)


def test_a_float_checkpoint_without_a_bias_is_an_error(tmp_path):
    llama(mlp_bias=True).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors[f"{UP}.bias"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"got no {UP}\.bias"):
        from_folder(tmp_path, weights="int4")


def test_new_layers_are_quantized(tmp_path):
    """A head that the checkpoint does not have: transformers reports and initializes it."""
    llama().model.save_pretrained(tmp_path)
    options = QuantoConfig(weights="int8", modules_to_not_convert=[])
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3, quantization_config=options)
    assert model.score.frozen
    assert model.score.weight.dequantize().abs().max() < 1


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_class_loads_it_too(tied, tmp_path):
    llama(tie_word_embeddings=tied).save_pretrained(tmp_path / "float")
    model = from_folder(tmp_path / "float", weights="int4")
    model.save_pretrained(tmp_path / "saved")
    loaded = QuantizedModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("saved", [True, False])
def test_dequantize_gives_a_float_model(tied, saved, tmp_path):
    llama(tie_word_embeddings=tied, attention_bias=True).save_pretrained(tmp_path / "float")
    model = from_folder(tmp_path / "float", weights="int4", activations="int8")
    if saved:
        model.save_pretrained(tmp_path / "saved")
        model = from_folder(tmp_path / "saved")
    names = list(quantization_map(model))
    expected = {f"{name}.weight": model.get_submodule(name).weight.dequantize() for name in names}
    model.dequantize()
    assert quantization_map(model) == {}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    state = model.state_dict()
    assert state.keys() == llama(tie_word_embeddings=tied, attention_bias=True).state_dict().keys()
    assert all(torch.equal(state[name], weight) for name, weight in expected.items())
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    model.save_pretrained(tmp_path / "again")
    assert "quant" not in (tmp_path / "again" / "config.json").read_text()
    assert torch.equal(logits(from_folder(tmp_path / "again")), logits(model))


@pytest.mark.parametrize("make", MIXTURES)
def test_dequantize_joins_experts(make, tmp_path):
    make().save_pretrained(tmp_path / "float")
    model = from_folder(tmp_path / "float", weights="int8")
    before = logits(model)
    model.dequantize()
    assert experts_of(model) == []
    assert model.state_dict().keys() == make().state_dict().keys()
    torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-4)
    model.save_pretrained(tmp_path / "again")
    again, expected = from_folder(tmp_path / "again"), model.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in again.state_dict().items())
    # torch's own matmuls round by where tensors lie in memory.
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)


# Other versions of transformers


def test_a_quantizer_of_another_form_is_logged_and_left_alone(monkeypatch, caplog):
    from transformers.quantizers import quantizer_quanto

    from optimum.quanto import integrations

    class Other:
        pass

    module = importlib.import_module("optimum.quanto.integrations.transformers")
    monkeypatch.setattr(module, "QuantoHfQuantizer", Other)
    monkeypatch.setattr(integrations, "_tried", set())
    with caplog.at_level(logging.WARNING, "optimum.quanto"):
        integrations.install()
    assert "QuantoHfQuantizer lacks validate_environment" in caplog.text
    assert not [name for name in vars(Other) if not name.startswith("__")]
    assert quantizer_quanto.QuantoHfQuantizer is not Other


@pytest.mark.parametrize("first", ["optimum.quanto", "transformers", "transformers.modeling_utils"])
def test_an_import_of_the_package_is_enough_for_activations(first, tmp_path):
    llama().save_pretrained(tmp_path)
    code = f"""
import {first}
import optimum.quanto
from transformers import AutoModelForCausalLM, QuantoConfig
config = QuantoConfig(weights="int8", activations="int8")
model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}, quantization_config=config)
assert model.model.layers[0].self_attn.q_proj.activation_qtype == optimum.quanto.qint8
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_an_import_never_fails_because_of_transformers():
    code = """
import sys, types
sys.modules["transformers"] = types.ModuleType("transformers")
sys.modules["transformers"].__path__ = []
for name in ("modeling_utils", "quantizers.quantizer_quanto"):
    sys.modules[f"transformers.{name}"] = types.ModuleType(f"transformers.{name}")
from optimum.quanto import quantize
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "cannot be saved and reloaded" in result.stderr
