"""Quantizing, freezing and reloading whole models."""

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any
from weakref import WeakKeyDictionary

import torch

from .nn import QModuleMixin, quantize_module
from .nn.experts import unfused_experts
from .nn.qmodule import qmodule_of, reason_left_float
from .ops.library import release_freed_memory
from .tensor import Optimizer, QTensor, qtype
from .tensor.qtype import as_qtype
from .tensor.wrapper import FLOAT_DTYPES, same_values
from .ties import save_ties_once


__all__ = ["freeze", "quantization_map", "quantize", "requantize"]

Patterns = str | Sequence[str] | None

# Modules that the patterns of `quantize` kept float, for the report; copies of a model are not in it.
_NOT_ASKED_FOR: "WeakKeyDictionary[torch.nn.Module, str]" = WeakKeyDictionary()

_LARGE_FLOAT_SHARE = 0.5


def _pattern_list(patterns: Patterns, what: str) -> list[str] | None:
    if patterns is None:
        return None
    several = isinstance(patterns, Iterable) and not isinstance(patterns, str)
    found: list[Any] = list(patterns) if several else [patterns]
    if not all(isinstance(pattern, str) for pattern in found):
        raise TypeError(f"[quantize] {what}: got {patterns!r}, expected a pattern or a list of patterns")
    return found


def _replace_modules(model: torch.nn.Module, replacements: Mapping[torch.nn.Module, torch.nn.Module]) -> None:
    """Put every replacement wherever its module stands: shared modules stay shared."""
    for parent in list(model.modules()):
        # named_children would name a module that stands twice only once.
        for name, child in list(parent._modules.items()):
            if child is not None and child in replacements:
                setattr(parent, name, replacements[child])


def _named(name: str, qmodule: QModuleMixin | None, dynamic: qtype | None = None) -> torch.nn.Module | None:
    if qmodule is None:
        return None
    if dynamic is not None:
        qmodule.quantize_dynamically(dynamic)
    assert isinstance(qmodule, torch.nn.Module)
    qmodule.name = name  # type: ignore[assignment]
    return qmodule


def quantize(
    model: torch.nn.Module,
    weights: str | qtype | None = None,
    activations: str | qtype | None = None,
    optimizer: Optimizer | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    dynamic: bool = False,
    embeddings: bool = False,
) -> None:
    """Replace the modules of a model by quantized ones, in place.

    The weights stay float until `freeze`; each forward quantizes them anew, so that the model can be calibrated and
    trained first. Modules that are frozen already are left alone. On an error the model is unchanged.

    Args:
        model: its submodules are replaced.
        weights: qtype of the weights or its name (`qint8`, `qint4`, `qint2`, `qfloat8`, ...), or None.
        activations: 8-bit qtype of the activations or its name, or None. Needs calibration (see `Calibration`), unless
            they are dynamic.
        optimizer: scale search for the weights.
        include: patterns as of `fnmatch`; only submodules whose name matches one are quantized.
        exclude: patterns; submodules whose name matches one are not.
        dynamic: quantize the inputs of linear layers in each forward, each token (row of the last dimension) with a
            scale of its own: no calibration. Their outputs and the inputs of other modules stay float.
        embeddings: quantize the tables of `torch.nn.Embedding` too. One that is tied to a linear layer shares its
            quantized bytes with it once both are frozen.

    Raises:
        ValueError: an unknown qtype, or a `model` that is itself a layer to quantize.
        TypeError: an argument of the wrong kind; an optimizer that does not search scales.
    """
    require_module(model, "quantize")
    weights, activations = as_qtype(weights, "weights"), as_qtype(activations, "activations")
    if dynamic and activations is None:
        raise ValueError("[quantize] activations: got None, expected an 8-bit qtype for dynamic=True")
    included, excluded = _pattern_list(include, "include"), _pattern_list(exclude, "exclude")
    if reason_left_float(model, embeddings) is None:
        raise ValueError(
            f"[quantize] model: got a {type(model).__name__}, expected a model with submodules; for a single layer "
            "use quantize_module"
        )

    def is_wanted(name: str) -> bool:
        return _reason_not_asked_for(name, included, excluded) is None

    def quantized(name: str, module: torch.nn.Module) -> torch.nn.Module | None:
        _NOT_ASKED_FOR.pop(module, None)
        reason = _reason_not_asked_for(name, included, excluded)
        if reason is not None:
            _NOT_ASKED_FOR[module] = reason
            return None
        if isinstance(module, QModuleMixin) and module.frozen:
            return None
        static = None if dynamic else activations
        qmodule = quantize_module(module, weights, static, optimizer, embeddings)
        return _named(name, qmodule, activations if dynamic else None)

    _replace_each(model, quantized, unfused_experts(model, is_wanted) if weights is not None else {})
    save_ties_once(model)


def require_module(model: Any, function: str) -> None:
    """Raise a TypeError that names the function unless `model` is a module."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"[{function}] model: got a {type(model).__name__}, expected a torch.nn.Module")


def _replace_each(
    model: torch.nn.Module,
    replacement: Callable[[str, torch.nn.Module], torch.nn.Module | None],
    experts: Mapping[torch.nn.Module, torch.nn.Module],
) -> dict[torch.nn.Module, torch.nn.Module]:
    """Replace `experts`, then each module for which there is a replacement, all or none.

    Returns:
        What was replaced, by what.
    """
    _replace_modules(model, experts)
    try:
        found = {m: replacement(name, m) for name, m in model.named_modules()}
    except Exception:
        _undo(model, experts)
        raise
    replacements = {module: new for module, new in found.items() if new is not None}
    _replace_modules(model, replacements)
    return {**experts, **replacements}


def _undo(model: torch.nn.Module, replacements: Mapping[torch.nn.Module, torch.nn.Module]) -> None:
    _replace_modules(model, {new: old for old, new in replacements.items()})


def _reason_not_asked_for(name: str, included: list[str] | None, excluded: list[str] | None) -> str | None:
    """Which pattern keeps a module of that name from being quantized."""
    if included is not None and not any(fnmatch(name, pattern) for pattern in included):
        return f"not included by {', '.join(map(repr, included))}"
    hit = next((pattern for pattern in excluded or [] if fnmatch(name, pattern)), None)
    return None if hit is None else f"excluded by {hit!r}"


def reason_not_asked_for(module: torch.nn.Module) -> str | None:
    """Which pattern of the last `quantize` kept this module float, if one did."""
    return _NOT_ASKED_FOR.get(module)


def _unfrozen(model: torch.nn.Module) -> list[tuple[str, QModuleMixin]]:
    modules = [(name, m) for name, m in model.named_modules() if isinstance(m, QModuleMixin)]
    return [(name, m) for name, m in modules if m.weight_qtype is not None and not m.frozen]


def freeze(model: torch.nn.Module, allow_non_finite: bool = False) -> None:
    """Replace the float weights of all quantized modules by their quantized form.

    Weights that several modules share stay shared where they are quantized alike.

    Args:
        model: a model that went through `quantize`.
        allow_non_finite: quantize weights with NaN or infinite elements too.

    Raises:
        ValueError: a weight has NaN or infinite elements, is not of a dtype that can be quantized (float32, bfloat16,
            float16), or cannot be quantized otherwise; the message names its module and no module was frozen.
        TypeError: `model` is not a module.
    """
    require_module(model, "freeze")
    modules = _unfrozen(model)
    wrong = [f"{name} ({m.weight.dtype})" for name, m in modules if m.weight.dtype not in FLOAT_DTYPES]
    if wrong:
        raise ValueError(
            f"[freeze] weight of {', '.join(wrong)}: expected {', '.join(map(str, FLOAT_DTYPES))}; "
            "convert the model first, for example by model.float()"
        )
    if not allow_non_finite:
        bad = [name for name, m in modules if not m.has_finite_weight]
        if bad:
            raise ValueError(
                f"[freeze] weight of {', '.join(bad)}: got NaN or infinite elements, expected finite ones; "
                "pass allow_non_finite=True to quantize them anyway"
            )
    _freeze_all(modules)
    if modules:
        # The float weights ended in pieces that glibc would keep: half of what the process then holds.
        release_freed_memory()
        _warn_of_float(model)
        _describe_when_saved(model)


def _describe_when_saved(model: torch.nn.Module) -> None:
    """Have a transformers model save that it is quantized: else transformers would load random weights for it."""
    transformers = sys.modules.get("transformers")
    if transformers is not None and isinstance(model, transformers.PreTrainedModel):
        from .models.transformers_models import describe_when_saved

        describe_when_saved(model)


def _warn_of_float(model: torch.nn.Module) -> None:
    """Warn if most of a model stays float that was not excluded on purpose."""
    from .report import coverage

    report = coverage(model)
    share, largest = report.unwanted_float
    if largest is not None and share > _LARGE_FLOAT_SHARE:
        warnings.warn(
            f"[freeze] {share:.0%} of the parameters stay float; the largest are those of {largest.name} "
            f"({largest.kind}: {largest.reason}). print(coverage(model)) lists all of them",
            stacklevel=3,
        )


def _freeze_all(modules: Sequence[tuple[str, QModuleMixin]]) -> None:
    """Freeze all modules or none. All scales are found first, where quantizing can fail; then the float weights are
    replaced one by one, so that each one's memory is free for the next codes."""
    alike: dict[Any, list[QModuleMixin]] = {}  # that share a weight, and quantize it alike
    scales: dict[Any, tuple[torch.Tensor, torch.Tensor | None]] = {}
    for name, module in modules:
        size = module.quantized_size
        key = (id(module.weight), size, module.weight_qtype, module.weight_group_size, id(type(module.optimizer)))
        alike.setdefault(key, []).append(module)
        if key not in scales:
            scales[key] = _scales_to_freeze(name, module)
    for key, (first, *others) in alike.items():
        first.freeze(allow_non_finite=True, scales=scales.pop(key))  # checked by the caller, or wanted
        for module in others:
            module.weight = first.weight


def _scales_to_freeze(name: str, module: QModuleMixin) -> tuple[torch.Tensor, torch.Tensor | None]:
    try:
        with torch.no_grad():
            return module.search_scales()
    except RuntimeError as error:
        raise ValueError(f"[freeze] weight of {name}: {error}") from error


def quantization_map(model: torch.nn.Module) -> dict[str, dict[str, str]]:
    """The qtypes of all quantized modules by name: `{"layer": {"weights": "qint4", "activations": "none"}}`.

    A module with activations whose outputs stay float, as calibration may decide, has `"outputs": "none"` too. One
    that quantizes its inputs dynamically has their qtype under "dynamic", and no "activations".
    """
    require_module(model, "quantization_map")
    return {name: _map_entry(m) for name, m in model.named_modules() if isinstance(m, QModuleMixin)}


def _map_entry(module: QModuleMixin) -> dict[str, str]:
    entry = {
        "weights": "none" if module.weight_qtype is None else module.weight_qtype.name,
        "activations": "none" if module.activation_qtype is None else module.activation_qtype.name,
    }
    if module.activation_qtype is not None and not module.quantizes_output:
        entry["outputs"] = "none"
    if module.dynamic_qtype is not None:
        entry["dynamic"] = module.dynamic_qtype.name
    return entry


def _map_value(name: str, entry: Mapping[str, str], key: str) -> qtype | None:
    value = entry.get(key, "none")
    return None if value == "none" else as_qtype(value, f"quantization_map[{name!r}][{key!r}]")


def _names_by_tensor(model: torch.nn.Module) -> list[list[str]]:
    """The names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _set_parameter(model: torch.nn.Module, name: str, value: Any) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, value)


def _is_loaded(name: str, keys: Iterable[str]) -> bool:
    return any(key == name or key.startswith(name + ".") for key in keys)


def _tie_again(model: torch.nn.Module, groups: list[list[str]], state_dict: Mapping[str, Any]) -> set[str]:
    """Point the names of one tensor to one that was loaded; returns those that were not loaded themselves.

    A name that was loaded with other values stays apart.
    """
    tied = set()
    for group in groups:
        loaded = [name for name in group if _is_loaded(name, state_dict)]
        if not loaded:
            continue
        source = model.get_parameter(loaded[0])
        for name in group:
            if name not in loaded:
                tied.add(name)
            elif not _same(source, model.get_parameter(name)):
                continue
            _set_parameter(model, name, source)
    return tied


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two loaded parameters hold the same bytes; what else a quantized one knows of its module may differ."""
    if a.device.type == "meta" or b.device.type == "meta" or type(a) is not type(b) or a.shape != b.shape:
        return False
    if not isinstance(a, QTensor) or not isinstance(b, QTensor):
        return torch.equal(a, b)
    pairs = zip(a.inner_tensors().values(), b.inner_tensors().values(), strict=True)
    return all(same_values(one, other) for one, other in pairs)


def requantize(
    model: torch.nn.Module,
    state_dict: Mapping[str, Any],
    quantization_map: Mapping[str, Mapping[str, str]],
    device: torch.device | str | None = None,
) -> None:
    """Quantize a float model, which may be on the meta device, and load quantized weights into it.

    Args:
        model: a model of the architecture that was saved.
        state_dict: the state dict of the quantized model.
        quantization_map: what `quantization_map` returned for it.
        device: where the model goes; by default where its parameters are, or the CPU for the meta device.

    Raises:
        ValueError: the map names a module that the model does not have or that cannot be quantized.
        RuntimeError: tensors are missing, unexpected or of the wrong shape; the message names them. On an error the
            model is unchanged.
    """
    require_module(model, "requantize")
    if device is None:
        first = next(model.parameters(), None)
        device = torch.device("cpu") if first is None or first.device.type == "meta" else first.device
    ties = _names_by_tensor(model)
    snapshot = [(m, dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    replacements = quantize_by_map(model, quantization_map)
    save_ties_once(model)
    try:
        _load_exactly(model, state_dict, ties)
    except Exception:
        _undo(model, replacements)
        for module, parameters, buffers in snapshot:
            module._parameters.update(parameters)
            module._buffers.update(buffers)
        raise
    model.to(device)


def quantize_by_map(
    model: torch.nn.Module, quantization_map: Mapping[str, Mapping[str, str]]
) -> dict[torch.nn.Module, torch.nn.Module]:
    """Replace the modules that a quantization map names, without weights for them.

    Returns:
        What was replaced, by what.

    Raises:
        ValueError: the map names a module that the model does not have or that cannot be quantized. The model is
            unchanged.
    """

    def quantized(name: str, module: torch.nn.Module) -> torch.nn.Module | None:
        return None if name not in quantization_map else _by_entry(name, module, quantization_map[name])

    experts = unfused_experts(model, lambda name: name in quantization_map)
    known = {name for name, _ in model.named_modules()}
    known.update(
        f"{name}.{inner}"
        for name, m in model.named_modules()
        if m in experts
        for inner, _ in experts[m].named_modules()
    )
    for name in quantization_map:
        if name not in known:
            raise ValueError(
                f"[requantize] quantization_map: got module {name!r}, expected one of the model's modules"
            )
    return _replace_each(model, quantized, experts)


def _by_entry(name: str, module: torch.nn.Module, entry: Mapping[str, str]) -> torch.nn.Module:
    weights, activations = _map_value(name, entry, "weights"), _map_value(name, entry, "activations")
    qmodule = _named(name, qmodule_of(module, weights, activations, None), _map_value(name, entry, "dynamic"))
    if qmodule is None:
        kind = type(module).__name__
        raise ValueError(f"[requantize] quantization_map: got module {name!r}, a {kind}, expected a quantizable one")
    if entry.get("outputs") == "none":
        assert isinstance(qmodule, QModuleMixin)
        qmodule.disable_output_quantization()
    return qmodule


def _load_exactly(model: torch.nn.Module, state_dict: Mapping[str, Any], ties: list[list[str]]) -> None:
    """Assign the tensors of a state dict, which must be those of the model and all of them."""
    result = model.load_state_dict(dict(state_dict), strict=False, assign=True)
    tied = _tie_again(model, ties, state_dict)
    missing = [key for key in result.missing_keys if key not in tied]
    on_meta = [
        name
        for name, t in (*model.named_parameters(), *model.named_buffers())
        if t.device.type == "meta" and name not in missing
    ]
    problems = [("missing", missing), ("unexpected", result.unexpected_keys), ("left without a value", on_meta)]
    if any(keys for _, keys in problems):
        text = "; ".join(f"{what}: {', '.join(keys)}" for what, keys in problems if keys)
        raise RuntimeError(f"[requantize] state_dict: got keys that do not fit the model: {text}")
