"""Quantized models of the diffusers library."""

from pathlib import Path
from typing import Any

import torch

from ..quantization import requantize
from .base import QuantizedModel, is_diffusers_available
from .checkpoint import CONFIG_NAME, read_json, read_tensors


__all__ = ["QuantizedDiffusersModel", "QuantizedPixArtTransformer2DModel"]

if not is_diffusers_available():
    raise ImportError(f"{', '.join(__all__)} require the diffusers library")

from diffusers import ModelMixin, PixArtTransformer2DModel
from diffusers.utils.constants import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME


class QuantizedDiffusersModel(QuantizedModel):
    """A quantized diffusers model. Subclasses set `base_class` to the class of the model."""

    library = "diffusers"
    model_class = ModelMixin
    base_class: Any = None

    @classmethod
    def _check_can_load(cls) -> None:
        if cls.base_class is None:
            raise ValueError("The `base_class` attribute needs to be configured.")
        super()._check_can_load()

    @classmethod
    def _load(cls, folder: Path, qmap: dict[str, dict[str, str]], **kwargs: Any) -> torch.nn.Module:
        from accelerate import init_empty_weights

        if not (folder / CONFIG_NAME).is_file():
            raise ValueError(f"{CONFIG_NAME} not found in {folder}.")
        configured, saved = cls.base_class.__name__, read_json(folder / CONFIG_NAME).get("_class_name")
        if configured != saved:
            raise ValueError(
                f"Configured base class ({configured}) differs from what was derived from the provided configuration "
                f"({saved})."
            )
        with init_empty_weights():
            model = cls.base_class.from_config(cls.base_class.load_config(folder, **kwargs))
        tensors = read_tensors(folder, SAFETENSORS_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
        requantize(model, state_dict=tensors, quantization_map=qmap)
        return model


class QuantizedPixArtTransformer2DModel(QuantizedDiffusersModel):
    """A quantized PixArt transformer."""

    base_class = PixArtTransformer2DModel
