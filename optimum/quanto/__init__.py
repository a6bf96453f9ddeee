"""Quantization of PyTorch models: weights to int8, int4, int2 or float8, activations to int8 or float8.

Names are imported when they are first used: `optimum-cli` imports this package at every start.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any


__version__ = "1.0.0"

# Where each public name lives.
_HOMES = {
    "calibrate": ["Calibration", "absmax_scale"],
    "observers": ["AbsmaxObserver", "MseObserver", "Observer", "PercentileObserver"],
    "report": ["Coverage", "CoverageRow", "coverage"],
    "library": ["get_extension", "is_extension_available"],
    "nn": [
        "QConv1d",
        "QConv2d",
        "QEmbedding",
        "QLayerNorm",
        "QLinear",
        "QModuleMixin",
        "quantize_module",
        "register_qmodule",
    ],
    "models": ["is_diffusers_available", "is_transformers_available"],
    "models.transformers_models": ["QuantizedModelForCausalLM", "QuantizedTransformersModel"],
    "models.diffusers_models": ["QuantizedDiffusersModel", "QuantizedPixArtTransformer2DModel"],
    "quantization": ["freeze", "quantization_map", "quantize", "requantize"],
    "tensor": [
        "AbsmaxOptimizer",
        "ActivationQBytesTensor",
        "AffineOptimizer",
        "HqqOptimizer",
        "MaxOptimizer",
        "Optimizer",
        "PackedTensor",
        "QBitsTensor",
        "QBytesTensor",
        "QTensor",
        "SymmetricOptimizer",
        "WeightQBitsTensor",
        "WeightQBytesTensor",
        "axis_to_dim",
        "dtype_info",
        "fake_quantize_activation",
        "fake_quantize_weight",
        "group",
        "grouped_shape",
        "qfallback",
        "qfloat8",
        "qfloat8_e4m3fn",
        "qfloat8_e4m3fnuz",
        "qfloat8_e5m2",
        "qint2",
        "qint4",
        "qint8",
        "qtype",
        "qtypes",
        "quantize_activation",
        "quantize_weight",
        "ungroup",
    ],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
# What cannot be imported without another library.
_NEEDS = {"models.transformers_models": "transformers", "models.diffusers_models": "diffusers"}


def is_installed(library: str) -> bool:
    """Whether a library can be imported; it is not imported to find out."""
    return library in sys.modules or importlib.util.find_spec(library) is not None


__all__ = sorted(name for name, home in _HOME_OF.items() if home not in _NEEDS or is_installed(_NEEDS[home]))

if TYPE_CHECKING:
    from .calibrate import *  # noqa: F403
    from .library import *  # noqa: F403
    from .models import *  # noqa: F403
    from .models.diffusers_models import *  # noqa: F403
    from .models.transformers_models import *  # noqa: F403
    from .nn import *  # noqa: F403
    from .observers import *  # noqa: F403
    from .quantization import *  # noqa: F403
    from .report import *  # noqa: F403
    from .tensor import *  # noqa: F403


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{home}")
    return getattr(module, name)


class _Package(ModuleType):
    """This package: importing its submodule `quantize` must not hide the function of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


importlib.import_module(f"{__name__}.integrations").install_when_imported()
