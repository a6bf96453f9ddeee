"""Kept for code written for earlier versions: `optimum.quanto.quantization` under its old name, and its helpers."""

import torch

from .nn import quantize_module
from .quantization import freeze, quantization_map, quantize, requantize
from .tensor import Optimizer, qtype


__all__ = ["freeze", "quantization_map", "quantize", "requantize"]


def set_module_by_name(parent_module: torch.nn.Module, name: str, child_module: torch.nn.Module) -> None:
    """Put a module where the submodule of that name is, or goes."""
    parent, _, last = name.rpartition(".")
    setattr(parent_module.get_submodule(parent), last, child_module)


def _quantize_submodule(
    model: torch.nn.Module,
    name: str,
    module: torch.nn.Module,
    weights: str | qtype | None = None,
    activations: str | qtype | None = None,
    optimizer: Optimizer | None = None,
) -> None:
    """Replace a submodule by its quantized form if there is one; programs that walk models by themselves do so."""
    qmodule = quantize_module(module, weights=weights, activations=activations, optimizer=optimizer)
    if qmodule is None:
        return
    if name == "":
        raise ValueError(f"[quantize] name: got the empty one of a {type(module).__name__}, expected a submodule's")
    assert isinstance(qmodule, torch.nn.Module)
    set_module_by_name(model, name, qmodule)
    qmodule.name = name  # type: ignore[assignment]
