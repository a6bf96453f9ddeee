"""What programs written for earlier versions do besides the documented calls: model trainers and image generators walk
models by themselves, load sharded checkpoints by themselves and derive tensors of their own."""

import copy
import io
import json
from fnmatch import fnmatch

import pytest
import torch
from accelerate import init_empty_weights
from model_0_2_7 import IDS, llama
from torch import nn
from transformers import LlamaForCausalLM

import optimum.quanto as quanto
from optimum.quanto import (
    QBitsTensor,
    QBytesTensor,
    QLinear,
    QTensor,
    QuantizedModelForCausalLM,
    freeze,
    qfallback,
    qfloat8_e5m2,
    qint4,
    quantization_map,
)
from optimum.quanto.models.shared_dict import ShardedStateDict
from optimum.quanto.nn.qmodule import _QMODULE_TABLE
from optimum.quanto.quantize import _quantize_submodule, set_module_by_name
from optimum.quanto.tensor.qtype import qfloat, qint, qtype, qtypes


def model():
    return nn.Sequential(nn.Linear(8, 16), nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16)), nn.Embedding(4, 16))


def test_a_walk_over_the_modules_quantizes_them():
    walked, whole = model(), model()
    whole.load_state_dict(walked.state_dict())
    for name, module in walked.named_modules():
        if not fnmatch(name, "*.1"):
            _quantize_submodule(walked, name, module, weights="qint4", activations=None, optimizer=None)
    quanto.quantize(whole, weights=qint4, exclude="*.1")
    assert quantization_map(walked) == quantization_map(whole) != {}
    assert walked[1][0].name == "1.0"
    for m in (walked, whole):
        freeze(m)
    assert all(torch.equal(a, b) for a, b in zip(walked.parameters(), whole.parameters(), strict=True))
    with pytest.raises(ValueError, match="got the empty one of a Linear"):
        _quantize_submodule(nn.Linear(8, 8), "", nn.Linear(8, 8), weights="qint4")


def test_modules_are_set_by_name():
    m, other = model(), nn.Identity()
    set_module_by_name(m, "1.0", other)
    set_module_by_name(m, "3", other)
    assert m[1][0] is other is m[3]
    assert nn.Linear in _QMODULE_TABLE


@pytest.mark.parametrize("weights", ["qint8", "qint4", "qfloat8"])
def test_a_sharded_checkpoint_loads_tensor_by_tensor(weights, tmp_path):
    saved = QuantizedModelForCausalLM.quantize(llama(), weights=weights, exclude="lm_head")
    saved.save_pretrained(tmp_path / "saved", max_shard_size="4KB")
    folder, qmap = tmp_path / "saved", json.loads((tmp_path / "saved" / "quanto_qmap.json").read_text())
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    state = ShardedStateDict(str(folder), index)
    assert (len(state), list(state), set(state.keys())) == (len(index), list(index), set(index))
    assert "model.norm.weight" in state
    assert "model.norm.bias" not in state
    with pytest.raises(KeyError):
        state["model.norm.bias"]

    with init_empty_weights():
        loaded = LlamaForCausalLM(saved.config)
    for name, module in loaded.named_modules():
        if name in qmap:
            _quantize_submodule(loaded, name, module, weights=qmap[name]["weights"])
    for module in loaded.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="cpu")))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer if buffer.device.type == "cpu" else torch.empty_like(buffer, device="cpu"))
    loaded.load_state_dict(state, strict=False)
    loaded.tie_weights()
    with torch.no_grad():
        assert torch.equal(loaded.eval()(IDS).logits, saved(IDS).logits)


def test_a_sharded_checkpoint_stays_in_its_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "inside").mkdir()
    with pytest.raises(ValueError, match="expected the name of a file in"):
        ShardedStateDict(tmp_path / "inside", {"weight": "../model.safetensors"})["weight"]
    with pytest.raises(ValueError, match=r"model\.safetensors: .*header"):
        ShardedStateDict(tmp_path, {"weight": "model.safetensors"})["weight"]


@pytest.fixture(autouse=True)
def _signs(monkeypatch):
    signs = qtype("signs", is_floating_point=False, bits=1, dtype=torch.bool, qmin=-1, qmax=1)
    monkeypatch.setitem(qtypes, "signs", signs)


class Signs(QTensor):
    """A quantized tensor as others derive them: with its own flattening and its own dispatch."""

    @staticmethod
    def __new__(cls, qtype, axis, size, stride, positive, scale, requires_grad=False):
        return torch.Tensor._make_wrapper_subclass(
            cls, size, strides=stride, dtype=scale.dtype, device=positive.device, requires_grad=requires_grad
        )

    def __init__(self, qtype, axis, size, stride, positive, scale, requires_grad=False):
        super().__init__(qtype, axis)
        self._positive, self._scale = positive, scale

    def dequantize(self):
        return self._scale * (2 * self._positive.to(self._scale.dtype) - 1)

    def __tensor_flatten__(self):
        return ["_positive", "_scale"], {"qtype": self._qtype.name, "axis": str(self._axis)}

    @staticmethod
    def __tensor_unflatten__(inner, meta, size, stride):
        size, stride = inner["_positive"].size(), inner["_positive"].stride()
        return Signs(qtypes[meta["qtype"]], int(meta["axis"]), size, stride, inner["_positive"], inner["_scale"])

    @classmethod
    def __torch_dispatch__(cls, op, types, args, kwargs=None):
        if op.overloadpacket is torch.ops.aten.sign:
            return 2 * args[0]._positive.to(args[0].dtype) - 1
        return super().__torch_dispatch__(op, types, args, kwargs)


def signs(of):
    return Signs(qtypes["signs"], 0, of.size(), of.stride(), of > 0, of.abs().mean(1, keepdim=True))


def test_tensors_of_the_users_own():
    floats, x = torch.randn(6, 8), torch.randn(2, 8)
    t = signs(floats)
    assert (t.qtype.name, t.axis, t.shape, t.dtype) == ("signs", 0, (6, 8), torch.float32)
    assert torch.equal(t.sign(), floats.sign())
    assert torch.equal(t + 1, t.dequantize() + 1)
    assert torch.equal(nn.functional.linear(x, t), nn.functional.linear(x, t.dequantize()))
    assert torch.equal(qfallback(torch.abs, t), t.dequantize().abs())
    assert (t.numpy() == t.dequantize().numpy()).all()
    assert t.equal(signs(floats))
    assert not t.equal(signs(-floats))
    assert "Signs(positive=" in repr(t)


def test_tensors_of_the_users_own_are_copied_and_saved():
    t, buffer, saved = signs(torch.randn(6, 8)), io.BytesIO(), {}
    for other in (copy.deepcopy(t), t.detach(), t.clone(), t.to("cpu", copy=True)):
        assert type(other) is Signs
        assert other.equal(t)
    assert t.half().dtype == torch.float16
    t.save_to_state_dict(saved, "weight.", False)
    assert saved.keys() == {"weight._positive", "weight._scale"}
    torch.save(t, buffer)
    buffer.seek(0)
    with torch.serialization.safe_globals([Signs]):
        assert torch.load(buffer, weights_only=True).equal(t)


def test_modules_with_tensors_of_the_users_own():
    m = model()
    quanto.quantize(m, weights="qint8", include="0")
    floats = m[0].weight.detach()
    m[0].weight = nn.Parameter(signs(floats), requires_grad=False)
    x = torch.randn(2, 8)
    assert isinstance(m[0], QLinear)
    assert m[0].frozen
    expected = nn.functional.linear(x, signs(floats).dequantize(), m[0].bias)
    assert torch.equal(m[0](x), expected)
    assert torch.equal(torch.compile(m[0], backend="aot_eager", fullgraph=True)(x), expected)
    assert {"0.weight._positive", "0.weight._scale"} < m.state_dict().keys()
    assert torch.equal(copy.deepcopy(m)[0](x), expected)


def test_the_bases_of_quantized_tensors_can_be_derived_from():
    class Bytes(QBytesTensor):
        @staticmethod
        def __new__(cls, qtype, axis, size, stride, data, scale):
            return torch.Tensor._make_wrapper_subclass(cls, size, strides=stride, dtype=scale.dtype)

    class Bits(QBitsTensor):
        @staticmethod
        def __new__(cls, qtype, axis, group_size, size, stride, data, scale, shift):
            return torch.Tensor._make_wrapper_subclass(cls, size, strides=stride, dtype=scale.dtype)

    codes = torch.arange(6).reshape(2, 3)
    t = Bytes(quanto.qint8, None, (2, 3), (3, 1), codes.to(torch.int8), torch.tensor(0.5))
    assert torch.equal(t.dequantize(), 0.5 * codes)
    scale = torch.tensor([[0.5], [2.0]])
    t = Bits(qint4, 0, None, (2, 3), (3, 1), codes.to(torch.uint8), scale, torch.ones(2, 1))
    assert torch.equal(t.dequantize(), scale * codes - 1)


def test_qtypes_are_made_from_bits_and_dtypes():
    assert [qint(bits) for bits in (2, 4, 8)] == [qtypes[f"qint{bits}"] for bits in (2, 4, 8)]
    for name in ("e4m3fn", "e4m3fnuz", "e5m2"):
        assert qfloat(getattr(torch, f"float8_{name}")) == qtypes[f"qfloat8_{name}"]
    assert qfloat(torch.float8_e5m2) == qfloat8_e5m2
    assert (qint(3).name, qint(3).qmin, qint(3).qmax) == ("qint3", -4, 3)
    for kind in (qint4, qint(3)):  # one that the table has and one that it has not
        assert copy.deepcopy(kind) == kind
