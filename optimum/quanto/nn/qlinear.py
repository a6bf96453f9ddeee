"""Quantized linear layers."""

import torch
from torch import Tensor

from ..tensor import Optimizer, WeightQBitsTensor, WeightQBytesTensor, linear_per_token, qtype
from .qmodule import QModuleMixin, linear_kernel, register_qmodule


__all__ = ["QLinear"]

_WEIGHTS = (WeightQBitsTensor, WeightQBytesTensor)


def linear(module: QModuleMixin, input: Tensor) -> Tensor:
    """What a linear layer with the weight and the bias of `module` computes, frozen or not."""
    weight = module.forward_weight
    if module.dynamic_qtype is not None:
        return linear_per_token(input, weight, module.bias, module.dynamic_qtype.dtype)
    if isinstance(weight, _WEIGHTS):
        return weight.linear(input, module.bias)
    if module.weight_qtype is not None and module.weight_qtype.bits == 8 and input.dtype != weight.dtype:
        input = input.to(weight.dtype)  # as the frozen weight does
    return torch.nn.functional.linear(input, weight, module.bias)


@register_qmodule(torch.nn.Linear)
class QLinear(QModuleMixin, torch.nn.Linear):
    """`torch.nn.Linear` with a quantized weight. Frozen, its forward is one operator."""

    supports_dynamic = True

    @classmethod
    def qcreate(
        cls,
        module: torch.nn.Module,
        weights: qtype | None,
        activations: qtype | None = None,
        optimizer: Optimizer | None = None,
        device: torch.device | None = None,
    ) -> "QLinear":
        assert isinstance(module, torch.nn.Linear)
        return cls(
            module.in_features,
            module.out_features,
            module.bias is not None,
            dtype=module.weight.dtype,
            device=device,
            weights=weights,
            activations=activations,
            optimizer=optimizer,
            quantize_input=True,
        )

    @classmethod
    def probe(cls, module: torch.nn.Module) -> tuple[Tensor, Tensor]:
        assert isinstance(module, torch.nn.Linear)
        ramp = torch.linspace(-1, 1, 2 * module.in_features, dtype=module.weight.dtype, device=module.weight.device)
        input = ramp.reshape(2, module.in_features)
        return input, torch.nn.functional.linear(input, module.weight, module.bias)

    def kernel(self, rows: int) -> str:
        return linear_kernel(self.weight, rows, self.activation_qtype or self.dynamic_qtype)

    def forward(self, input: Tensor) -> Tensor:
        # What self.weight and self.bias find, without Module.__getattr__: that costs as much as the rest of this.
        parameters = self._parameters
        weight: Tensor | None = parameters.get("weight")
        if isinstance(weight, _WEIGHTS) and "bias" in parameters and self.dynamic_qtype is None:
            return weight.linear(input, parameters["bias"])
        return linear(self, input)
