"""The base of searches for affine scales."""

import torch
from torch import Tensor

from ..grouped import group
from ..qtype import qtype as QType
from .optimizer import Optimizer


__all__ = ["AffineOptimizer"]


class AffineOptimizer(Optimizer):
    """Chooses a scale and a shift for `qint4` and `qint2`. Subclasses implement `optimize`."""

    def __call__(
        self, base: Tensor, qtype: QType, axis: int, group_size: int | None = None, zeropoint: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The scale and the shift of `base` for `qtype`.

        Args:
            axis: 0 or -1, the dimension that the scales run along.
            group_size: elements that share a scale, a divisor of the elements of each index of `axis`; None for all.
            zeropoint: round the shift to a uint8 zero point, so that zero is represented exactly.

        Returns:
            Two tensors of one element for each group: in the dtype of `base`, but for a zero point.

        Raises:
            ValueError: another axis, or a group size that does not divide.
        """
        if axis not in (0, -1):
            raise ValueError(f"[{type(self).__name__}] axis: got {axis}, expected 0 or -1")
        if group_size is not None:
            base = group(base, axis, group_size)
        scale, shift = self.optimize(base, qtype, axis)
        if scale.dtype != base.dtype or shift.dtype != base.dtype:
            got = f"{scale.dtype} and {shift.dtype}"
            raise TypeError(f"[{type(self).__name__}.optimize] scale, shift: got {got}, expected {base.dtype}")
        return _with_zero_point(scale, shift, qtype) if zeropoint else (scale, shift)

    def optimize(self, base: Tensor, qtype: QType, axis: int) -> tuple[Tensor, Tensor]:
        """The scale and the shift of each row (axis 0) or column (axis -1) of `base`, in its dtype."""
        raise NotImplementedError(f"[{type(self).__name__}] optimize: expected an implementation")


def _with_zero_point(scale: Tensor, shift: Tensor, qtype: QType) -> tuple[Tensor, Tensor]:
    # A constant range has no scale; a zero point needs one, and its magnitude makes it exact.
    scale = torch.where(scale == 0, shift.abs(), scale)
    ratio = torch.where(scale == 0, 0.0, shift / scale)
    return scale, ratio.round().clamp(0, 2**qtype.bits - 1).to(torch.uint8)
