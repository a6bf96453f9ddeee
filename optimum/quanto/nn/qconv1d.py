"""Quantized one-dimensional convolutions."""

import torch

from .qconv import QConvMixin
from .qmodule import register_qmodule


__all__ = ["QConv1d"]


@register_qmodule(torch.nn.Conv1d)
class QConv1d(QConvMixin, torch.nn.Conv1d):  # type: ignore[misc]
    """`torch.nn.Conv1d` with a quantized weight (see `QConvMixin`)."""
