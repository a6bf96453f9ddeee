"""Quantized linear layers."""

from typing import Any

import torch
from torch import Tensor

from ..tensor import Optimizer, WeightQBitsTensor, WeightQBytesTensor, linear_per_token, qtype
from ..tensor.qtensor import wants_grad
from ..tensor.wrapper import WrapperTensor
from .qmodule import QModuleMixin, linear_kernel, register_qmodule


__all__ = ["QLinear"]

_is_traced = torch.compiler.is_dynamo_compiling
# By torch.jit.trace, whose check compares the places in the source that operators were called from: those of calls
# with and without gradients have to be the same.
_is_recorded = torch._C._is_tracing
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
    """`torch.nn.Linear` with a quantized weight. Frozen, its forward is one operator, which also quantizes
    the input where there is a qtype for activations.

    Attributes:
        quantizes_input: whether the forward quantizes inputs that are not quantized yet. A hook would do, as in other
            classes, but hooks and the tensor subclass that they pass on cost more than the layers of small models.
    """

    supports_dynamic = True
    quantizes_input = False

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

    def enable_input_quantization(self) -> None:
        if type(self).forward is not QLinear.forward:  # a subclass that knows nothing of it
            return super().enable_input_quantization()
        self.quantizes_input = self.activation_qtype is not None

    def forward(self, input: Tensor) -> Tensor:
        traced = _is_traced()
        if traced and not torch.compiler.is_exporting():
            return self.traced_forward(input)
        # What self.weight and self.bias find, without Module.__getattr__: that costs as much as the rest of this.
        parameters = self._parameters
        weight: Tensor | None = parameters.get("weight")
        kind: Any = type(weight)
        if kind not in _WEIGHTS or "bias" not in parameters or self.dynamic_qtype is not None:
            return self.general_forward(input)
        bias = parameters["bias"]
        if self.quantizes_input:
            return self.quantizing_forward(input, weight, bias)
        if traced or _is_recorded():
            return kind.linear(weight, input, bias)
        # Asking the weight for these would look into its dict first.
        return kind.linear(weight, input, bias, kind.untraced_operator)

    def general_forward(self, input: Tensor) -> Tensor:
        """`forward` in every case, without its shortcuts."""
        return linear(self, self.quantize_input(self, (input,))[0] if self.quantizes_input else input)

    def quantizing_forward(self, input: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """`forward` with a quantized weight, where inputs are quantized too."""
        scale: Any = self._buffers["input_scale"]
        if _takes_codes_of(input, weight, bias, scale):
            assert self.activation_qtype is not None
            return weight.linear_quantizing(input, self.activation_qtype.dtype, scale, bias)
        return weight.linear(self.quantize_input(self, (input,))[0], bias)

    def traced_forward(self, input: Tensor) -> Tensor:
        """`forward` for torch.compile. What it reads becomes guards, which each call of the compiled code checks, in
        memory that the weights have pushed out of the caches. So it asks the weight for nothing."""
        weight = self.weight
        if not isinstance(weight, _WEIGHTS) or self.dynamic_qtype is not None:
            return self.general_forward(input)
        if self.quantizes_input:
            return self.quantizing_forward(input, weight, self.bias)
        if torch.is_grad_enabled():
            return weight.linear(input, self.bias)
        return torch.ops.quanto.linear(input, weight, self.bias)


def _takes_codes_of(input: Tensor, weight: Any, bias: Tensor | None, scale: Any) -> bool:
    """Whether one operator can quantize an input and multiply its codes."""
    if isinstance(input, WrapperTensor) or not weight.takes_codes or scale is None or scale.ndim != 0:
        return False
    if torch.is_grad_enabled() and (
        input.requires_grad or wants_grad(weight) or (bias is not None and bias.requires_grad)
    ):
        return False
    return input.is_floating_point() and input.device == weight._scale.device
