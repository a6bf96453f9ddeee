"""The base of searches for symmetric scales."""

from torch import Tensor

from ..qtype import qtype as QType
from .optimizer import Optimizer


__all__ = ["SymmetricOptimizer"]


class SymmetricOptimizer(Optimizer):
    """Chooses a scale for 8-bit qtypes. Subclasses implement `optimize`."""

    def __call__(self, base: Tensor, qtype: QType, axis: int | None = None) -> Tensor:
        """The scale of `base` for `qtype`.

        Args:
            axis: 0 or -1 for one scale for each index of that dimension, None for a single scale.

        Returns:
            A scalar, or a tensor with as many dimensions as `base`, in its dtype.

        Raises:
            ValueError: another axis.
        """
        if axis not in (None, 0, -1):
            raise ValueError(f"[{type(self).__name__}] axis: got {axis}, expected None, 0 or -1")
        if axis is not None and base.shape[axis] == 1:
            axis = None
        scale = self.optimize(base, qtype, axis)
        if scale.dtype != base.dtype:
            raise TypeError(f"[{type(self).__name__}.optimize] scale: got {scale.dtype}, expected {base.dtype}")
        return scale

    def optimize(self, base: Tensor, qtype: QType, axis: int | None = None) -> Tensor:
        """The scale of `base`, in its dtype."""
        raise NotImplementedError(f"[{type(self).__name__}] optimize: expected an implementation")
