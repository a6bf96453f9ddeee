"""What a case is, and the tensors that cases start from. Runs with 0.2.7 and with this library alike."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

import optimum.quanto as quanto


DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
QTYPES_8_BIT = ("qint8", "qfloat8_e4m3fn", "qfloat8_e5m2")


@dataclass(frozen=True)
class Case:
    """A call: `function(*arguments())`.

    Attributes:
        name: `kind/operation/...`.
        function: what is called.
        arguments: makes fresh arguments, quantized tensors among them.
        product: the result is a sum of products, whose order is free.
    """

    name: str
    function: Callable[..., Any]
    arguments: Callable[[], tuple[Any, ...]] = field(default=tuple)
    product: bool = False

    @property
    def operation(self) -> str:
        return self.name.split("/")[1]


@cache
def _numbers(count: int, seed: int) -> torch.Tensor:
    """Numbers of many magnitudes from a linear congruential generator, the same in every version of torch."""
    state, values = seed, []
    for _ in range(count):
        state = (1103515245 * state + 12345) % 2**31
        values.append(((state >> 8) % 20011 - 10005) / 10007 * 1.5 ** ((state >> 3) % 7 - 5))
    return torch.tensor(values, dtype=torch.float64)


def base(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 12345) -> torch.Tensor:
    return _numbers(math.prod(shape), seed).reshape(shape).to(dtype)


def activation(
    qtype: str, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (4, 6), seed: int = 12345
) -> Any:
    """A quantized activation; those of one seed and number of elements have the same scale."""
    floats, target = base(shape, dtype, seed), quanto.qtypes[qtype]
    scale = quanto.absmax_scale(floats, target) if floats.numel() else torch.tensor(0.5, dtype=dtype)
    return quanto.quantize_activation(floats, target, scale)


def weight(
    qtype: str,
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, ...] = (8, 6),
    axis: int = 0,
    group_size: int | None = None,
    zeropoint: bool = False,
    floats: torch.Tensor | None = None,
) -> Any:
    floats = base(shape, dtype, seed=777) if floats is None else floats
    target = quanto.qtypes[qtype]
    if target.bits == 8:
        scale = quanto.AbsmaxOptimizer()(floats, target, axis)
        return quanto.quantize_weight(floats, target, axis, scale, optimized=False)
    scale, shift = quanto.MaxOptimizer()(floats, target, axis, group_size, zeropoint)
    return quanto.quantize_weight(floats, target, axis, scale, shift, group_size, optimized=False)
