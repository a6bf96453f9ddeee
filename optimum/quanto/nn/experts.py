"""Mixtures of experts whose weights are stored as one tensor for all experts, taken apart into linear layers.

Such modules, as transformers has them, hold `gate_up_proj` (or `up_proj`) and `down_proj` of three dimensions, the
first for the experts. They have no linear layers that could be quantized, so they are replaced by modules that do,
called `<experts>.<index>.gate_up_proj` and so on.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


__all__ = ["UnfusedExperts", "is_fused_experts", "unfused_experts"]

_FACTS = ("num_experts", "has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "_apply_gate")


def projection_names(module: torch.nn.Module) -> tuple[str, str]:
    """The names of the two projections of each expert."""
    return "gate_up_proj" if module.has_gate else "up_proj", "down_proj"


def is_fused_experts(module: torch.nn.Module) -> bool:
    """Whether a module holds the weights of several experts in tensors of three dimensions."""
    if isinstance(module, UnfusedExperts) or not all(hasattr(module, fact) for fact in _FACTS):
        return False
    weights = [getattr(module, name, None) for name in projection_names(module)]
    return all(isinstance(weight, Parameter) and weight.ndim == 3 for weight in weights)


class Expert(torch.nn.Module):
    """The projections of one expert; `UnfusedExperts` computes with them."""


class UnfusedExperts(torch.nn.Module):
    """Experts with linear layers of their own, which share the memory of the tensors that they are cut from.

    Its inputs are tokens (tokens, features), and for each token the indices and weights of the experts that it goes
    to, both (tokens, experts per token). An index beyond the last expert stands for none.
    """

    num_experts: int
    has_gate: bool
    has_post_expert_norm: bool
    is_transposed: bool
    act_fn: Any
    post_expert_norm: Any

    def __init__(self, fused: torch.nn.Module) -> None:
        super().__init__()
        self.__dict__.update(_own_attributes(fused))  # the activation between the projections may need them
        self.training = fused.training
        self.fused_class: Any = type(fused)
        self.projections = projection_names(fused)
        for index in range(fused.num_experts):  # type: ignore[arg-type]
            expert = Expert()
            for name in self.projections:
                expert.add_module(name, _projection(fused, name, index))
            self.add_module(str(index), expert)
        for name, child in fused.named_children():
            self.add_module(name, child)

    def slice_of(self, parameter: Tensor, index: int, is_bias: bool = False) -> Tensor:
        """The part of a fused parameter that belongs to an expert, in the layout of a linear layer."""
        return parameter[index].t() if self.is_transposed and not is_bias else parameter[index]

    def fused(self) -> torch.nn.Module:
        """A module like the one that this was made of, with the weights of the layers, which are float."""
        module: torch.nn.Module = self.fused_class.__new__(self.fused_class)
        torch.nn.Module.__init__(module)
        module.__dict__.update(_own_attributes(self))
        del module.fused_class, module.projections
        for name in self.projections:
            layers = [getattr(getattr(self, str(index)), name) for index in range(self.num_experts)]
            weights = [layer.weight.t() if self.is_transposed else layer.weight for layer in layers]
            module.register_parameter(name, Parameter(torch.stack(weights)))
            if layers[0].bias is not None:
                module.register_parameter(f"{name}_bias", Parameter(torch.stack([layer.bias for layer in layers])))
        for name, child in self.named_children():
            if not isinstance(child, Expert):
                module.add_module(name, child)
        return module.train(self.training)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        choices, weights = top_k_index.reshape(-1).clamp(max=self.num_experts), top_k_weights.reshape(-1)
        parts = choices.argsort(stable=True).split_with_sizes(_sizes(choices, self.num_experts + 1))
        output = torch.zeros_like(hidden_states)
        for index in range(self.num_experts):
            part = parts[index]
            # Whether there are any is not known while a graph is traced; kernels return at once if there are none.
            if torch.compiler.is_compiling() or len(part) > 0:
                tokens = part // top_k_index.shape[-1]
                weighted = self._expert(index, hidden_states[tokens]) * weights[part].unsqueeze(-1)
                output.index_add_(0, tokens, weighted.to(output.dtype))
        return output

    def _expert(self, index: int, x: Tensor) -> Tensor:
        up, down = (getattr(getattr(self, str(index)), name) for name in self.projections)
        x = up(x)
        x = self.fused_class._apply_gate(self, x) if self.has_gate else self.act_fn(x)
        x = down(x)
        return self.post_expert_norm(x) if self.has_post_expert_norm else x


def _sizes(choices: Tensor, bins: int) -> list[int]:
    """How often each number below `bins` occurs; a graph holds the counts as symbols."""
    counts = (choices == torch.arange(bins, device=choices.device).unsqueeze(1)).sum(1)
    if not torch.compiler.is_compiling():
        return counts.tolist()
    with torch._dynamo.patch_dynamo_config(capture_scalar_outputs=True):
        sizes = counts.tolist()
    for size in sizes:
        torch._check(size >= 0)
        torch._check(size <= choices.shape[0])
    return sizes


def _own_attributes(module: torch.nn.Module) -> dict[str, Any]:
    """What a module has besides that of every module."""
    common = vars(torch.nn.Module())
    return {name: value for name, value in vars(module).items() if name not in common}


def _projection(fused: torch.nn.Module, name: str, index: int) -> torch.nn.Linear:
    weight: Any = getattr(fused, name)
    rows = weight[index].t() if fused.is_transposed else weight[index]
    linear = torch.nn.Linear(rows.shape[1], rows.shape[0], bool(fused.has_bias), device="meta", dtype=weight.dtype)
    linear.weight = Parameter(rows.detach(), weight.requires_grad)
    if fused.has_bias:
        bias = getattr(fused, f"{name}_bias")
        linear.bias = Parameter(bias[index].detach(), bias.requires_grad)
    return linear.train(fused.training)


def unfused_experts(
    model: torch.nn.Module, is_wanted: Callable[[str], bool]
) -> dict[torch.nn.Module, torch.nn.Module]:
    """What to replace the fused experts of a model by: those with a projection whose name `is_wanted`."""
    found: dict[torch.nn.Module, torch.nn.Module] = {}
    for name, module in model.named_modules():
        if is_fused_experts(module):
            experts = range(module.num_experts)
            if any(is_wanted(f"{name}.{i}.{part}") for i in experts for part in projection_names(module)):
                found[module] = UnfusedExperts(module)
    return found
