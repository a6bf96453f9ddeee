"""The way back: float modules in the place of quantized ones."""

from collections.abc import Collection
from typing import Any

import torch
from torch.nn import Parameter

from .nn import QModuleMixin
from .nn.experts import UnfusedExperts
from .nn.observed import OBSERVED, observer_name
from .nn.qmodule import replaced_class


__all__ = ["float_module", "unquantize"]

# What a quantized module has besides the one that it replaced.
_ATTRIBUTES = (
    "weight_qtype",
    "activation_qtype",
    "dynamic_qtype",
    "weight_group_size",
    "optimizer",
    "_quantize_hooks",
    "quantizes_input",
)
_SCALES = tuple(f"{kind}_scale" for kind in OBSERVED)


def float_module(qmodule: QModuleMixin) -> torch.nn.Module:
    """The module that `qmodule` replaced, with the tensors of `qmodule`; a frozen weight dequantized."""
    cls = replaced_class(qmodule)
    module = cls.__new__(cls)
    assert isinstance(qmodule, torch.nn.Module)
    ours = {*(hook.id for hook in qmodule._quantize_hooks.values()), *_SCALES, *map(observer_name, OBSERVED)}
    state = {key: value for key, value in vars(qmodule).items() if key not in _ATTRIBUTES}
    # The dictionaries are those of torch.nn.Module: of parameters, buffers, submodules and hooks.
    module.__dict__.update({k: _without(v, ours) if isinstance(v, dict) else v for k, v in state.items()})
    if qmodule.frozen:
        module._parameters["weight"] = Parameter(qmodule.float_weight(), requires_grad=False)
    return module


def _without(entries: dict[Any, Any], keys: Collection[Any]) -> dict[Any, Any]:
    return type(entries)((key, value) for key, value in entries.items() if key not in keys)


def unquantize(model: torch.nn.Module) -> None:
    """Replace the quantized modules of a model by float ones, in place; shared weights stay shared.

    The experts of a mixture become one module again.
    """
    replaced: dict[Any, torch.nn.Module] = {}
    weights: dict[int, Any] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, QModuleMixin):
            if module not in replaced:
                replaced[module] = float_module(module)
                parameters = replaced[module]._parameters
                parameters["weight"] = weights.setdefault(id(module.weight), parameters["weight"])
            model.set_submodule(name, replaced[module])
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, UnfusedExperts):
            model.set_submodule(name, replaced.setdefault(module, module.fused()))
