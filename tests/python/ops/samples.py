"""One list of samples per operator, for correctness, opcheck, compile and the compositions alike."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CODES = {
    "qint8": torch.int8,
    "qfloat8_e4m3fn": torch.float8_e4m3fn,
    "qfloat8_e4m3fnuz": torch.float8_e4m3fnuz,
    "qfloat8_e5m2": torch.float8_e5m2,
}
QUANTO = torch.ops.quanto


@dataclass(frozen=True)
class Sample:
    """A call of an operator."""

    op: str
    args: tuple[Any, ...]
    name: str = field(default="")

    def __call__(self) -> Any:
        return getattr(QUANTO, self.op)(*self.args)

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"


def _views(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The same shape as a contiguous tensor, one with an offset, and one that is not contiguous."""
    generator = torch.Generator().manual_seed(7)
    yield "dense", torch.randn(shape, generator=generator).to(dtype)
    flat = torch.randn(torch.Size(shape).numel() + 1, generator=generator).to(dtype)
    yield "offset", flat[1:].view(shape)
    yield "strided", torch.randn((*shape[:-1], 2 * shape[-1]), generator=generator).to(dtype)[..., ::2]


def _bases() -> Iterator[tuple[str, Tensor]]:
    for dtype in DTYPES:
        for shape in ((7, 33), (64, 96), (4, 3, 5), (1, 9), (2, 1)):
            for kind, t in _views(shape, dtype):
                yield f"{str(dtype)[6:]}-{'x'.join(map(str, shape))}-{kind}", t


def _symmetric() -> Iterator[Sample]:
    for name, base in _bases():
        for qtype, dtype in CODES.items():
            for axis in (None, 0, -1):
                label = f"{name}-{qtype}-{axis}"
                yield Sample("absmax_scale", (base, qtype, axis), label)
                if axis is not None and base.shape[axis] == 1:
                    continue  # an axis of size one has a scalar scale
                scale = QUANTO.absmax_scale(base, qtype, axis)
                yield Sample("quantize_symmetric", (base, dtype, axis, scale), label)
                data = QUANTO.quantize_symmetric(base, dtype, axis, scale)
                yield Sample("dequantize_symmetric", (data, scale), label)
                yield Sample("fake_quantize_symmetric", (base, qtype, axis, None), f"{label}-searched")
                yield Sample("fake_quantize_symmetric", (base, qtype, axis, scale), label)
    yield from _empty()
    yield from _vectors()


def _vectors() -> Iterator[Sample]:
    """A vector has a single scale along its only axis."""
    for dtype in DTYPES:
        base = torch.randn(19, generator=torch.Generator().manual_seed(7)).to(dtype)
        for axis in (0, -1):
            name = f"{str(dtype)[6:]}-vector-{axis}"
            yield Sample("absmax_scale", (base, "qint8", axis), name)
            yield from _affine_case(name, base, 4, axis, None)


def _per_token() -> Iterator[Sample]:
    for dtype in DTYPES:
        for qtype, codes in CODES.items():
            for shape in ((1, 9), (7, 33), (2, 3, 64), (5,), (0, 4), (3, 0)):
                for kind, base in _views(shape, dtype):
                    name = f"{str(dtype)[6:]}-{'x'.join(map(str, shape))}-{kind}-{qtype}"
                    yield Sample("quantize_per_token", (base, codes), name)
            odd = torch.tensor([[0.0] * 5, [1e-7, -1e-7, 0, 0, 0], [6e4, -6e4, 1, 0, -0.0]]).to(dtype)
            yield Sample("quantize_per_token", (odd, codes), f"{str(dtype)[6:]}-odd-{qtype}")


def _empty() -> Iterator[Sample]:
    """Tensors without elements, along an axis that needs no scale."""
    for dtype in DTYPES:
        for shape, axis in (((0, 5), 0), ((3, 0), -1), ((0, 2, 4), 0)):
            base, name = torch.empty(shape, dtype=dtype), f"{str(dtype)[6:]}-{'x'.join(map(str, shape))}"
            scale = torch.empty([0 if d == axis % len(shape) else 1 for d in range(len(shape))], dtype=dtype)
            yield Sample("absmax_scale", (base, "qint8", axis), name)
            yield Sample("quantize_symmetric", (base, torch.int8, axis, scale), name)
            yield Sample("dequantize_symmetric", (base.to(torch.int8), scale), name)
            yield Sample("fake_quantize_symmetric", (base, "qint8", axis, scale), name)
            yield Sample("fake_quantize_affine", (base, "qint4", axis, None, scale, scale), name)
            yield Sample("quantize_affine", (base, 4, axis, None, scale, scale), name)
            yield Sample("quantize_affine_packed", (base, 4, axis, None, scale, scale), name)
            codes = torch.empty(shape, dtype=torch.uint8)
            yield Sample("dequantize_affine", (codes, scale, scale, 4, axis, None, list(shape), False), name)


def _affine() -> Iterator[Sample]:
    for dtype in DTYPES:
        for shape, group_size in (((6, 64), 32), ((7, 19), None), ((2, 8, 4, 4), 16), ((5, 96), 96)):
            for kind, base in _views(shape, dtype):
                for bits in (2, 4):
                    for axis in (0, -1):
                        along = base.numel() // base.shape[axis]
                        if group_size is not None and along % group_size != 0:
                            continue
                        name = f"{str(dtype)[6:]}-{'x'.join(map(str, shape))}-{kind}-{bits}-{axis}"
                        yield from _affine_case(name, base, bits, axis, group_size)


def _affine_case(name: str, base: Tensor, bits: int, axis: int, group_size: int | None) -> Iterator[Sample]:
    yield Sample("minmax_scale", (base, f"qint{bits}", axis, group_size), name)
    yield Sample("fake_quantize_affine", (base, f"qint{bits}", axis, group_size, None, None), name)
    if group_size is None:
        for lp_norm in (0.7, 1.0):
            yield Sample("hqq_scale", (base, f"qint{bits}", axis, lp_norm, 10.0, 1.01, 3), f"{name}-{lp_norm}")
    scale, shift = QUANTO.minmax_scale(base, f"qint{bits}", axis, group_size)
    zero_point = (shift / scale).round().clamp(0, 2**bits - 1).to(torch.uint8)
    for kind, offset in (("float", shift), ("integer", zero_point)):
        arguments = (base, bits, axis, group_size, scale, offset)
        yield Sample("quantize_affine", arguments, f"{name}-{kind}")
        faked = (base, f"qint{bits}", axis, group_size, scale, offset)
        yield Sample("fake_quantize_affine", faked, f"{name}-{kind}")
        yield Sample("quantize_affine_packed", arguments, f"{name}-{kind}")
        codes = QUANTO.quantize_affine(*arguments)
        packed = QUANTO.pack(codes, bits)
        size = list(base.shape)
        yield Sample(
            "dequantize_affine", (codes, scale, offset, bits, axis, group_size, size, False), f"{name}-{kind}"
        )
        yield Sample(
            "dequantize_affine", (packed, scale, offset, bits, axis, group_size, size, True), f"{name}-{kind}-packed"
        )


def _packing() -> Iterator[Sample]:
    for bits in (2, 4):
        for shape in ((1,), (5, 3), (8, 16), (7, 2, 3), (0, 4)):
            codes = (torch.arange(torch.Size(shape).numel()) % 2**bits).to(torch.uint8).reshape(shape)
            name = f"{bits}-{'x'.join(map(str, shape))}"
            yield Sample("pack", (codes, bits), name)
            yield Sample("unpack", (QUANTO.pack(codes, bits), bits), name)
    for value in (1.0, float("inf"), float("nan")):
        yield Sample("all_finite", (torch.tensor([0.0, value, -3.0]),), str(value))


def _inputs(K: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for shape in ((1, K), (5, K), (2, 3, K), (0, K), (K,)):
        yield "x".join(map(str, shape)), torch.randn(shape).to(dtype)
    yield "strided", torch.randn(4, 2 * K).to(dtype)[:, :K]
    yield "transposed", torch.randn(K, 4).to(dtype).t()
    yield "permuted", torch.randn(3, 2, K).to(dtype).transpose(0, 1)
    yield "expanded", torch.randn(1, K).to(dtype).expand(3, K)
    yield "every other", torch.randn(4, 2 * K).to(dtype)[:, ::2]
    yield "offset", torch.randn(3 * K + 1).to(dtype)[1:].view(3, K)


def _linear() -> Iterator[Sample]:
    for dtype in DTYPES:
        for N, K in ((1, 64), (33, 67), (66, 128), (5, 1), (0, 32)):
            base, bias = torch.randn(N, K).to(dtype), torch.randn(N).to(dtype)
            for index, (kind, x) in enumerate(_inputs(K, dtype)):
                name, with_bias = f"{str(dtype)[6:]}-{N}x{K}-{kind}", bias if (N + index) % 2 else None
                yield from _linear_qbytes(name, x, base, with_bias)
                yield from _linear_qbits(name, x, base, with_bias)


def _linear_of_floats() -> Iterator[Sample]:
    for dtype in DTYPES:
        weight, bias = torch.randn(5, 8).to(dtype), torch.randn(5).to(dtype)
        yield Sample("linear", (torch.randn(3, 8).to(dtype), weight, bias), f"{str(dtype)[6:]}-bias")
        yield Sample("linear", (torch.randn(2, 3, 8).to(dtype), weight, None), str(dtype)[6:])


def _linear_qbytes(name: str, x: Tensor, base: Tensor, bias: Tensor | None) -> Iterator[Sample]:
    for qtype, code_dtype in CODES.items():
        axis = 0 if base.shape[0] > 1 and qtype != "qfloat8_e5m2" else None
        scale = QUANTO.absmax_scale(base, qtype, axis) if base.numel() else base.new_ones((0, 1))
        data = QUANTO.quantize_symmetric(base, code_dtype, axis, scale) if base.numel() else base.to(code_dtype)
        yield Sample("linear_qbytes", (x, data, scale, bias), f"{name}-{qtype}")


def _linear_qbits(name: str, x: Tensor, base: Tensor, bias: Tensor | None) -> Iterator[Sample]:
    group_size = 32 if base.shape[1] % 32 == 0 else 0
    for bits in (2, 4):
        scale, shift = QUANTO.minmax_scale(base, f"qint{bits}", 0, group_size or None)
        zero_point = (shift / scale).nan_to_num().round().clamp(0, 2**bits - 1).to(torch.uint8)
        for kind, offset in (("float", shift), ("integer", zero_point)):
            packed = QUANTO.quantize_affine_packed(base, bits, 0, group_size or None, scale, offset)
            arguments = (x, packed, scale, offset, bias, bits)
            yield Sample("linear_qbits", arguments, f"{name}-{bits}-{kind}")


def _codes(x: Tensor, qtype: str, per_row: bool) -> tuple[Tensor, Tensor]:
    """Activations as codes with the strides of `x`, and their scales."""
    codes, scale = QUANTO.quantize_per_token(x, CODES[qtype])
    if not per_row:
        scale = QUANTO.absmax_scale(x, qtype, None) if x.numel() else x.new_ones(())
        codes = QUANTO.quantize_symmetric(x, CODES[qtype], None, scale)
    strided = torch.empty_strided(x.shape, x.stride(), dtype=torch.uint8) if 0 not in x.stride() else None
    return (codes if strided is None else strided.copy_(codes.view(torch.uint8)).view(CODES[qtype])), scale


def _linear_codes() -> Iterator[Sample]:
    for number, (N, K) in enumerate(((1, 64), (33, 67), (66, 128), (5, 1), (0, 32))):
        for index, (kind, x) in enumerate(_inputs(K, DTYPES[number % 3])):
            for qtype in CODES:
                codes, scale = _codes(x, qtype, per_row=index % 2 == 0)
                dtype = DTYPES[(index + number) % 3]
                weight = torch.randn(N, K).to(DTYPES[index % 3])
                bias = torch.randn(N).to(dtype) if (N + index) % 2 else None
                name = f"{str(dtype)[6:]}-{N}x{K}-{kind}-{qtype}"
                for sample in (*_linear_qbytes(name, codes, weight, bias), *_linear_qbits(name, codes, weight, bias)):
                    op, (x_codes, *parts) = sample.op.replace("linear", "linear_codes"), sample.args
                    parts.insert(3 if op.endswith("qbytes") else 4, dtype)  # after the bias
                    yield Sample(op, (x_codes, scale, *parts), sample.name)


def _linear_quantizing() -> Iterator[Sample]:
    for number, (N, K) in enumerate(((1, 64), (33, 67), (66, 128), (5, 1), (0, 32))):
        for index, (kind, x) in enumerate((*_inputs(K, DTYPES[number % 3]), ("many", torch.randn(75, K)))):
            for qtype, codes in CODES.items():
                weight = torch.randn(N, K).to(DTYPES[(number + index) % 3])
                bias = torch.randn(N).to(DTYPES[index % 3]) if (N + index) % 2 else None
                scale = torch.tensor(0.02, dtype=DTYPES[index % 3]) if index % 4 else None
                name = f"{str(x.dtype)[6:]}-{N}x{K}-{kind}-{qtype}"
                for sample in (*_linear_qbytes(name, x, weight, bias), *_linear_qbits(name, x, weight, bias)):
                    op, (_, *parts) = sample.op.replace("linear", "linear_quantizing"), sample.args
                    yield Sample(op, (x, codes, scale, *parts), sample.name)


def _qbytes_mm() -> Iterator[Sample]:
    weight = torch.randint(-128, 128, (9, 40), dtype=torch.int8)
    scales = torch.rand(9, 1) / 100
    yield Sample("qbytes_mm", (torch.randn(3, 40), weight, scales), "float32")
    yield Sample("qbytes_mm", (torch.randn(2, 3, 40).bfloat16(), weight, scales.bfloat16()), "bfloat16")
    yield Sample("qbytes_mm", (torch.randint(-128, 128, (3, 40), dtype=torch.int8), weight, scales), "int8")
    codes = torch.randn(9, 40).to(torch.float8_e4m3fn)
    yield Sample("qbytes_mm", (torch.randn(3, 40).to(torch.float8_e4m3fn), codes, scales), "float8")


def _histograms() -> Iterator[Sample]:
    """Histograms of magnitudes that start empty, widen, stay, and hold nothing but zeros."""
    for name, base in _bases():
        counts, exponent = torch.zeros(64, dtype=torch.int64), torch.zeros((), dtype=torch.int64)
        for step, factor in (("first", 1.0), ("wider", 5.0), ("within", 0.1)):
            sample = base * factor
            yield Sample("observe_magnitudes", (sample, counts, exponent), f"{name}-{step}")
            counts, exponent = QUANTO.observe_magnitudes(sample, counts, exponent)
        yield from _histogram_scales(name, counts, exponent)
    for dtype in DTYPES:
        counts, exponent = torch.zeros(8, dtype=torch.int64), torch.zeros((), dtype=torch.int64)
        for base in (torch.zeros(3, dtype=dtype), torch.empty(0, dtype=dtype)):
            name = f"{str(dtype)[6:]}-{base.numel()}-zeros"
            yield Sample("observe_magnitudes", (base, counts, exponent), name)
            yield from _histogram_scales(name, *QUANTO.observe_magnitudes(base, counts, exponent))


def _histogram_scales(name: str, counts: Tensor, exponent: Tensor) -> Iterator[Sample]:
    for qtype in CODES:
        yield Sample("mse_scale", (counts, exponent, qtype), f"{name}-{qtype}")
        for percentile in (50.0, 99.9, 100.0):
            yield Sample("percentile_scale", (counts, exponent, qtype, percentile), f"{name}-{qtype}-{percentile}")


# Input shape, weight shape, stride, padding (before and after each dimension), dilation.
CONVOLUTIONS = [
    ((2, 5, 6, 7), (4, 5, 3, 3), [1, 1], [1, 1, 1, 1], [1, 1]),
    ((1, 3, 9, 8), (7, 3, 3, 2), [2, 3], [0, 1, 2, 1], [1, 2]),
    ((3, 32, 4, 5), (9, 32, 1, 1), [1, 1], [0, 0, 0, 0], [1, 1]),
    ((2, 32, 5, 5), (3, 32, 1, 1), [2, 2], [1, 1, 0, 0], [1, 1]),
    ((4, 5, 6), (3, 4, 2, 3), [1, 1], [0, 0, 1, 1], [2, 1]),  # without a batch
    ((0, 3, 5, 5), (2, 3, 3, 3), [1, 1], [1, 1, 1, 1], [1, 1]),
    ((2, 6, 13), (5, 6, 5), [2], [2, 2], [1]),
    ((6, 17), (4, 6, 7), [1], [3, 2], [2]),
    ((2, 1, 20, 19), (2, 1, 7, 4), [3, 1], [3, 3, 2, 1], [1, 1]),
    ((1, 8, 4, 4), (3, 8, 4, 4), [1, 1], [0, 0, 0, 0], [1, 1]),
]


def _images(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    x = torch.randn(shape).to(dtype)
    yield "dense", x
    if len(shape) == 4:
        yield "channels last", x.to(memory_format=torch.channels_last)
    yield "strided", torch.randn((*shape[:-1], 2 * shape[-1])).to(dtype)[..., ::2]


def _conv() -> Iterator[Sample]:
    modes = ("zeros", "reflect", "replicate", "circular")
    for dtype in DTYPES:
        for number, (shape, weight, stride, padding, dilation) in enumerate(CONVOLUTIONS):
            base, bias = torch.randn(weight).to(dtype), torch.randn(weight[0]).to(dtype)
            for index, (kind, x) in enumerate(_images(shape, dtype)):
                mode = modes[(number + index) % 4]
                rest = (bias if (number + index) % 2 else None, stride, padding, dilation, mode)
                name = f"{str(dtype)[6:]}-{'x'.join(map(str, weight))}-{kind}-{mode}"
                for qtype, codes in CODES.items():
                    scale = QUANTO.absmax_scale(base, qtype, 0)
                    data = QUANTO.quantize_symmetric(base, codes, 0, scale)
                    yield Sample("conv_qbytes", (x, data, scale, *rest), f"{name}-{qtype}")
                yield from _conv_qbits(name, x, base, rest)


def _conv_qbits(name: str, x: Tensor, base: Tensor, rest: tuple[Any, ...]) -> Iterator[Sample]:
    group_size = 32 if base[0].numel() % 32 == 0 else 0
    for bits in (2, 4):
        scale, shift = QUANTO.minmax_scale(base, f"qint{bits}", 0, group_size or None)
        packed = QUANTO.quantize_affine_packed(base, bits, 0, group_size or None, scale, shift)
        arguments = (x, packed, scale, shift, bits, group_size, list(base.shape), *rest)
        yield Sample("conv_qbits", arguments, f"{name}-{bits}")


def _indices(rows: int) -> Iterator[tuple[str, Tensor]]:
    yield "int64", torch.randint(0, rows, (2, 3))
    yield "int32", torch.randint(0, rows, (7,), dtype=torch.int32)
    yield "scalar", torch.tensor(rows - 1)
    yield "empty", torch.empty(0, 4, dtype=torch.int64)
    yield "strided", torch.randint(0, rows, (4, 6)).t()[::2]


def _embedding() -> Iterator[Sample]:
    for dtype in DTYPES:
        for rows, columns, group_size in ((7, 33, 0), (10, 64, 32), (5, 96, 96), (1, 8, 0), (9, 64, 32)):
            base = torch.randn(rows, columns).to(dtype)
            for kind, indices in _indices(rows):
                name = f"{str(dtype)[6:]}-{rows}x{columns}-{kind}"
                for qtype, codes in CODES.items():
                    axis = None if rows == 1 else 0
                    scale = QUANTO.absmax_scale(base, qtype, axis)
                    data = QUANTO.quantize_symmetric(base, codes, axis, scale)
                    yield Sample("embedding_qbytes", (indices, data, scale), f"{name}-{qtype}")
                yield from _embedding_qbits(name, indices, base, group_size)


def _embedding_qbits(name: str, indices: Tensor, base: Tensor, group_size: int) -> Iterator[Sample]:
    for bits in (2, 4):
        scale, shift = QUANTO.minmax_scale(base, f"qint{bits}", 0, group_size or None)
        zero_point = (shift / scale).round().clamp(0, 2**bits - 1).to(torch.uint8)
        for kind, offset in (("float", shift), ("integer", zero_point)):
            packed = QUANTO.quantize_affine_packed(base, bits, 0, group_size or None, scale, offset)
            arguments = (indices, packed, scale, offset, bits, group_size, list(base.shape))
            yield Sample("embedding_qbits", arguments, f"{name}-{bits}-{kind}")


def all_samples() -> list[Sample]:
    torch.manual_seed(0)
    exact = [*_symmetric(), *_per_token(), *_affine(), *_packing(), *_histograms(), *_embedding()]
    return [*exact, *_linear(), *_linear_codes(), *_linear_quantizing(), *_qbytes_mm(), *_conv(), *_linear_of_floats()]


def few(samples: list[Sample], wanted: Callable[[Sample], bool] = lambda _: True, step: int = 23) -> list[Sample]:
    """Every `step`-th sample of each operator, for checks that take long."""
    by_op: dict[str, list[Sample]] = {}
    for sample in samples:
        if wanted(sample):
            by_op.setdefault(sample.op, []).append(sample)
    return [s for group in by_op.values() for s in group[:: max(1, min(step, len(group) // 4))]]
