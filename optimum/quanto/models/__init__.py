"""Quantized models of other libraries, with their saving and loading."""

from .base import is_diffusers_available, is_transformers_available


if is_transformers_available():
    from .transformers_models import *  # noqa: F403

if is_diffusers_available():
    from .diffusers_models import *  # noqa: F403
