"""Layer normalization with quantized outputs."""

import torch
from torch import Tensor

from ..tensor import Optimizer, qtype
from .qmodule import QModuleMixin, register_qmodule


__all__ = ["QLayerNorm"]


@register_qmodule(torch.nn.LayerNorm)
class QLayerNorm(QModuleMixin, torch.nn.LayerNorm):
    """`torch.nn.LayerNorm` whose outputs are quantized; its own weight stays float."""

    @classmethod
    def qcreate(
        cls,
        module: torch.nn.Module,
        weights: qtype | None = None,
        activations: qtype | None = None,
        optimizer: Optimizer | None = None,
        device: torch.device | None = None,
    ) -> "QLayerNorm | None":
        assert isinstance(module, torch.nn.LayerNorm)
        if activations is None:
            return None
        return cls(
            module.normalized_shape,
            module.eps,
            module.elementwise_affine,
            module.bias is not None,
            dtype=None if module.weight is None else module.weight.dtype,
            device=device,
            weights=None,
            activations=activations,
            optimizer=None,
        )

    def forward(self, input: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
