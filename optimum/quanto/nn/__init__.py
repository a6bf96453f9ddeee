"""Quantized modules."""

from .qconv1d import *  # noqa: F403
from .qconv2d import *  # noqa: F403
from .qembedding import *  # noqa: F403
from .qlayernorm import *  # noqa: F403
from .qlinear import *  # noqa: F403
from .qmodule import *  # noqa: F403
