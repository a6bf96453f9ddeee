"""Loading, saving and reloading models that transformers quantizes with a `QuantoConfig`.

transformers replaces the layers and quantizes them while it loads (its `integrations/quanto.py`). What it lacks is
added to its quantizer class, whose methods it looks up when it needs them: the instance that is loading a model while
this package is first imported has them too. Only `validate_environment` has run by then.

A saved model has its quantization map in its config, under `quanto`: which modules are quantized, to what, which of
them quantize their outputs. Its tensors have the names that they have in the model.
"""

import copy
import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Parameter
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.quantizer_quanto import QuantoHfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from ..models.checkpoint import CONFIG_KEY, described, save_replacing
from ..nn import QLinear, QModuleMixin
from ..nn.experts import UnfusedExperts, is_fused_experts
from ..nn.observed import ObserverState, make_observer_states
from ..quantization import quantization_map, quantize, quantize_by_map
from ..ties import save_ties_once
from ..unquantize import float_module, unquantize


logger = logging.getLogger(__name__)

# The last one is what no quantized weight has.
_PARTS = (r"_data\._data", "_data", "_scale", "_shift", r"_\w+")
_EXTENDED: dict[str, Any] = {}

# The method of a model that transformers tells which keys of the checkpoint it has no place for.
_ADJUST_KEYS = "_adjust_missing_and_unexpected_keys"


def extend_quantizer() -> None:
    """Extend transformers' quantizer class.

    Raises:
        ImportError: the class does not have the methods to extend.
    """
    methods = {
        "validate_environment": _validate_environment,
        "update_weight_conversions": _before_loading,
        "param_needs_quantization": _needs_quantization,
        "get_quantize_ops": QuantizeWeights,
        "get_new_dtype": _new_dtype,
        "_process_model_after_weight_loading": _after_loading,
        "get_state_dict_and_metadata": _before_saving,
        "_dequantize": _dequantize,
        "is_compileable": property(lambda self: True),
        "is_serializable": lambda self: True,
    }
    lacking = [name for name in methods if not hasattr(QuantoHfQuantizer, name)]
    if lacking:
        raise ImportError(f"QuantoHfQuantizer lacks {', '.join(lacking)}")
    if not hasattr(PreTrainedModel, _ADJUST_KEYS):
        raise ImportError(f"PreTrainedModel lacks {_ADJUST_KEYS}")
    for name, method in methods.items():
        _EXTENDED.setdefault(name, getattr(QuantoHfQuantizer, name))
        # A class would not be bound to the quantizer as a function is.
        setattr(QuantoHfQuantizer, name, method if not isinstance(method, type) else _calling(method))


def _calling(cls: type) -> Callable[[Any], Any]:
    return lambda quantizer: cls(quantizer)


def _validate_environment(quantizer: Any, *args: Any, **kwargs: Any) -> None:
    """What transformers checks, except that activations may be quantized."""
    config = quantizer.quantization_config
    quantizer.quantization_config = _without_activations(config)
    try:
        _EXTENDED["validate_environment"](quantizer, *args, **kwargs)
    finally:
        quantizer.quantization_config = config


def _without_activations(config: Any) -> Any:
    changed = copy.copy(config)
    changed.activations = None
    return changed


def _before_loading(quantizer: Any, weight_conversions: list[Any], model: torch.nn.Module) -> list[Any]:
    """Bring the modules, which have no weights yet, into the form that is loaded.

    Returns:
        The conversions of the checkpoint: of a saved model only ours, as its tensors are named as in the model.
    """
    if not quantizer.pre_quantized:
        _quantize_inputs(model)
        return _EXTENDED["update_weight_conversions"](quantizer, weight_conversions, model)
    saved = _saved_map(model)
    if saved is not None:
        _unquantize_others(model, saved)
        quantize_by_map(model, saved)
        make_observer_states(model, getattr(model.config, CONFIG_KEY).get("observers", {}))
    setattr(model, _ADJUST_KEYS, functools.partial(_refuse_unexpected, model))
    sources = [rf"\.weight\.{part}" for part in _PARTS]
    return [WeightConverter(source_patterns=sources, target_patterns=".weight", operations=[BuildWeight()])]


def _refuse_unexpected(model: Any, loading_info: Any) -> None:
    """Raise an error for keys of quantized modules that transformers would only report; the method, on one model."""
    delattr(model, _ADJUST_KEYS)
    getattr(model, _ADJUST_KEYS)(loading_info)
    quantized = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, QModuleMixin))
    unexpected = sorted(key for key in loading_info.unexpected_keys if key.startswith(quantized))
    if unexpected:
        raise ValueError(f"[from_pretrained] checkpoint: got {', '.join(unexpected)}, which no quantized module has")


def _quantize_inputs(model: torch.nn.Module) -> None:
    """Make the layers that transformers made quantize their inputs, as `quantize` does."""
    for module in model.modules():
        if isinstance(module, QLinear):
            module.enable_input_quantization()


def _saved_map(model: Any) -> dict[str, dict[str, str]] | None:
    """The quantization map in the config of a saved model; None if it has none."""
    saved = getattr(model.config, CONFIG_KEY, None)
    if saved is None:
        return None
    found = saved.get("quantization_map") if isinstance(saved, dict) else None
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise ValueError(f"[from_pretrained] config: {CONFIG_KEY}: got {saved!s:.80}, expected a quantization_map")
    return found


def _unquantize_others(model: torch.nn.Module, qmap: dict[str, dict[str, str]]) -> None:
    """Undo the replacement of linear layers that the map does not name."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QLinear) and name not in qmap:
            model.set_submodule(name, float_module(module))


def _needs_quantization(quantizer: Any, model: torch.nn.Module, param_name: str, **kwargs: Any) -> bool:
    """Whether a loaded parameter is to be quantized: as transformers says, and the tensors of fused experts."""
    module_name = param_name.rpartition(".")[0]
    module = model.get_submodule(module_name)
    if is_fused_experts(module) or isinstance(module, UnfusedExperts):
        return not quantizer.pre_quantized and should_convert_module(module_name, quantizer.modules_to_not_convert)
    return _EXTENDED["param_needs_quantization"](quantizer, model, param_name, **kwargs)


def _new_dtype(quantizer: Any, converter: Any, param: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype | None:
    """The dtype to load a tensor in: parts of a quantized weight stay as they are, codes are no numbers to cast."""
    if _is_ours(converter):
        return None
    return _EXTENDED["get_new_dtype"](quantizer, converter, param, dtype)


def _is_ours(converter: Any) -> bool:
    return isinstance(converter, WeightConverter) and any(isinstance(op, BuildWeight) for op in converter.operations)


class QuantizeWeights(ConversionOps):  # type: ignore[misc]
    """Quantizes the weights of a float checkpoint as they are loaded; several, where one tensor is split into them."""

    def __init__(self, quantizer: Any) -> None:
        self.hf_quantizer = quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        model: Any = None,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Set what is to be quantized; the rest, by name, is left for transformers to set."""
        left = {}
        for name, value in input_dict.items():
            tensor = value[0] if isinstance(value, list) else value
            module_name, _, attribute = name.rpartition(".")
            module = model.get_submodule(module_name)
            if not _needs_quantization(self.hf_quantizer, model, name):
                left[name] = value
                continue
            if isinstance(module, QModuleMixin):
                _set_weight(name, module, tensor)
            else:
                _set_experts(model, module_name, attribute, tensor, self.hf_quantizer.quantization_config)
            if missing_keys is not None:
                missing_keys -= {name, f"{module_name}.input_scale", f"{module_name}.output_scale"}
        return left


def _set_weight(name: str, module: QModuleMixin, weight: torch.Tensor) -> None:
    """Give a quantized module its float weight and freeze it."""
    if weight.shape != module.weight.shape:
        raise ValueError(
            f"[from_pretrained] {name}: got shape {tuple(weight.shape)}, expected {tuple(module.weight.shape)}"
        )
    module.weight = Parameter(weight, requires_grad=False)
    _reset_scales(module, weight.dtype, weight.device)
    module.freeze()
    _mark_as_loaded(module, module.weight)


def _reset_scales(module: QModuleMixin, dtype: torch.dtype, device: torch.device) -> None:
    for scale in ("input_scale", "output_scale"):
        setattr(module, scale, torch.ones((), dtype=dtype, device=device))
        _mark_as_loaded(getattr(module, scale))


def _mark_as_loaded(*loaded: Any) -> None:
    """Leave the marks of transformers, which initializes modules and tensors that have none."""
    for one in loaded:
        vars(one)["_is_hf_initialized"] = True


def _missing(model: torch.nn.Module) -> list[str]:
    """The tensors of quantized modules that nothing was loaded for; transformers leaves their memory as it is."""
    found = []
    for name, module in _loaded_modules(model):
        for tensor_name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            is_loaded = getattr(tensor, "_is_hf_initialized", False) or tensor.device.type == "meta"
            if not is_loaded and tensor_name not in module._non_persistent_buffers_set:
                found.append(f"{name}.{tensor_name}")
    return found


def _loaded_modules(model: torch.nn.Module) -> list[tuple[str, Any]]:
    """The quantized modules that got their weight, or have none to quantize, and what observers keep in them."""
    unfrozen = {name for name, _ in _unfrozen(model)}
    modules = [(name, m) for name, m in model.named_modules() if isinstance(m, QModuleMixin | ObserverState)]
    return [(name, m) for name, m in modules if name not in unfrozen]


def _set_experts(model: Any, module_name: str, attribute: str, tensor: torch.Tensor, config: Any) -> None:
    """Give all experts of a module their part of a fused tensor; take the module apart for the first one."""
    module = model.get_submodule(module_name)
    if not isinstance(module, UnfusedExperts):
        module = UnfusedExperts(module)
        quantize(module, weights=config.weights, activations=config.activations)
        model.set_submodule(module_name, module)
    projection, is_bias = attribute.removesuffix("_bias"), attribute.endswith("_bias")
    for index in range(module.num_experts):
        layer, part = getattr(getattr(module, str(index)), projection), module.slice_of(tensor, index, is_bias)
        if is_bias:
            layer.bias = Parameter(part.clone())
            _mark_as_loaded(layer.bias)
        else:
            _set_weight(f"{module_name}.{index}.{projection}.weight", layer, part.contiguous())


class BuildWeight(ConversionOps):  # type: ignore[misc]
    """Builds the quantized weight of a module from the tensors that it was saved as."""

    def convert(
        self,
        input_dict: dict[str, Any],
        model: Any = None,
        full_layer_name: str = "",
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """Set the weight called `full_layer_name`; there is nothing left for transformers to set."""
        module = model.get_submodule(full_layer_name.removesuffix(".weight"))
        if not isinstance(module, QModuleMixin):
            raise ValueError(f"[from_pretrained] {full_layer_name}: got a quantized weight, expected a float one")
        dtype = module.weight.dtype
        parts = {pattern.replace("\\.", ".").removeprefix("."): tensors[0] for pattern, tensors in input_dict.items()}
        unknown = f"weight.{_PARTS[-1]}"
        if unknown in parts:
            raise ValueError(f"[from_pretrained] {full_layer_name}: got parts other than _data, _scale and _shift")
        module.set_weight_from_state_dict(parts, "weight.")
        if parts:
            layer = full_layer_name.removesuffix("weight")
            raise ValueError(
                f"[from_pretrained] {', '.join(layer + part for part in parts)}: got one, expected none for "
                f"{module.weight.qtype.name}"
            )
        if module.weight.dtype != dtype:  # the model is loaded in another one than it was saved in
            module.weight = Parameter(module.weight.to(dtype), requires_grad=False)
        _mark_as_loaded(module, module.weight)
        if missing_keys is not None:
            missing_keys.discard(full_layer_name)
        return {}


def _after_loading(quantizer: Any, model: Any, **kwargs: Any) -> torch.nn.Module:
    """Undo the replacement of tied layers, check that the others are quantized, and drop the conversions.

    Conversions that stayed would be run backwards when the model is saved; those of weights that are quantized cannot.
    """
    _restore_tied_layers(model)
    if not quantizer.pre_quantized:
        for module in model.modules():
            if isinstance(module, QModuleMixin) and module.weight is None:  # so that no weight brought the scales
                _reset_scales(module, module.output_scale.dtype, module.output_scale.device)
    missing = _missing(model)
    if missing:
        raise ValueError(f"[from_pretrained] checkpoint: got no {', '.join(missing)}, expected one for each")
    if not quantizer.pre_quantized:
        for name, module in _unfrozen(model):  # new, or loaded together with one that stays float
            _set_weight(f"{name}.weight", module, module.weight.detach())
    unfrozen = [name for name, _ in _unfrozen(model)]
    if unfrozen:
        raise ValueError(f"[from_pretrained] {', '.join(unfrozen)}: got float weights, expected quantized ones")
    _report_float_experts(model)
    if quantization_map(model):
        model._weight_conversions = []
        save_ties_once(model)
    model.save_pretrained = functools.partial(_save, model)
    return model


def _unfrozen(model: torch.nn.Module) -> list[tuple[str, QModuleMixin]]:
    modules = [(name, m) for name, m in model.named_modules() if isinstance(m, QModuleMixin)]
    return [(name, m) for name, m in modules if m.weight_qtype is not None and not m.frozen]


def _restore_tied_layers(model: torch.nn.Module) -> None:
    """A linear layer that shares its float weight with an embedding stays a float layer, as by default."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for name, module in list(model.named_modules()):
        if isinstance(module, QLinear) and not module.frozen and owners[id(module.weight)] > 1:
            logger.warning("%s shares its weight with another module and is left float", name)
            model.set_submodule(name, float_module(module))


def _report_float_experts(model: torch.nn.Module) -> None:
    """Warn of experts that no quantized form is known for."""
    left = [
        f"{name}.{parameter_name}"
        for name, module in model.named_modules()
        for parameter_name, parameter in module.named_parameters(recurse=False)
        if "experts" in name and parameter.ndim > 2
    ]
    if left:
        logger.warning("left float: %s, tensors of several experts without linear layers", ", ".join(left))


def _dequantize(quantizer: Any, model: Any, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """A float model again, as of `model.dequantize()`, which then removes the quantization config."""
    unquantize(model)
    model.to(dtype)
    for one, name in ((model.config, CONFIG_KEY), (model, "save_pretrained")):
        vars(one).pop(name, None)
    return model


def _before_saving(quantizer: Any, model: Any) -> tuple[None, dict[str, str]]:
    """Write the quantization map into the config. Returns no state dict but the usual one, and no metadata."""
    unfrozen = [name for name, _ in _unfrozen(model)]
    if unfrozen:
        raise ValueError(f"[save_pretrained] {', '.join(unfrozen)}: got float weights, expected frozen ones")
    setattr(model.config, CONFIG_KEY, described(model))
    # transformers refuses to load a model whose activations are quantized before it imports this package.
    model.config.quantization_config = _without_activations(model.config.quantization_config)
    return None, {}


def _save(
    model: Any, save_directory: str | os.PathLike[str], is_main_process: bool = True, *args: Any, **kwargs: Any
) -> None:
    """What `save_pretrained` of the model does, all or nothing."""
    save = functools.partial(type(model).save_pretrained, model)
    if is_main_process:
        save_replacing(model, save, save_directory, *args, **kwargs)
    else:
        save(save_directory, False, *args, **kwargs)
