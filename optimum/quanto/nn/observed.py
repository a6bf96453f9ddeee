"""What observers keep of the inputs and outputs of a quantized module, in its state dict."""

from collections.abc import Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor


__all__ = ["ObserverState", "make_observer_states", "observer_tensors", "restore_observer_states"]

OBSERVED = ("input", "output")


class ObserverState(torch.nn.Module, MutableMapping[str, Tensor]):
    """A mapping of names to tensors, which are buffers."""

    def __getitem__(self, name: str) -> Tensor:
        buffer = self._buffers[name]
        assert buffer is not None
        return buffer

    def __setitem__(self, name: str, value: Tensor) -> None:
        self._buffers[name] = value

    def __delitem__(self, name: str) -> None:
        del self._buffers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._buffers)

    def __len__(self) -> int:
        return len(self._buffers)

    __hash__ = torch.nn.Module.__hash__
    __eq__ = object.__eq__


def observer_name(kind: str) -> str:
    """The name under which a module has its `ObserverState`. `kind`: input or output."""
    return f"{kind}_observer"


def restore_observer_states(module: Any, state_dict: MutableMapping[str, Tensor], prefix: str) -> None:
    """Give a module the observer states that a state dict has, and no others. Their values are loaded next."""
    for kind in OBSERVED:
        name = observer_name(kind)
        begin = f"{prefix}{name}."
        tensors = {key.removeprefix(begin): t for key, t in state_dict.items() if key.startswith(begin)}
        module._modules.pop(name, None)
        if not tensors:
            continue
        state = ObserverState()
        for key, t in tensors.items():
            state[key] = torch.empty_like(t, device=module.input_scale.device)
        module.add_module(name, state)


def observer_tensors(model: torch.nn.Module) -> dict[str, dict[str, Any]]:
    """The name, dtype and shape of each tensor that observers keep in a model, as JSON can hold them."""
    states = [(name, m) for name, m in model.named_modules() if isinstance(m, ObserverState)]
    return {
        f"{name}.{key}": {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)}
        for name, state in states
        for key, t in state.items()
    }


def make_observer_states(model: torch.nn.Module, tensors: dict[str, dict[str, Any]]) -> None:
    """Give a model those tensors, without values, on the devices of its scales.

    Raises:
        ValueError: one belongs to no quantized module, or is not described by a dtype and a shape.
    """
    for name, described in tensors.items():
        parent, state_name, key = name.rsplit(".", 2)
        try:
            module: Any = model.get_submodule(parent)
            device, dtype = module.input_scale.device, getattr(torch, described["dtype"])
            tensor = torch.empty(described["shape"], dtype=dtype, device=device)
        except (AttributeError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"[from_pretrained] observers: {name}: got {described}, {error}") from error
        if not hasattr(module, state_name):
            module.add_module(state_name, ObserverState())
        getattr(module, state_name)[key] = tensor
