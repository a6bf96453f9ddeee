"""Quantized modules."""

from .qconv2d import *  # noqa: F403
from .qlayernorm import *  # noqa: F403
from .qlinear import *  # noqa: F403
from .qmodule import *  # noqa: F403
