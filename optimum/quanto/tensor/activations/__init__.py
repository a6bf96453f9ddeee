"""Quantized activations."""

from .qbytes import *  # noqa: F403
from .quantization import *  # noqa: F403
