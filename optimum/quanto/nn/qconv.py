"""What quantized convolutions share."""

from typing import Any, TypeVar

import torch
from torch import Tensor

from ..ops import ConvWalk, runs_kernels
from ..tensor import Optimizer, WeightQBitsTensor, WeightQBytesTensor, qtype
from .qmodule import QModuleMixin, linear_kernel, weight_kernel


Self = TypeVar("Self", bound="QConvMixin")


class QConvMixin(QModuleMixin):
    """Base of the quantized forms of `torch.nn.Conv1d` and `torch.nn.Conv2d`. Frozen, their forward is one operator.

    The weight is quantized along its filters: a group of elements that share a scale lies within the flattened
    `(channels / groups, *kernel_size)` elements of a filter.
    """

    stride: Any
    dilation: Any
    groups: int
    padding_mode: str
    _reversed_padding_repeated_twice: Any
    _conv_forward: Any

    @classmethod
    def qcreate(
        cls: type[Self],
        module: torch.nn.Module,
        weights: qtype | None,
        activations: qtype | None = None,
        optimizer: Optimizer | None = None,
        device: torch.device | None = None,
    ) -> Self:
        assert isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d)
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

    def walk(self) -> ConvWalk:
        """How the convolution walks over its input."""
        pairs = self._reversed_padding_repeated_twice  # of the last dimension first
        padding = tuple(pairs[at] for start in range(len(pairs) - 2, -1, -2) for at in (start, start + 1))
        return ConvWalk(self.stride, padding, self.dilation, self.padding_mode, self.groups)

    def kernel(self, rows: int) -> str:
        if runs_kernels(self.walk(), rows, self.weight.shape, self.weight.dtype):
            return linear_kernel(self.weight, rows)
        return weight_kernel(self.weight, lambda _: "decodes the weight for torch's convolution")

    def forward(self, input: Tensor) -> Tensor:
        weight = self.forward_weight
        if isinstance(weight, WeightQBitsTensor | WeightQBytesTensor):
            return weight.conv(input, self.bias, self.walk())
        return self._conv_forward(input, weight, self.bias)
