"""Affine scales from the extremes."""

import torch
from torch import Tensor

from ..qtype import qtype as QType
from .affine_optimizer import AffineOptimizer


__all__ = ["MaxOptimizer"]


class MaxOptimizer(AffineOptimizer):
    """`scale = (max - min) / (2^bits - 1)`, `shift = -min`: no element is clamped."""

    def optimize(self, base: Tensor, qtype: QType, axis: int) -> tuple[Tensor, Tensor]:
        scale, shift = torch.ops.quanto.minmax_scale(base, qtype.name, axis, None)
        return scale, shift
