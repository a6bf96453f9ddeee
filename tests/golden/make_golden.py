"""Writes the golden files of tests/core/golden_test.cpp with optimum-quanto 0.2.7.

Run it in an environment that has that version installed: `python tests/golden/make_golden.py`.

A file is a sequence of records. A record is one line of ASCII

    qtype dtype axis group_size shift rows cols

(axis: tensor, first or last; group_size: 0 for none; shift: none, floating or integer), then little-endian arrays
without padding, in this order: the rows x cols matrix, its scales, its shifts (unless `none`), the stored codes
(packed for 2 and 4 bits), and the rows x cols dequantized matrix. Floats are of `dtype`. With groups, scales and codes
are those of the grouped matrix.
"""

import struct
from importlib.metadata import version
from pathlib import Path

import torch

from optimum.quanto import AbsmaxOptimizer, MaxOptimizer, WeightQBitsTensor, WeightQBytesTensor, qtype, qtypes


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
AXES = {None: "tensor", 0: "first", -1: "last"}
SYMMETRIC = ("qint8", "qfloat8_e4m3fn", "qfloat8_e4m3fnuz", "qfloat8_e5m2")
AFFINE = ("qint4", "qint2")


def weights(rows: int, cols: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Normal values whose magnitude varies from row to row, with an outlier here and there."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(rows, cols, generator=generator)
    spread = torch.exp2(torch.randint(-6, 4, (rows, 1), generator=generator).float())
    outliers = 1 + 6 * (torch.rand(rows, cols, generator=generator) > 0.98)
    return (base * spread * outliers).to(dtype)


def raw(t: torch.Tensor) -> bytes:
    return t.detach().contiguous().view(torch.uint8).numpy().tobytes() if t.ndim else raw(t.reshape(1))


def record(fields: tuple[object, ...], arrays: tuple[torch.Tensor, ...]) -> bytes:
    return " ".join(str(field) for field in fields).encode() + b"\n" + b"".join(raw(array) for array in arrays)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def symmetric_record(kind: qtype, dtype: torch.dtype, axis: int | None, rows: int, cols: int, seed: int) -> bytes:
    base = weights(rows, cols, dtype, seed)
    scale = AbsmaxOptimizer()(base, kind, axis)
    quantized = WeightQBytesTensor.quantize(base, kind, axis, scale, optimized=False)
    fields = (kind.name, dtype_name(dtype), AXES[axis], 0, "none", rows, cols)
    return record(fields, (base, quantized._scale, quantized._data, quantized.dequantize()))


def affine_record(
    kind: qtype,
    dtype: torch.dtype,
    axis: int,
    group_size: int | None,
    zeropoint: bool,
    rows: int,
    cols: int,
    seed: int,
) -> bytes:
    base = weights(rows, cols, dtype, seed)
    scale, shift = MaxOptimizer()(base, kind, axis, group_size, zeropoint)
    quantized = WeightQBitsTensor.quantize(base, kind, axis, group_size, scale, shift, optimized=False)
    packed = quantized._data._data
    shift_kind = "integer" if zeropoint else "floating"
    fields = (kind.name, dtype_name(dtype), AXES[axis], group_size or 0, shift_kind, rows, cols)
    return record(fields, (base, quantized._scale, quantized._shift, packed, quantized.dequantize()))


def symmetric_records(dtype: torch.dtype) -> bytes:
    out = b""
    for index, name in enumerate(SYMMETRIC):
        for axis in AXES:
            out += symmetric_record(qtypes[name], dtype, axis, 7, 37, index)
    return out


def affine_records(dtype: torch.dtype) -> bytes:
    out = b""
    for index, name in enumerate(AFFINE):
        for axis, shapes in (
            (0, ((5, 64, 32), (3, 128, 128), (7, 19, None))),
            (-1, ((64, 5, 32), (128, 3, 128), (19, 7, None))),
        ):
            for rows, cols, group_size in shapes:
                for zeropoint in (False, True):
                    out += affine_record(qtypes[name], dtype, axis, group_size, zeropoint, rows, cols, index)
    return out


def main() -> None:
    if version("optimum-quanto") != "0.2.7":
        raise SystemExit(f"[make_golden] optimum-quanto: got {version('optimum-quanto')}, expected 0.2.7")
    assert struct.pack("=H", 1) == struct.pack("<H", 1), "little-endian machines only"
    folder = Path(__file__).parent
    for dtype in DTYPES:
        data = symmetric_records(dtype) + affine_records(dtype)
        path = folder / f"{dtype_name(dtype)}.golden"
        path.write_bytes(data)
        print(f"{path.name}: {len(data)} bytes")


if __name__ == "__main__":
    main()
