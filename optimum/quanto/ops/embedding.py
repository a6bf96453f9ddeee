"""Rows of quantized tables."""

import torch
from torch import Tensor


def embedding_qbytes(indices: Tensor, data: Tensor, scale: Tensor) -> Tensor:
    """Decoded rows of an 8-bit table.

    Args:
        indices: of any shape, int32 or int64.
        data: codes `(rows, columns)`, int8 or float8.
        scale: one element for each row, or a single one.

    Returns:
        `(*indices.shape, columns)` in the dtype of `scale`: the bits that dequantizing the whole table would give.

    Raises:
        IndexError: an index names no row.
    """
    return torch.ops.quanto.embedding_qbytes(indices, data, scale)


def embedding_qbits(
    indices: Tensor, data: Tensor, scale: Tensor, shift: Tensor, bits: int, group_size: int, size: tuple[int, int]
) -> Tensor:
    """Decoded rows of a packed 2- or 4-bit table of shape `size` (see `embedding_qbytes` and `linear_qbits`)."""
    return torch.ops.quanto.embedding_qbits(indices, data, scale, shift, bits, group_size, list(size))
