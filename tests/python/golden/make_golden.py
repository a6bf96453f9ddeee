"""Write what optimum-quanto 0.2.7 computes: run this with that version installed, in an environment of its own.

python make_golden.py quanto_0_2_7.safetensors
"""

import json
import sys
from typing import Any

import torch
from cases import (
    ACTIVATIONS,
    CASES,
    CHECKPOINTS,
    ZERO_POINT_CASES,
    base_tensor,
    calibration_model,
    calibration_samples,
    float_model,
)
from safetensors.torch import save_file

from optimum.quanto import (
    AbsmaxOptimizer,
    Calibration,
    MaxOptimizer,
    QTensor,
    absmax_scale,
    freeze,
    qtypes,
    quantization_map,
    quantize,
    quantize_activation,
    quantize_weight,
)


def _as_bytes(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous().view(torch.uint8) if t.dtype.itemsize == 1 else t.contiguous()


def _case(
    qtype_name: str, dtype: torch.dtype, shape: tuple[int, ...], axis: int, group_size: int | None, zeropoint: bool
) -> dict[str, torch.Tensor]:
    base, qtype = base_tensor(shape, dtype), qtypes[qtype_name]
    if qtype.bits == 8:
        scale = AbsmaxOptimizer()(base, qtype, axis)
        w = quantize_weight(base, qtype, axis, scale, optimized=False)
        parts = {"_data": w._data, "_scale": w._scale}
    else:
        scale, shift = MaxOptimizer()(base, qtype, axis, group_size, zeropoint)
        w = quantize_weight(base, qtype, axis, scale, shift, group_size, optimized=False)
        parts = {"_data": w._data._data, "_scale": w._scale, "_shift": w._shift}
    return {**parts, "dequantized": w.dequantize()}


def _checkpoint(weights: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model = float_model(dtype)
    quantize(model, weights=weights)
    freeze(model)
    return dict(model.state_dict())


def _activations(qtype_name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    base, qtype = base_tensor((4, 6), torch.float32), qtypes[qtype_name]
    values, classes = {}, {}
    for name, function in ACTIVATIONS.items():
        result = function(quantize_activation(base, qtype, absmax_scale(base, qtype)))
        classes[name] = type(result).__name__
        values[name] = result.dequantize() if isinstance(result, QTensor) else result
    return values, classes


def _calibration(activations: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    model = calibration_model()
    quantize(model, weights="qint8", activations=activations)
    with torch.no_grad(), Calibration():
        for x in calibration_samples():
            model(x)
    freeze(model)
    hooks = {name: len(m._forward_hooks) for name, m in model.named_modules() if hasattr(m, "qweight")}
    return dict(model.state_dict()), {"map": quantization_map(model), "hooks": hooks}


def main() -> None:
    tensors: dict[str, torch.Tensor] = {}
    facts: dict[str, Any] = {}

    def add(prefix: str, parts: dict[str, torch.Tensor]) -> None:
        tensors.update({f"{prefix}.{part}": _as_bytes(t).clone() for part, t in parts.items()})

    for name, case in CASES.items():
        add(name, _case(*case, zeropoint=False))
    for name, case in ZERO_POINT_CASES.items():
        add(name, _case(*case, zeropoint=True))
    for name, checkpoint in CHECKPOINTS.items():
        add(name, _checkpoint(*checkpoint))
    for qtype_name in ("qint8", "qfloat8_e4m3fn"):
        for kind, function in (("activations", _activations), ("calibration", _calibration)):
            parts, facts[f"{kind}.{qtype_name}"] = function(qtype_name)
            add(f"{kind}.{qtype_name}", parts)
    save_file(tensors, sys.argv[1], {"facts": json.dumps(facts)})


if __name__ == "__main__":
    main()
