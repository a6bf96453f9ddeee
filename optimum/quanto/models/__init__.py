"""Quantized models of other libraries, with their saving and loading; each library is imported when it is needed."""

import importlib
from typing import TYPE_CHECKING, Any

from .base import is_diffusers_available, is_transformers_available


_HOME_OF = {
    "QuantizedModelForCausalLM": "transformers_models",
    "QuantizedTransformersModel": "transformers_models",
    "QuantizedDiffusersModel": "diffusers_models",
    "QuantizedPixArtTransformer2DModel": "diffusers_models",
}
_IS_AVAILABLE = {"transformers_models": is_transformers_available(), "diffusers_models": is_diffusers_available()}

__all__ = [name for name, home in _HOME_OF.items() if _IS_AVAILABLE[home]]

if TYPE_CHECKING:
    from .diffusers_models import *  # noqa: F403
    from .transformers_models import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
