"""Symmetric scales from the largest magnitude."""

import torch
from torch import Tensor

from ..qtype import qtype as QType
from .symmetric_optimizer import SymmetricOptimizer


__all__ = ["AbsmaxOptimizer"]


class AbsmaxOptimizer(SymmetricOptimizer):
    """`scale = max |base| / qmax`: no element is clamped."""

    def optimize(self, base: Tensor, qtype: QType, axis: int | None = None) -> Tensor:
        return torch.ops.quanto.absmax_scale(base, qtype.name, axis)
