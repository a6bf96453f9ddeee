"""Small helpers on dtypes and axes."""

import torch
from torch import Tensor


__all__ = ["axis_to_dim", "dtype_info"]


def dtype_info(dtype: torch.dtype) -> "torch.finfo | torch.iinfo":
    """`torch.finfo` or `torch.iinfo` of a dtype."""
    return torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)


def axis_to_dim(t: Tensor, axis: int) -> list[int]:
    """The dimensions to reduce so that only `axis` is left."""
    dims = list(range(t.ndim))
    dims.pop(axis)
    return dims
