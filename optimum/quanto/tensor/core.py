"""Small helpers on dtypes and axes."""

import torch
from torch import Tensor


__all__ = ["axis_to_dim", "dtype_info"]


def dtype_info(dtype: torch.dtype) -> "torch.finfo | torch.iinfo":
    """`torch.finfo` or `torch.iinfo` of a dtype."""
    return torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)


def axis_to_dim(t: Tensor, axis: int) -> list[int]:
    """The dimensions to reduce so that only `axis` is left.

    Raises:
        ValueError: `axis` is neither -1 nor the index of a dimension.
    """
    kept = t.ndim - 1 if axis == -1 else axis
    if not 0 <= kept < t.ndim:
        raise ValueError(f"[axis_to_dim] axis: got {axis}, expected -1 or one of the {t.ndim} dimensions")
    return [dim for dim in range(t.ndim) if dim != kept]
