"""Quantized embeddings."""

import torch
from torch import Tensor

from ..tensor import Optimizer, WeightQBitsTensor, WeightQBytesTensor, qtype
from .qmodule import QModuleMixin, register_qmodule, weight_kernel


__all__ = ["QEmbedding"]


@register_qmodule(torch.nn.Embedding)
class QEmbedding(QModuleMixin, torch.nn.Embedding):  # type: ignore[misc]
    """`torch.nn.Embedding` with a quantized table, of which each forward decodes the rows that it looks up.

    `quantize` replaces embeddings only with `embeddings=True`. Outputs are float: there is nothing to compute with
    their codes.
    """

    quantized_by_default = False

    @classmethod
    def qcreate(
        cls,
        module: torch.nn.Module,
        weights: qtype | None,
        activations: qtype | None = None,
        optimizer: Optimizer | None = None,
        device: torch.device | None = None,
    ) -> "QEmbedding | None":
        assert isinstance(module, torch.nn.Embedding)
        if weights is None or cls.reason_against(module) is not None:
            return None
        return cls(
            module.num_embeddings,
            module.embedding_dim,
            module.padding_idx,
            dtype=module.weight.dtype,
            device=device,
            weights=weights,
            optimizer=optimizer,
        )

    @classmethod
    def reason_against(cls, module: torch.nn.Module) -> str | None:
        assert isinstance(module, torch.nn.Embedding)
        options = {
            "max_norm": module.max_norm is not None,  # rewrites the rows that it looks up
            "scale_grad_by_freq": module.scale_grad_by_freq,
            "sparse": module.sparse,
        }
        used = [name for name, is_used in options.items() if is_used]
        return f"its option {' and '.join(used)} has no quantized form" if used else None

    @classmethod
    def probe(cls, module: torch.nn.Module) -> tuple[Tensor, Tensor]:
        assert isinstance(module, torch.nn.Embedding)
        indices = torch.arange(min(3, module.num_embeddings), device=module.weight.device)
        return indices, torch.nn.functional.embedding(indices, module.weight)

    def kernel(self, rows: int) -> str:
        return weight_kernel(self.weight, lambda _: "rows decoded by index")

    def forward(self, input: Tensor) -> Tensor:
        weight = self.forward_weight
        if isinstance(weight, WeightQBitsTensor | WeightQBytesTensor):
            return weight.embedding(input)
        return torch.nn.functional.embedding(input, weight, self.padding_idx)
