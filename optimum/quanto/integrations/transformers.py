"""Saving and reloading models that transformers loaded with a `QuantoConfig`.

transformers replaces the layers and quantizes them while it loads (its `integrations/quanto.py`). What it lacks is
added to its quantizer class: a converter that builds the weights from their saved parts, and the default treatment of
tied layers. Everything is looked up on the class at call time, so this also reaches the instance that is loading a
model when this package is first imported.
"""

import logging
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.quantizer_quanto import QuantoHfQuantizer

from ..nn import QLinear, QModuleMixin
from ..tensor import QTensor


logger = logging.getLogger(__name__)

_PARTS_8_BIT = ("_data", "_scale")
_PARTS_PACKED = ("_data._data", "_scale", "_shift")


def extend_quantizer() -> None:
    """Extend transformers' quantizer class.

    Raises:
        ImportError: the class does not have the methods to extend.
    """
    methods = {
        "_process_model_after_weight_loading": _after_loading,
        "get_new_dtype": _new_dtype,
        "get_weight_conversions": _weight_conversions,
        "is_compileable": property(lambda self: True),
        "is_serializable": lambda self: True,
    }
    lacking = [name for name in methods if not hasattr(QuantoHfQuantizer, name)]
    if lacking:
        raise ImportError(f"QuantoHfQuantizer lacks {', '.join(lacking)}")
    for name, method in methods.items():
        setattr(QuantoHfQuantizer, name, method)


class BuildWeight(ConversionOps):  # type: ignore[misc]
    """Builds the quantized weight of a module from the tensors that it was saved as."""

    def convert(
        self,
        input_dict: dict[str, Any],
        model: torch.nn.Module | None = None,
        full_layer_name: str | None = None,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """Set the weight called `full_layer_name`; there is nothing left for transformers to set."""
        assert model is not None
        assert full_layer_name is not None
        _load_weight(model, full_layer_name, input_dict)
        if missing_keys is not None:
            missing_keys.discard(full_layer_name)
        return {}


def _is_ours(converter: Any) -> bool:
    return isinstance(converter, WeightConverter) and any(isinstance(op, BuildWeight) for op in converter.operations)


def _weight_conversions(quantizer: Any) -> list[Any]:
    """The converters of a checkpoint that is quantized already."""
    if not quantizer.pre_quantized:
        return []
    parts = _PARTS_8_BIT if quantizer.quantization_config.weights in ("int8", "float8") else _PARTS_PACKED
    sources = [f".weight.{part}" for part in parts]
    return [WeightConverter(source_patterns=sources, target_patterns=".weight", operations=[BuildWeight()])]


def _new_dtype(quantizer: Any, converter: Any, param: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype | None:
    """The dtype to load a tensor in: parts of a quantized weight stay as they are, codes are no numbers to cast."""
    if _is_ours(converter):
        return None
    inherited = super(QuantoHfQuantizer, quantizer).get_new_dtype(converter, param, dtype)
    return inherited


def _load_weight(model: torch.nn.Module, name: str, parts: dict[str, Any]) -> None:
    module_name = name.removesuffix(".weight")
    module = model.get_submodule(module_name)
    if not isinstance(module, QModuleMixin):
        raise ValueError(f"[from_pretrained] {name}: got a quantized weight, expected a float one for this module")
    state = {pattern.removeprefix("."): tensors[0] for pattern, tensors in parts.items()}
    module.set_weight_from_state_dict(state, "weight.")
    vars(module)["_is_hf_initialized"] = True


def _after_loading(quantizer: Any, model: torch.nn.Module, **kwargs: Any) -> torch.nn.Module:
    """Undo the replacement of tied layers, check that the others are quantized, and drop our converters.

    A converter that stayed would be run backwards when the model is saved.
    """
    _restore_tied_layers(model)
    unfrozen = [
        name
        for name, m in model.named_modules()
        if isinstance(m, QModuleMixin) and m.weight_qtype is not None and not isinstance(m.weight, QTensor)
    ]
    if unfrozen:
        raise ValueError(f"[from_pretrained] {', '.join(unfrozen)}: got float weights, expected quantized ones")
    loaded_with: Any = getattr(model, "_weight_conversions", None) or []
    setattr(model, "_weight_conversions", [c for c in loaded_with if not _is_ours(c)])  # noqa: B010
    return model


def _restore_tied_layers(model: torch.nn.Module) -> None:
    """A linear layer that shares its float weight with an embedding stays a float layer, as by default."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for name, module in list(model.named_modules()):
        if not isinstance(module, QLinear) or module.frozen or owners[id(module.weight)] < 2:
            continue
        logger.warning("%s shares its weight with another module and is left float", name)
        linear = torch.nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
        linear.weight = module.weight
        if module.bias is not None:
            linear.bias = module.bias
        model.set_submodule(name, linear)
