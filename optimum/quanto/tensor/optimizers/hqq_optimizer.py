"""Half-quadratic quantization."""

import torch
from torch import Tensor

from ..qtype import qtype as QType
from .max_optimizer import MaxOptimizer


__all__ = ["HqqOptimizer"]


class HqqOptimizer(MaxOptimizer):
    """Refines the shifts of `MaxOptimizer` so that the quantization error is small in a norm that ignores outliers.

    Alternates between shrinking the error with the proximal operator of the l_p norm and solving for the shift, as
    described in "Half-Quadratic Quantization of Large Machine Learning Models" (Badri and Shaji, 2023). Stops when the
    mean absolute error no longer falls.

    Args:
        lp_norm: p, in (0, 1].
        beta: initial weight of the quadratic term.
        kappa: factor by which `beta` grows with each step.
        iters: largest number of steps.
        verbose: print the error of each step.
    """

    def __init__(
        self,
        lp_norm: float = 0.7,
        beta: float = 1e1,
        kappa: float = 1.01,
        iters: int = 20,
        verbose: bool = False,
    ) -> None:
        self.lp_norm = lp_norm
        self.beta = beta
        self.kappa = kappa
        self.iters = iters
        self.verbose = verbose

    def optimize(self, base: Tensor, qtype: QType, axis: int) -> tuple[Tensor, Tensor]:
        scale, shift, errors = torch.ops.quanto.hqq_scale(
            base, qtype.name, axis, float(self.lp_norm), float(self.beta), float(self.kappa), int(self.iters)
        )
        if self.verbose:
            for step, error in enumerate(errors[errors != -1].tolist()):
                print(f"HQQ {f'step {step}' if step else 'start'}: mean absolute error {error:.6f}")
        return scale, shift
