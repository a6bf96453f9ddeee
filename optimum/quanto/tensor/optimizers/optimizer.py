"""The base of all scale searches."""

from typing import Any


__all__ = ["Optimizer"]


class Optimizer:
    """A callable that returns the scale, or the scale and the shift, to quantize a tensor with."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"[{type(self).__name__}] __call__: expected an implementation")
