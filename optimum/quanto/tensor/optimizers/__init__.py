"""Scale search: algorithms that choose the scale, and the shift, of a tensor."""

from .absmax_optimizer import *  # noqa: F403
from .affine_optimizer import *  # noqa: F403
from .hqq_optimizer import *  # noqa: F403
from .max_optimizer import *  # noqa: F403
from .optimizer import *  # noqa: F403
from .symmetric_optimizer import *  # noqa: F403
