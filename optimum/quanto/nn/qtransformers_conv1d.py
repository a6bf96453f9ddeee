"""The quantized form of the linear layer of GPT-2. Imported with the first such layer that is quantized."""

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from ..tensor import Optimizer, qtype
from .qlinear import linear
from .qmodule import QModuleMixin, linear_kernel, register_qmodule


__all__ = ["QTransformersConv1D"]


class _Conv1D(Conv1D):  # type: ignore[misc]
    """`Conv1D` with the arguments that torch's own layers take."""

    def __init__(self, nf: int, nx: int, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        with torch.device("cpu" if device is None else device):
            super().__init__(nf, nx)
        self.to(dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(nf={self.nf}, nx={self.nx})"


@register_qmodule(Conv1D)
class QTransformersConv1D(QModuleMixin, _Conv1D):
    """`transformers.pytorch_utils.Conv1D` with a quantized weight.

    Its float weight is `(in, out)`. It is transposed once, when it is quantized: `weight` then has the shape
    `(out, in)`, in the module and in state dicts, and scales along its output channels like that of a `QLinear`.
    """

    supports_dynamic = True

    @classmethod
    def qcreate(
        cls,
        module: torch.nn.Module,
        weights: qtype | None,
        activations: qtype | None = None,
        optimizer: Optimizer | None = None,
        device: torch.device | None = None,
    ) -> "QTransformersConv1D":
        assert isinstance(module, Conv1D)
        return cls(
            module.nf,
            module.nx,
            dtype=module.weight.dtype,
            device=device,
            weights=weights,
            activations=activations,
            optimizer=optimizer,
            quantize_input=True,
        )

    @property
    def quantized_size(self) -> torch.Size:
        return torch.Size((self.nf, self.nx))

    def weight_to_quantize(self) -> Tensor:
        return self.weight.t().contiguous()

    def float_weight(self) -> Tensor:
        return super().float_weight().t().contiguous() if self.frozen else self.weight

    def kernel(self, rows: int) -> str:
        return linear_kernel(self.weight, rows, self.activation_qtype or self.dynamic_qtype)

    def forward(self, x: Tensor) -> Tensor:
        return linear(self, x)
