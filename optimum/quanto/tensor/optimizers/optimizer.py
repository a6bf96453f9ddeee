"""The base of all scale searches."""

from abc import ABC, abstractmethod
from typing import Any


__all__ = ["Optimizer"]


class Optimizer(ABC):
    """A callable that returns the scale, or the scale and the shift, to quantize a tensor with."""

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
