"""Quantized types, tensors and scale search."""

from .activations import *  # noqa: F403
from .core import *  # noqa: F403
from .fake_quantize import *  # noqa: F403
from .grouped import *  # noqa: F403
from .optimizers import *  # noqa: F403
from .packed import *  # noqa: F403
from .qbits import *  # noqa: F403
from .qbytes import *  # noqa: F403
from .qtensor import *  # noqa: F403
from .qtype import *  # noqa: F403
from .weights import *  # noqa: F403
