"""Quantizing a weight with given scales."""

from torch import Tensor

from ..qtype import qtype as QType
from .qbits import WeightQBitsTensor
from .qbytes import WeightQBytesTensor


__all__ = ["quantize_weight"]


def quantize_weight(
    t: Tensor,
    qtype: QType,
    axis: int,
    scale: Tensor,
    shift: Tensor | None = None,
    group_size: int | None = None,
    activation_qtype: QType | None = None,
    optimized: bool | None = True,
) -> WeightQBytesTensor | WeightQBitsTensor:
    """Quantize a weight.

    Args:
        t: the float weight, at least 2-D.
        qtype: the target; 8-bit qtypes take a scale, `qint4` and `qint2` a scale and a shift.
        axis: 0 or -1, the dimension that the scales run along.
        scale: one for each index of `axis`, or for each group (see `group`).
        shift: as many; float or uint8.
        group_size: elements that share a scale, for `qint4` and `qint2`.
        activation_qtype: the qtype of the activations that the weight will meet, kept with it.
        optimized: accepted for compatibility; there is one layout for all kernels.

    Raises:
        ValueError: an argument does not fit the qtype.
    """
    if axis not in (0, -1):
        raise ValueError(f"[quantize_weight] axis: got {axis}, expected 0 (first axis) or -1 (last axis)")
    if qtype.bits == 8:
        if shift is not None:
            raise ValueError(f"[quantize_weight] shift: got one, expected None for {qtype.name}")
        if group_size is not None:
            raise ValueError(f"[quantize_weight] group_size: got {group_size}, expected None for {qtype.name}")
        # An axis of size 1 has a single scale.
        per_axis = None if t.shape[axis] == 1 else axis
        return WeightQBytesTensor.quantize(t, qtype, per_axis, scale, activation_qtype, optimized)
    if shift is None:
        raise ValueError(f"[quantize_weight] shift: got None, expected one for each scale for {qtype.name}")
    return WeightQBitsTensor.quantize(t, qtype, axis, group_size, scale, shift, optimized)
