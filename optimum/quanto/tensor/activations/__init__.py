"""Quantized activations."""

from . import operations as operations  # fills the table of dispatch.py
from .per_token import *  # noqa: F403
from .qbytes import *  # noqa: F403
from .quantization import *  # noqa: F403
