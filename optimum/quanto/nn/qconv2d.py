"""Quantized two-dimensional convolutions."""

import torch
from torch import Tensor

from ..tensor import Optimizer, qtype
from .qmodule import QModuleMixin, register_qmodule


__all__ = ["QConv2d"]


@register_qmodule(torch.nn.Conv2d)
class QConv2d(QModuleMixin, torch.nn.Conv2d):
    """`torch.nn.Conv2d` with a quantized weight, which each forward decodes before torch's convolution."""

    @classmethod
    def qcreate(
        cls,
        module: torch.nn.Module,
        weights: qtype | None,
        activations: qtype | None = None,
        optimizer: Optimizer | None = None,
        device: torch.device | None = None,
    ) -> "QConv2d":
        assert isinstance(module, torch.nn.Conv2d)
        return cls(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            groups=module.groups,
            bias=module.bias is not None,
            padding_mode=module.padding_mode,
            dtype=module.weight.dtype,
            device=device,
            weights=weights,
            activations=activations,
            optimizer=optimizer,
        )

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.forward_weight, self.bias)
