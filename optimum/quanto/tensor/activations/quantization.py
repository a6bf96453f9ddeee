"""Quantizing activations with a given scale."""

from torch import Tensor

from ..qtype import qtype as QType
from .qbytes import ActivationQBytesTensor


__all__ = ["quantize_activation"]


def quantize_activation(t: Tensor, qtype: QType, scale: Tensor) -> ActivationQBytesTensor:
    """Quantize activations.

    Args:
        t: activations of any shape; integers are taken as numbers in the dtype of the scale.
        qtype: an 8-bit qtype.
        scale: a scalar tensor.

    Raises:
        ValueError: the scale is not a scalar, or the qtype has fewer than 8 bits.
    """
    if scale.numel() != 1:
        raise ValueError(f"[quantize_activation] scale: got shape {tuple(scale.shape)}, expected a scalar")
    if not t.is_floating_point():
        t = t.to(scale.dtype)
    return ActivationQBytesTensor.quantize(t, qtype, scale.reshape(()))
