"""Quantized models of the transformers library."""

import functools
import json
import os
from pathlib import Path
from typing import Any

import torch

from ..quantization import quantization_map, requantize
from .base import QuantizedModel, is_transformers_available
from .checkpoint import CONFIG_KEY, CONFIG_NAME, described, read_json, read_tensors, save_replacing


__all__ = ["QuantizedModelForCausalLM", "QuantizedTransformersModel"]

if not is_transformers_available():
    raise ImportError(f"{', '.join(__all__)} require the transformers library")

from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, QuantoConfig
from transformers.utils import GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..nn import QModuleMixin


class QuantizedTransformersModel(QuantizedModel):
    """A quantized transformers model. Subclasses set `auto_class` to the class that makes a model from a config."""

    library = "transformers"
    model_class = PreTrainedModel
    auto_class: Any = None

    @classmethod
    def _check_can_load(cls) -> None:
        if cls.auto_class is None:
            raise ValueError(
                f"Quantized models cannot be reloaded using {cls.__name__}: use a specialized quantized class such as "
                "QuantizedModelForCausalLM instead."
            )
        super()._check_can_load()

    @classmethod
    def _load(cls, folder: Path, qmap: dict[str, dict[str, str]], **kwargs: Any) -> torch.nn.Module:
        from accelerate import init_empty_weights

        trust = {"trust_remote_code": kwargs["trust_remote_code"]} if "trust_remote_code" in kwargs else {}
        config = AutoConfig.from_pretrained(folder, **kwargs)
        with init_empty_weights():
            model = cls.auto_class.from_config(config, **trust)
        model.tie_weights()  # as the config says, so that tensors which were saved once are not missing
        tensors = read_tensors(folder, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
        requantize(model, state_dict=tensors, quantization_map=qmap)
        if _may_share_embeddings(model):
            model.tie_weights()
        if model.can_generate() and (folder / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        return model

    def _save_wrapped(self, save_directory: Path, max_shard_size: int | str) -> None:
        _save_described(self._wrapped, save_directory, max_shard_size=max_shard_size)


def describe_when_saved(model: Any) -> None:
    """Have the `save_pretrained` of a frozen model write that, and how, it is quantized, beside its weights.

    The folder takes the place of `save_directory` when it is complete, and loads with the classes of transformers and
    of this package. Nothing changes for a model that transformers itself loaded as quantized.
    """
    if "save_pretrained" not in vars(model):
        model.save_pretrained = functools.partial(_save_frozen, model)


def _save_frozen(
    model: Any, save_directory: str | os.PathLike[str], is_main_process: bool = True, *args: Any, **kwargs: Any
) -> None:
    if is_main_process and quantization_map(model):  # empty once it is float again
        save_replacing(model, functools.partial(_save_described, model), save_directory, *args, **kwargs)
    else:
        type(model).save_pretrained(model, save_directory, is_main_process, *args, **kwargs)


def _save_described(model: Any, folder: Path, *args: Any, **kwargs: Any) -> None:
    """What transformers writes for the model, and the description of what is quantized in it."""
    if getattr(model.config, "tie_word_embeddings", True) and not _may_share_embeddings(model):
        model.config.tie_word_embeddings = False
        kwargs.setdefault("state_dict", _untied_state_dict(model))
    # In the names and shapes of the modules, not those of the checkpoint that the model may come from: quantized
    # tensors cannot be cut or joined.
    kwargs.setdefault("save_original_format", False)
    type(model).save_pretrained(model, folder, *args, **kwargs)
    _describe(folder / CONFIG_NAME, model)


def _describe(path: Path, model: torch.nn.Module) -> None:
    """Write into a config that the model is quantized, for transformers' own classes to load it as such."""
    names = [entry["weights"] for entry in quantization_map(model).values() if entry["weights"] != "none"]
    # The map, which is what counts, may have several; transformers knows one and calls all of float8 alike.
    weights = next(iter(names), "qint8").removeprefix("q").partition("_")[0]
    added = {CONFIG_KEY: described(model), "quantization_config": QuantoConfig(weights=weights).to_dict()}
    path.write_text(json.dumps({**read_json(path), **added}, indent=2) + "\n", encoding="utf-8")


def _may_share_embeddings(model: Any) -> bool:
    """Whether the embeddings of inputs and outputs are one tensor, unless neither of them is quantized."""
    embeddings = [model.get_input_embeddings(), model.get_output_embeddings()]
    if not any(isinstance(module, QModuleMixin) for module in embeddings):
        return True
    return embeddings[1] is not None and embeddings[0].weight is embeddings[1].weight


def _untied_state_dict(model: Any) -> dict[str, torch.Tensor]:
    """A state dict in which the bias of the output embeddings, if there is one, is a tensor of its own."""
    head = next((name for name, m in model.named_modules() if m is model.get_output_embeddings()), None)
    return {name: t.clone() if name == f"{head}.bias" else t for name, t in model.state_dict().items()}


class QuantizedModelForCausalLM(QuantizedTransformersModel):
    """A quantized language model of the transformers library."""

    auto_class = AutoModelForCausalLM
