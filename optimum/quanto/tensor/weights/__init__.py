"""Quantized weights."""

from .qbits import *  # noqa: F403
from .qbytes import *  # noqa: F403
from .quantization import *  # noqa: F403
