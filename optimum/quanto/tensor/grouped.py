"""Cutting a tensor into groups of elements that share a scale."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


__all__ = ["group", "grouped_shape", "ungroup"]


def _check_axis(axis: int) -> None:
    if axis not in (0, -1):
        raise ValueError(f"[group] axis: got {axis}, expected 0 or -1")


def grouped_shape(shape: Sequence[int], axis: int, group_size: int) -> tuple[int, int]:
    """The shape of the grouped tensor: `(groups, group_size)` for axis 0, `(group_size, groups)` for axis -1."""
    _check_axis(axis)
    groups = math.prod(shape) // group_size
    return (groups, group_size) if axis == 0 else (group_size, groups)


def group(base: Tensor, axis: int, group_size: int) -> Tensor:
    """Reshape `base` so that each row (axis 0) or column (axis -1) is a group of `group_size` elements.

    Raises:
        ValueError: the axis is neither 0 nor -1, or the group size does not divide the elements along it.
    """
    _check_axis(axis)
    along = base.numel() // base.shape[axis]
    if group_size > along or along % group_size != 0:
        raise ValueError(f"[group] group_size: got {group_size}, expected a divisor of {along}")
    if axis == 0:
        return base.reshape(-1, group_size)
    groups = along // group_size
    return base.reshape(groups, group_size, -1).permute(1, 2, 0).reshape(group_size, -1)


def ungroup(grouped: Tensor, axis: int, orig_shape: torch.Size) -> Tensor:
    """The inverse of `group`."""
    if grouped.shape == orig_shape or axis == 0:
        return grouped.reshape(orig_shape)
    group_size = grouped.shape[0]
    return grouped.reshape(group_size, orig_shape[-1], -1).permute(2, 0, 1).reshape(orig_shape)
