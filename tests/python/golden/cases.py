"""The inputs of the golden file: a fixed sequence of numbers in several shapes and dtypes."""

import math

import torch


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
