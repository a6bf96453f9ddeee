"""Write what optimum-quanto 0.2.7 computes: run this with that version installed, in an environment of its own.

python make_golden.py quanto_0_2_7.safetensors
"""

import sys

import torch
from cases import CASES, base_tensor
from safetensors.torch import save_file

from optimum.quanto import AbsmaxOptimizer, MaxOptimizer, freeze, qtypes, quantize, quantize_weight


def _as_bytes(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous().view(torch.uint8) if t.dtype.itemsize == 1 else t.contiguous()


def _case(name: str, qtype_name: str, dtype: torch.dtype, shape: tuple[int, ...], axis: int, group_size: int | None):
    base, qtype = base_tensor(shape, dtype), qtypes[qtype_name]
    if qtype.bits == 8:
        scale = AbsmaxOptimizer()(base, qtype, axis)
        w = quantize_weight(base, qtype, axis, scale, optimized=False)
        parts = {"_data": w._data, "_scale": w._scale}
    else:
        scale, shift = MaxOptimizer()(base, qtype, axis, group_size)
        w = quantize_weight(base, qtype, axis, scale, shift, group_size, optimized=False)
        parts = {"_data": w._data._data, "_scale": w._scale, "_shift": w._shift}
    parts["dequantized"] = w.dequantize()
    return {f"{name}.{part}": _as_bytes(t) for part, t in parts.items()}


def _checkpoint(weights: str) -> dict[str, torch.Tensor]:
    model = torch.nn.Sequential(torch.nn.Linear(160, 24), torch.nn.ReLU(), torch.nn.Linear(24, 6)).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(base_tensor(tuple(parameter.shape), torch.bfloat16))
    quantize(model, weights=weights)
    freeze(model)
    return {f"checkpoint.{weights}.{key}": _as_bytes(t) for key, t in model.state_dict().items()}


def main() -> None:
    tensors: dict[str, torch.Tensor] = {}
    for name, case in CASES.items():
        tensors.update(_case(name, *case))
    for weights in ("qint8", "qfloat8", "qint4", "qint2"):
        tensors.update(_checkpoint(weights))
    save_file(tensors, sys.argv[1])


if __name__ == "__main__":
    main()
