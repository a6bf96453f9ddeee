"""The quantized model classes: quantize, save, load, and what a folder may hold."""

import copy
import json
import os
import pickle
import shutil
import stat
from pathlib import Path

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from model_0_2_7 import IDS, llama
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForMaskedLM,
    LlamaForCausalLM,
    QuantoConfig,
    T5Config,
    T5ForConditionalGeneration,
)

import optimum.quanto.models
from optimum.quanto import (
    QLinear,
    QuantizedDiffusersModel,
    QuantizedModelForCausalLM,
    QuantizedPixArtTransformer2DModel,
    QuantizedTransformersModel,
    quantization_map,
    quantize,
)
from optimum.quanto.models import base, checkpoint


GOLDEN = Path(__file__).parent / "golden" / "llama_0_2_7"
DTYPES = {"qint8": torch.float32, "qint4": torch.bfloat16, "qint2": torch.float16, "qfloat8": torch.bfloat16}


def quantized(weights="qint4", dtype=torch.float32, tied=True, **options):
    source = llama()
    source.config.tie_word_embeddings = tied
    model = LlamaForCausalLM(source.config).eval()
    model.load_state_dict(source.state_dict())
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return QuantizedModelForCausalLM.quantize(model, weights=weights, **options)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A sharded checkpoint, to be copied before it is damaged."""
    folder = tmp_path_factory.mktemp("saved") / "llama"
    quantized(exclude="lm_head").save_pretrained(folder, max_shard_size="4KB")
    return folder


@pytest.fixture
def damaged(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.mark.parametrize("weights", DTYPES)
@pytest.mark.parametrize("exclude", [None, "lm_head"])
@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load(weights, exclude, tied, tmp_path):
    model = quantized(weights, DTYPES[weights], tied, exclude=exclude)
    expected = logits(model)
    for size in ("5GB", "4KB", "5GB"):  # each over the one before
        model.save_pretrained(tmp_path / "model", max_shard_size=size)
        files = {path.name for path in (tmp_path / "model").iterdir()}
        assert ("model.safetensors" in files) == (size == "5GB")
        assert ("model.safetensors.index.json" in files) == (size == "4KB")
        assert {"config.json", "generation_config.json", "quanto_qmap.json", "README.md"} <= files
        assert (len([name for name in files if name.endswith(".safetensors")]) == 1) == (size == "5GB")
        loaded = QuantizedModelForCausalLM.from_pretrained(tmp_path / "model")
        assert torch.equal(logits(loaded), expected)
        assert quantization_map(loaded._wrapped) == quantization_map(model._wrapped)
        assert not loaded.training
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def t5():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 64}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()


def bert():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = BertForMaskedLM(BertConfig(**sizes, vocab_size=64)).eval()
    torch.nn.init.normal_(model.cls.predictions.bias)  # tied to that of the decoder
    return model


@pytest.mark.parametrize("exclude", [None, ["lm_head", "*decoder"]])
@pytest.mark.parametrize(("make", "auto"), [(t5, AutoModelForSeq2SeqLM), (bert, AutoModelForMaskedLM)])
def test_other_kinds_of_ties(make, auto, exclude, tmp_path):
    class Quantized(QuantizedTransformersModel):
        auto_class = auto

    def output(model):
        with torch.no_grad():
            more = {"decoder_input_ids": IDS} if make is t5 else {}
            return model(input_ids=IDS, **more).logits

    model = Quantized.quantize(make(), weights="qint4", exclude=exclude)
    expected = output(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(output(Quantized.from_pretrained(tmp_path)), expected)
    assert torch.equal(output(auto.from_pretrained(tmp_path)), expected)


def test_tied_embeddings_stay_tied_unless_one_is_quantized(tmp_path):
    for exclude, tied in ((None, False), ("lm_head", True)):
        quantized(exclude=exclude).save_pretrained(tmp_path)
        loaded = QuantizedModelForCausalLM.from_pretrained(tmp_path)
        assert loaded.config.tie_word_embeddings == tied
        assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


def test_activations_survive(tmp_path):
    model = quantized("qint8", activations="qint8")
    model._wrapped.model.layers[0].mlp.up_proj.disable_output_quantization()
    for scale in (b for n, b in model.named_buffers() if n.endswith("put_scale")):
        scale.fill_(0.05)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    loaded = QuantizedModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), expected)
    assert not loaded.model.layers[0].mlp.up_proj.quantizes_output
    assert loaded.model.layers[0].mlp.gate_proj.quantizes_output


def test_a_folder_of_0_2_7():
    loaded = QuantizedModelForCausalLM.from_pretrained(GOLDEN)
    tensors = load_file(GOLDEN / "model.safetensors")
    state = loaded.state_dict()
    assert state.keys() == tensors.keys()
    assert all(torch.equal(t, tensors[name]) for name, t in state.items())
    expected = load_file(GOLDEN / "expected.st")["logits"]
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(quantized("qint4")), logits(loaded))


def test_a_folder_for_0_2_7_has_the_same_content(tmp_path):
    quantized("qint4").save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} - {"README.md"} == {p.name for p in GOLDEN.iterdir()} - {
        "expected.st"
    }
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(GOLDEN / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(t, theirs[name]) for name, t in ours.items())
    theirs = {name: json.loads((GOLDEN / name).read_text()) for name in ("quanto_qmap.json", "config.json")}
    described = {"quanto": {"quantization_map": theirs["quanto_qmap.json"]}}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("quantization_config") == QuantoConfig(weights="int4").to_dict()
    assert config == {**theirs["config.json"], **described}
    assert json.loads((tmp_path / "quanto_qmap.json").read_text()) == theirs["quanto_qmap.json"]


@pytest.mark.parametrize("weights", ["qint8", "qint2", "qfloat8_e5m2"])
@pytest.mark.parametrize("exclude", [None, "*up_proj"])
def test_the_classes_of_transformers_load_it_too(weights, exclude, tmp_path):
    model = quantized(weights, exclude=exclude)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert quantization_map(loaded) == quantization_map(model._wrapped)
    assert torch.equal(logits(loaded), logits(model))


def test_it_behaves_as_the_model_that_it_wraps(tmp_path):
    model = quantized()
    assert isinstance(model, QuantizedTransformersModel)
    assert repr(model) == repr(model._wrapped)
    assert "QLinear" in repr(model)
    assert model.config is model._wrapped.config
    assert torch.equal(model.forward(IDS).logits, model(IDS).logits)
    assert model.generate(IDS, max_new_tokens=2, do_sample=False).shape == (1, 7)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    model(IDS)
    assert calls == [1]
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = model.no_such_thing
    assert torch.equal(logits(copy.deepcopy(quantized())), logits(quantized()))
    assert torch.equal(logits(pickle.loads(pickle.dumps(quantized()))), logits(quantized()))


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must be a transformers model"):
        QuantizedModelForCausalLM.quantize(torch.nn.Sequential(torch.nn.Linear(3, 3)), weights="qint8")
    with pytest.raises(ValueError, match=r"must be a quantized transformers model"):
        QuantizedModelForCausalLM(llama())
    with pytest.raises(ValueError, match=r"cannot be reloaded using QuantizedTransformersModel"):
        QuantizedTransformersModel.from_pretrained(GOLDEN)
    llama().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"No quantization map found in .*: is this a quantized model"):
        QuantizedModelForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="got the file"):
        quantized().save_pretrained(tmp_path / "file")


def test_pickles_are_refused(damaged):
    for path in damaged.glob("*.safetensors*"):
        path.unlink()
    torch.save({}, damaged / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"No safetensor weights .* Pickles are not loaded: pytorch_model\.bin"):
        QuantizedModelForCausalLM.from_pretrained(damaged)


def index_of(folder):
    path = folder / "model.safetensors.index.json"
    return path, json.loads(path.read_text())


@pytest.mark.parametrize(
    "make", [lambda f: f"../{f}", os.path.abspath, lambda f: f"./{f}", lambda f: f + "\0", lambda _: ".."]
)
def test_shard_names_are_names_of_files_in_the_folder(damaged, make):
    path, index = index_of(damaged)
    shard = next(iter(index["weight_map"].values()))
    shutil.copy(damaged / shard, damaged.parent / shard)
    index["weight_map"] = {name: make(f) if f == shard else f for name, f in index["weight_map"].items()}
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="expected the name of a file in"):
        QuantizedModelForCausalLM.from_pretrained(damaged)


def test_links_out_of_the_folder_are_refused(damaged):
    _, index = index_of(damaged)
    shard = next(iter(index["weight_map"].values()))
    (damaged / shard).rename(damaged.parent / shard)
    (damaged / shard).symlink_to(damaged.parent / shard)
    with pytest.raises(ValueError, match="got a link to"):
        QuantizedModelForCausalLM.from_pretrained(damaged)


def test_a_download_cache_is_read(saved, tmp_path, monkeypatch):
    snapshot, blobs, asked = tmp_path / "models--x" / "snapshots" / "main", tmp_path / "models--x" / "blobs", {}
    (snapshot / "sub").mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(saved.iterdir()):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / str(number))

    def download(name, revision=None, token=None):
        asked.update(revision=revision, token=token, name=name)
        return str(snapshot)

    monkeypatch.setattr(base, "snapshot_download", download)
    loaded = QuantizedModelForCausalLM.from_pretrained("some/model", revision="v1", token="t")
    assert asked == {"name": "some/model", "revision": "v1", "token": "t"}
    assert torch.equal(logits(loaded), logits(quantized(exclude="lm_head")))


def test_subfolders(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "quantized")
    loaded = QuantizedModelForCausalLM.from_pretrained(tmp_path, subfolder="quantized")
    assert torch.equal(logits(loaded), logits(quantized(exclude="lm_head")))


def test_of_a_repository_only_the_subfolder_is_downloaded(saved, tmp_path, monkeypatch):
    asked = {}

    def download(name, allow_patterns=None):
        asked.update(name=name, allow_patterns=allow_patterns)
        return str(tmp_path)

    shutil.copytree(saved, tmp_path / "quantized")
    monkeypatch.setattr(base, "snapshot_download", download)
    QuantizedModelForCausalLM.from_pretrained("some/model", subfolder="quantized")
    assert asked == {"name": "some/model", "allow_patterns": "quantized/*"}


def rewrite(folder, change):
    """Pass the tensors of a file through `change`, for the file with the first quantized layer."""
    _, index = index_of(folder)
    path = folder / index["weight_map"]["model.layers.0.mlp.up_proj.weight._scale"]
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


KEY = "model.layers.0.mlp.up_proj.weight._scale"


def test_wrong_tensors_are_named(damaged):
    rewrite(damaged, lambda tensors: tensors.pop(KEY))
    with pytest.raises(ValueError, match=rf"lacks {KEY}"):
        QuantizedModelForCausalLM.from_pretrained(damaged)
    path, index = index_of(damaged)
    file = index["weight_map"].pop(KEY)
    path.write_text(json.dumps(index))
    with pytest.raises(RuntimeError, match=rf"missing: {KEY}"):
        QuantizedModelForCausalLM.from_pretrained(damaged)
    rewrite_in(damaged / file, {KEY: torch.ones(3, 1)})
    with pytest.raises(ValueError, match=rf"has, unlike the index, {KEY}"):
        QuantizedModelForCausalLM.from_pretrained(damaged)
    path.write_text(json.dumps({**index, "weight_map": {**index["weight_map"], KEY: file}}))
    with pytest.raises(RuntimeError, match=rf"{KEY}: got shape \(3, 1\), expected \(64, 1\)"):
        QuantizedModelForCausalLM.from_pretrained(damaged)
    rewrite_in(damaged / file, {"model.extra": torch.ones(1)})
    path.write_text(json.dumps({**index, "weight_map": {**index["weight_map"], KEY: file, "model.extra": file}}))
    with pytest.raises(RuntimeError, match=r"got shape|unexpected: model\.extra"):
        QuantizedModelForCausalLM.from_pretrained(damaged)


def rewrite_in(path, extra):
    save_file({**load_file(path), **extra}, path, {"format": "pt"})


def test_wrong_json_is_named(damaged):
    path, index = index_of(damaged)
    for text, message in (("{", "got no JSON"), ("[]", "got a list"), ('{"weight_map": 3}', "weight_map: got 3")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            QuantizedModelForCausalLM.from_pretrained(damaged)
    path.write_text(json.dumps(index))
    for value, message in (({"lm_head": "qint8"}, "got 'qint8' for 'lm_head'"), ({"x": {"weights": "qint8"}}, "'x'")):
        (damaged / "quanto_qmap.json").write_text(json.dumps(value))
        with pytest.raises(ValueError, match=message):
            QuantizedModelForCausalLM.from_pretrained(damaged)


def test_a_file_that_was_cut_is_an_error(damaged):
    _, index = index_of(damaged)
    path = damaged / index["weight_map"][KEY]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=path.name):
        QuantizedModelForCausalLM.from_pretrained(damaged)


class Killed(BaseException):
    pass


def save_until(model, folder, step, monkeypatch):
    """Save, stopped before the file operation number `step`; returns whether it was reached."""
    count = iter(range(10**6))

    def stopping(operation):
        def run(*args, **kwargs):
            if next(count) == step:
                raise Killed
            return operation(*args, **kwargs)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)
        for owner, name in (*((Path, name) for name in ("rename", "unlink", "chmod", "mkdir")), (checkpoint, "_sync")):
            patch.setattr(owner, name, stopping(getattr(owner, name)))
        try:
            model.save_pretrained(folder, max_shard_size="12KB")
        except Killed:
            return True
    return False


@pytest.mark.slow
def test_an_interrupted_save_leaves_the_old_checkpoint_or_none_or_the_new_one(saved, tmp_path, monkeypatch):
    old, new = quantized(exclude="lm_head"), quantized("qint4", exclude=["lm_head", "*q_proj"])
    results = [logits(old), logits(new)]
    seen, step = set(), 0
    while True:
        folder = tmp_path / str(step)
        shutil.copytree(saved, folder)
        (folder / "tokenizer.json").write_text("{}")
        reached = save_until(new, folder, step, monkeypatch)
        try:
            found = logits(QuantizedModelForCausalLM.from_pretrained(folder))
        except (ValueError, OSError):
            seen.add("none")
        else:
            seen.add(next(index for index, expected in enumerate(results) if torch.equal(found, expected)))
        assert (folder / "tokenizer.json").exists()
        if not reached:
            break
        step += 1
    assert seen == {0, "none", 1}
    assert step > 20


def test_new_files_obey_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        quantized().save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()} == {0o640}
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o750


def test_an_error_while_saving_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "_sync", fail)
    with pytest.raises(OSError, match="No space left"):
        quantized().save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_model_card_that_is_there_stays(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    quantized().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("how", ["push_to_hub", "save_pretrained"])
def test_push_to_hub(how, tmp_path, monkeypatch):
    uploads = {}

    class Api:
        def __init__(self, **kwargs):
            pass

        def create_repo(self, repo_id, **kwargs):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, **kwargs):
            uploads[repo_id] = {path.name for path in Path(folder_path).iterdir()}
            return "commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    if how == "push_to_hub":
        assert quantized().push_to_hub("me/mine") == "commit"
    else:
        assert quantized().save_pretrained(tmp_path / "x", push_to_hub=True, repo_id="me/mine") == "commit"
    assert {"config.json", "model.safetensors", "quanto_qmap.json", "README.md"} <= uploads["me/mine"]


def test_the_names_of_0_2_7():
    for name in ("QuantizedModelForCausalLM", "QuantizedDiffusersModel"):
        assert getattr(optimum.quanto.models, name) is getattr(optimum.quanto, name)
    assert QuantizedModelForCausalLM.auto_class is AutoModelForCausalLM
    assert QuantizedModelForCausalLM._qmap_name() == "quanto_qmap.json"
    assert QuantizedModelForCausalLM.BASE_NAME == "quanto"


# diffusers


def pixart():
    model = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=32,
        sample_size=8,
        caption_channels=24,
        norm_num_groups=4,
        use_additional_conditions=False,
    )
    return model.eval()


def denoised(model, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model(
            torch.randn(1, 4, 8, 8, generator=generator).to(dtype),
            encoder_hidden_states=torch.randn(1, 5, 24, generator=generator).to(dtype),
            timestep=torch.tensor([3]),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample


@pytest.mark.parametrize("weights", DTYPES)
def test_diffusers(weights, tmp_path):
    dtype = DTYPES[weights]
    pixart().save_pretrained(tmp_path / "float")
    source = PixArtTransformer2DModel.from_pretrained(tmp_path / "float", torch_dtype=dtype)
    model = QuantizedPixArtTransformer2DModel.quantize(source, weights=weights, exclude="proj_out")
    expected = denoised(model, dtype)
    assert expected.isfinite().all()
    for size in ("5GB", "20KB"):
        model.save_pretrained(tmp_path, max_shard_size=size)
        assert (tmp_path / "diffusion_pytorch_model.safetensors.index.json").exists() == (size == "20KB")
        loaded = QuantizedPixArtTransformer2DModel.from_pretrained(tmp_path)
        assert torch.equal(denoised(loaded, dtype), expected)
        assert isinstance(loaded.transformer_blocks[0].attn1.to_q, QLinear)
        assert type(loaded.proj_out) is torch.nn.Linear


def test_what_is_refused_of_diffusers(tmp_path):
    with pytest.raises(ValueError, match="must be a diffusers model"):
        QuantizedDiffusersModel.quantize(llama(), weights="qint8")
    with pytest.raises(ValueError, match="must be a quantized diffusers model"):
        QuantizedDiffusersModel(pixart())
    with pytest.raises(ValueError, match="`base_class` attribute needs to be configured"):
        QuantizedDiffusersModel.from_pretrained(tmp_path)
    QuantizedPixArtTransformer2DModel.quantize(pixart(), weights="qint8").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "SD3Transformer2DModel"}))
    with pytest.raises(ValueError, match=r"\(PixArtTransformer2DModel\) differs .* \(SD3Transformer2DModel\)"):
        QuantizedPixArtTransformer2DModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json not found"):
        QuantizedPixArtTransformer2DModel.from_pretrained(tmp_path)


def test_models_that_were_quantized_before_can_be_wrapped(tmp_path):
    model = llama()
    quantize(model, weights="qint8")
    QuantizedModelForCausalLM(model)
