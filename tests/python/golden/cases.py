"""What is in the golden file: inputs, and the functions that they go through, in terms of both libraries."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional


def base_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Numbers of many magnitudes from a linear congruential generator, the same in every version of torch."""
    state, values = 12345, []
    for _ in range(math.prod(shape)):
        state = (1103515245 * state + 12345) % 2**31
        values.append(((state >> 8) % 20011 - 10005) / 10007 * 1.5 ** ((state >> 3) % 7 - 5))
    return torch.tensor(values, dtype=torch.float64).reshape(shape).to(dtype)


_SHAPES_8_BIT = [((7, 33), 0), ((7, 33), -1), ((4, 3, 3, 3), 0)]
_SHAPES_PACKED = [
    ((5, 64), 0, 32),
    ((6, 128), 0, 128),
    ((7, 19), 0, None),
    ((64, 5), -1, 32),
    ((9, 6), -1, None),
    ((2, 4, 8, 8), 0, 32),
    ((2, 4, 8, 8), -1, 32),
]

# name: qtype, dtype, shape, axis, group size
CASES = {
    f"{qtype}.{str(dtype).removeprefix('torch.')}.{index}": (qtype, dtype, *shape)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for qtypes, shapes in (
        (("qint8", "qfloat8_e4m3fn", "qfloat8_e4m3fnuz", "qfloat8_e5m2"), [(*s, None) for s in _SHAPES_8_BIT]),
        (("qint4", "qint2"), _SHAPES_PACKED),
    )
    for qtype in qtypes
    for index, shape in enumerate(shapes)
}

# The same with zero points: uint8 shifts.
ZERO_POINT_CASES = {
    f"zero_point.{name}": case
    for name, case in CASES.items()
    if case[0] in ("qint4", "qint2") and case[1] == torch.bfloat16
}

QTYPES = ["qint8", "qfloat8_e4m3fn", "qfloat8_e4m3fnuz", "qfloat8_e5m2", "qint4", "qint2"]
CHECKPOINTS = {
    f"checkpoint.{qtype}.{str(dtype).removeprefix('torch.')}": (qtype, dtype)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for qtype in QTYPES
}


def float_model(dtype: torch.dtype) -> torch.nn.Module:
    """Two linear layers, the first with groups of 32."""
    model = torch.nn.Sequential(torch.nn.Linear(160, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(base_tensor(tuple(parameter.shape), dtype))
    return model


# What a quantized activation of shape (4, 6) goes through. The golden file has the class and values of each result.
_MASK = torch.arange(24).reshape(4, 6) % 5 == 0
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "view": lambda t: t.view(6, 4),
    "reshape": lambda t: t.reshape(2, 12),
    "flatten": lambda t: t.flatten(),
    "transpose": lambda t: t.transpose(0, 1),
    "t": lambda t: t.t(),
    "permute": lambda t: t.permute(1, 0),
    "contiguous": lambda t: t.t().contiguous(),
    "slice": lambda t: t[1:3],
    "select": lambda t: t[2],
    "unsqueeze": lambda t: t.unsqueeze(1),
    "squeeze": lambda t: t.unsqueeze(1).squeeze(1),
    "expand": lambda t: t.unsqueeze(0).expand(3, 4, 6),
    "clone": lambda t: t.clone(),
    "detach": lambda t: t.detach(),
    "to the same device": lambda t: t.to("cpu"),
    "to another dtype": lambda t: t.to(torch.float16),
    "split": lambda t: torch.cat(t.split(2)[::-1]),
    "unbind": lambda t: t.unbind(0)[1],
    "cat": lambda t: torch.cat([t, t]),
    "stack": lambda t: torch.stack([t, t]),
    "repeat": lambda t: t.repeat(2, 1),
    "roll": lambda t: t.roll(1),
    "index": lambda t: t[torch.tensor([0, 2])],
    "pad": lambda t: functional.pad(t, (0, 1)),
    "relu": torch.relu,
    "neg": torch.neg,
    "mul": lambda t: t * 2.0,
    "rmul": lambda t: 0.5 * t,
    "mul by a scalar tensor": lambda t: t * torch.tensor(2.0),
    "div": lambda t: t / 4.0,
    "mul by itself": lambda t: t * t,
    "add": lambda t: t + 1,
    "add to itself": lambda t: t + t,
    "sub": lambda t: t - t,
    "pow": lambda t: t**2,
    "abs": lambda t: t.abs(),
    "silu": functional.silu,
    "gelu": functional.gelu,
    "tanh": torch.tanh,
    "softmax": lambda t: torch.softmax(t, -1),
    "layer norm": lambda t: functional.layer_norm(t, (6,)),
    "dropout": lambda t: functional.dropout(t, 0.5, False),
    "sum": lambda t: t.sum(),
    "mean": lambda t: t.mean(-1),
    "amax": lambda t: t.amax(),
    "argmax": lambda t: t.argmax(),
    "gt": lambda t: t > 0.0,
    "where": lambda t: torch.where(_MASK, t, torch.zeros(())),
    "masked fill": lambda t: t.masked_fill(_MASK, 0.0),
    "matmul": lambda t: t @ torch.ones(6, 2),
    "bmm": lambda t: torch.bmm(t.unsqueeze(0), t.t().unsqueeze(0)),
    "linear": lambda t: functional.linear(t, torch.ones(3, 6)),
    "attention": lambda t: functional.scaled_dot_product_attention(*[t.view(1, 1, 4, 6)] * 3),
}


def calibration_model() -> torch.nn.Module:
    """Layers whose outputs are wanted quantized (by relu) and as floats (by silu, and by nobody)."""
    layers = [
        torch.nn.Linear(32, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 16),
        torch.nn.SiLU(),
        torch.nn.Linear(16, 4),
    ]
    model = torch.nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(base_tensor(tuple(parameter.shape), torch.float32))
    return model


def calibration_samples() -> list[torch.Tensor]:
    return [base_tensor((5, 32), torch.float32) * factor for factor in (1.0, 3.0, 0.5)]
