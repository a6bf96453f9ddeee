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
        scale, shift = super().optimize(base, qtype, axis)
        codes, values = _requantize(base, qtype, axis, scale, shift)
        best_error = float((base - values).abs().mean())
        self._report("start", best_error)
        beta = self.beta
        candidate = shift
        for step in range(self.iters):
            residual = self._shrink(base - values, beta)
            candidate = (codes * scale - (base - residual)).mean(0 if axis == -1 else -1, keepdim=True)
            if candidate.shape != shift.shape:
                candidate = candidate.reshape(candidate.shape[0], -1).mean(1).reshape(shift.shape)
            codes, values = _requantize(base, qtype, axis, scale, candidate)
            error = float((base - values).abs().mean())
            self._report(f"step {step}", error)
            if not error < best_error:
                break
            best_error, shift = error, candidate
            beta *= self.kappa
        return scale, shift

    def _shrink(self, error: Tensor, beta: float) -> Tensor:
        magnitude = error.abs()
        if self.lp_norm == 1:
            threshold: Tensor | float = 1.0 / beta
        else:
            threshold = magnitude.pow(self.lp_norm - 1) / beta
        return error.sign() * torch.relu(magnitude - threshold)

    def _report(self, step: str, error: float) -> None:
        if self.verbose:
            print(f"HQQ {step}: mean absolute error {error:.6f}")


def _requantize(base: Tensor, qtype: QType, axis: int, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    codes = torch.ops.quanto.quantize_affine(base, qtype.bits, axis, None, scale, shift)
    values = torch.ops.quanto.dequantize_affine(codes, scale, shift, qtype.bits, axis, None, list(base.shape), False)
    return codes, values
