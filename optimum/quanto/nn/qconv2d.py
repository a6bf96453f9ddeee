"""Quantized two-dimensional convolutions."""

import torch

from .qconv import QConvMixin
from .qmodule import register_qmodule


__all__ = ["QConv2d"]


@register_qmodule(torch.nn.Conv2d)
class QConv2d(QConvMixin, torch.nn.Conv2d):  # type: ignore[misc]
    """`torch.nn.Conv2d` with a quantized weight (see `QConvMixin`)."""
