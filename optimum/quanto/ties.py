"""State dicts of models in which several modules share a quantized weight, or one stands in several places.

What is shared is saved once, under its first name, so that any file format can hold the state dict; loading gives it
to all that share it.
"""

from collections.abc import MutableMapping
from typing import Any

import torch

from .nn import QModuleMixin
from .tensor import PackedTensor, QTensor


def save_ties_once(model: torch.nn.Module) -> None:
    """Have state dicts of `model` hold each shared quantized weight once, if it has any."""
    if _ties(model) and _drop_copies not in model._state_dict_hooks.values():
        model._register_state_dict_hook(_drop_copies)
        model.register_load_state_dict_pre_hook(_fill_in)


def _identity(weight: Any) -> Any:
    """The same for weights that are one tensor, or made of the same memory."""
    stored = weight._data if isinstance(weight, QTensor) else weight  # type: ignore[attr-defined]
    stored = stored._data if isinstance(stored, PackedTensor) else stored
    return stored.untyped_storage()._cdata, stored.storage_offset(), tuple(weight.shape)


def _ties(model: torch.nn.Module) -> list[tuple[QModuleMixin, str, str]]:
    """The quantized modules that hold nothing, or no weight, of their own: how its keys begin, and the first's."""
    modules: dict[int, str] = {}
    weights: dict[Any, str] = {}
    found = []
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, QModuleMixin) or module.weight_qtype is None:
            continue
        first, owner = modules.setdefault(id(module), name), weights.setdefault(_identity(module.weight), name)
        if first != name:
            found.append((module, f"{name}.", f"{first}."))
        elif owner != name:
            found.append((module, f"{name}.weight.", f"{owner}.weight."))
    return found


def _drop_copies(model: Any, state_dict: MutableMapping[str, Any], prefix: str, local_metadata: Any) -> None:
    """State dict hook: remove what is there under an earlier name."""
    for module, start, _ in _ties(model):
        if module.frozen:
            for key in _keys(state_dict, prefix + start):
                del state_dict[key]


def _fill_in(model: Any, state_dict: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """Load hook: what one name has, the other has too."""
    for _module, start, first in _ties(model):
        for target, source in ((prefix + start, prefix + first), (prefix + first, prefix + start)):
            if not _keys(state_dict, target):
                state_dict.update(
                    {target + key.removeprefix(source): state_dict[key] for key in _keys(state_dict, source)}
                )


def _keys(state_dict: MutableMapping[str, Any], start: str) -> list[str]:
    return [key for key in state_dict if key.startswith(start)]
