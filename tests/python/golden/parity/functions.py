"""The functions and operators that make scales, codes and groups, with their errors; optimizers and qtypes."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import optimum.quanto as quanto
from optimum.quanto.tensor.packed import PackedTensor, pack_weights

from .cases import DTYPES, Case, activation, base, weight


OPS = torch.ops.quanto
QTYPES_8_BIT = ("qint8", "qfloat8_e4m3fn", "qfloat8_e4m3fnuz", "qfloat8_e5m2")
SHAPES = {"vector": (6,), "matrix": (5, 6), "cube": (2, 3, 6), "row": (1, 6), "column": (6, 1), "images": (2, 3, 2, 2)}


def _symmetric_cases() -> list[Case]:
    cases = []
    for short, dtype in DTYPES.items():
        for qtype in QTYPES_8_BIT:
            for shape in SHAPES:
                for axis in (None, 0, -1, 1, 2):
                    t, target = base(SHAPES[shape], dtype), quanto.qtypes[qtype]
                    if qtype != "qint8" and (shape not in ("matrix", "vector") or axis in (1, 2)):
                        continue
                    label = f"{qtype}/{short}/{shape}/{axis}"
                    cases += [
                        Case(f"function/absmax_scale/{label}", partial(quanto.absmax_scale, t, target, axis)),
                        Case(f"function/absmax_optimizer/{label}", partial(quanto.AbsmaxOptimizer(), t, target, axis)),
                        Case(f"function/quantize_symmetric/{label}", partial(_symmetric, t, target, axis)),
                        Case(f"function/quantize_weight8/{label}", partial(_weight8, t, target, axis)),
                    ]
    return cases


def _symmetric(t: torch.Tensor, target: Any, axis: int | None) -> torch.Tensor:
    scale_of = quanto.AbsmaxOptimizer() if axis in (None, 0, -1) else quanto.absmax_scale
    scale = scale_of(t, target, axis)
    return OPS.quantize_symmetric(t, target.dtype, axis, scale)


def _weight8(t: torch.Tensor, target: Any, axis: Any) -> Any:
    scale = quanto.AbsmaxOptimizer()(t, target, axis)
    return quanto.quantize_weight(t, target, axis, scale)


AFFINE_SHAPES = {
    "matrix": ((6, 64), 32),
    "ungrouped": ((7, 19), None),
    "columns": ((64, 5), 16),
    "one_row": ((1, 64), 32),
    "one_row_ungrouped": ((1, 12), None),
    "cube": ((2, 4, 16), 16),
    "not_a_divisor": ((6, 64), 24),
    "too_large": ((6, 64), 128),
    "odd": ((5, 32), 32),
}


def _affine(t: torch.Tensor, bits: int, axis: int, group_size: int | None, zeropoint: bool) -> Any:
    target = quanto.qtypes[f"qint{bits}"]
    scale, shift = quanto.MaxOptimizer()(t, target, axis, group_size, zeropoint)
    codes = OPS.quantize_affine(t, bits, axis, group_size, scale, shift)
    w = quanto.quantize_weight(t, target, axis, scale, shift, group_size, optimized=False)
    return scale, shift, codes, w


def _hqq(t: torch.Tensor, bits: int, axis: int, group_size: int | None, arguments: dict[str, Any]) -> Any:
    return quanto.HqqOptimizer(**arguments)(t, quanto.qtypes[f"qint{bits}"], axis, group_size)


def _affine_cases() -> list[Case]:
    cases = []
    for short, dtype in DTYPES.items():
        for bits in (2, 4):
            for name, (shape, group_size) in AFFINE_SHAPES.items():
                for axis in (0, -1, 1):
                    t = base(shape, dtype, seed=31)
                    for zeropoint in (False, True):
                        label = f"{bits}/{short}/{name}/{axis}/{'zero_point' if zeropoint else 'float'}"
                        call = partial(_affine, t, bits, axis, group_size, zeropoint)
                        cases.append(Case(f"function/quantize_affine/{label}", call))
                    if name in ("matrix", "ungrouped", "odd") and axis != 1:
                        label = f"{bits}/{short}/{name}/{axis}"
                        call = partial(_hqq, t, bits, axis, group_size, {})
                        cases.append(Case(f"function/hqq/{label}", call, product=True))
                        call = partial(_hqq, t, bits, axis, group_size, {"lp_norm": 1, "beta": 5.0, "iters": 3})
                        cases.append(Case(f"function/hqq_l1/{label}", call, product=True))
    return cases


def _qbytes_mm(a: torch.Tensor, b: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return OPS.qbytes_mm(a, b, scales)


def _product_cases() -> list[Case]:
    cases = []
    for short, dtype in DTYPES.items():
        for qtype in ("qint8", "qfloat8_e4m3fn", "qfloat8_e5m2"):
            for rows in ((1,), (3,), (2, 3), (17,)):
                target = quanto.qtypes[qtype]
                w = base((8, 16), dtype, seed=777)
                scale = quanto.absmax_scale(w, target, 0)
                b = OPS.quantize_symmetric(w, target.dtype, 0, scale)
                x = base((*rows, 16), dtype, seed=3)
                codes = OPS.quantize_symmetric(x, target.dtype, None, quanto.absmax_scale(x, target))
                label = f"{qtype}/{short}/{'x'.join(map(str, rows))}"
                floats = partial(_qbytes_mm, x, b, scale)
                cases.append(Case(f"function/qbytes_mm_floats/{label}", floats, product=True))
                both = partial(_qbytes_mm, codes, b, quanto.absmax_scale(x, target) * scale)
                cases.append(Case(f"function/qbytes_mm_codes/{label}", both, product=True))
    return cases


def _packing_cases() -> list[Case]:
    cases = []
    for bits in (2, 4):
        for shape in ((1,), (3,), (8,), (4, 3), (5, 3), (7, 2, 2), (8, 16)):
            count = torch.Size(shape).numel()
            codes = (torch.arange(count) * 7 % 2**bits).to(torch.uint8).reshape(shape)
            label = f"{bits}/{'x'.join(map(str, shape))}"
            for name, call in {
                "pack_weights": partial(pack_weights, codes, bits),
                "unpack": lambda c=codes, b=bits: OPS.unpack(pack_weights(c, b), b),
                "packed": partial(PackedTensor.pack, codes, bits),
                "packed_unpack": lambda c=codes, b=bits: PackedTensor.pack(c, b).unpack(),
                "packed_facts": lambda c=codes, b=bits: _packed_facts(PackedTensor.pack(c, b)),
                "packed_add": lambda c=codes, b=bits: PackedTensor.pack(c, b) + 1,
                "packed_detach": lambda c=codes, b=bits: PackedTensor.pack(c, b).detach(),
                "packed_to": lambda c=codes, b=bits: PackedTensor.pack(c, b).to("cpu", copy=True),
                "packed_to_float": lambda c=codes, b=bits: PackedTensor.pack(c, b).to(torch.float32),
                "packed_numpy": lambda c=codes, b=bits: torch.from_numpy(PackedTensor.pack(c, b).numpy()),
                "packed_slice": lambda c=codes, b=bits: PackedTensor.pack(c, b)[:1],
                "packed_clone": lambda c=codes, b=bits: PackedTensor.pack(c, b).clone(),
                "packed_equal": lambda c=codes, b=bits: torch.equal(PackedTensor.pack(c, b), c),
            }.items():
                cases.append(Case(f"function/{name}/{label}", call))
    return cases


def _packed_facts(p: Any) -> tuple[Any, ...]:
    return p.bits, tuple(p.shape), p.stride(), p.dtype == torch.uint8, p.requires_grad, p._data


def _grouping_cases() -> list[Case]:
    cases = []
    for shape in ((4, 6), (6, 4), (2, 3, 4), (1, 12), (12,)):
        for axis in (0, -1, 1):
            for group_size in (2, 3, 4, 5, 100):
                t = base(shape)
                label = f"{'x'.join(map(str, shape))}/{axis}/{group_size}"
                cases += [
                    Case(f"function/group/{label}", partial(quanto.group, t, axis, group_size)),
                    Case(f"function/grouped_shape/{label}", partial(quanto.grouped_shape, t.shape, axis, group_size)),
                    Case(f"function/ungroup/{label}", partial(_ungrouped, t, axis, group_size)),
                ]
            cases.append(Case(f"function/axis_to_dim/{'x'.join(map(str, shape))}/{axis}", partial(_dims, t, axis)))
    return cases


def _ungrouped(t: torch.Tensor, axis: int, group_size: int) -> torch.Tensor:
    return quanto.ungroup(quanto.group(t, axis, group_size), axis, t.shape)


def _dims(t: torch.Tensor, axis: int) -> list[int]:
    return list(quanto.axis_to_dim(t, axis))


def _qtype_facts(name: str) -> tuple[Any, ...]:
    q = quanto.qtypes[name]
    return q.name, str(q), q.is_floating_point, q.bits, str(q.dtype), q.qmin, q.qmax, q == quanto.qtypes[name]


def _qtype_cases() -> list[Case]:
    cases = [Case(f"function/qtype/{name}", partial(_qtype_facts, name)) for name in quanto.qtypes]
    cases.append(Case("function/qtypes/names", lambda: sorted(quanto.qtypes)))
    cases.append(Case("function/qtypes/hash", lambda: len({quanto.qint8, quanto.qtypes["qint8"], quanto.qint4})))
    cases.append(Case("function/qtypes/alias", lambda: quanto.qfloat8 == quanto.qfloat8_e4m3fn))
    for dtype in (torch.float32, torch.bfloat16, torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2):
        facts = lambda d=dtype: (quanto.dtype_info(d).min, quanto.dtype_info(d).max)  # noqa: E731
        cases.append(Case(f"function/dtype_info/{str(dtype)[6:]}", facts))
    return cases


X, ROW, ONE = base((4, 6)), base((4, 1)).abs() + 1, torch.tensor(0.1)

ERRORS: dict[str, Callable[[], Any]] = {
    "scale_not_scalar": lambda: OPS.quantize_symmetric(X, torch.int8, None, ROW),
    "scale_of_one_element": lambda: OPS.quantize_symmetric(X, torch.int8, None, ONE.reshape(1)),
    "axis_out_of_range": lambda: OPS.quantize_symmetric(base((2, 3, 4)), torch.int8, 1, base((1, 3, 1))),
    "vector_per_axis": lambda: OPS.quantize_symmetric(base((6,)), torch.int8, 0, base((6,))),
    "axis_of_size_one": lambda: OPS.quantize_symmetric(base((1, 6)), torch.int8, 0, ONE.reshape(1, 1)),
    "scale_along_two_axes": lambda: OPS.quantize_symmetric(X, torch.int8, 0, X.abs() + 1),
    "scale_with_fewer_dimensions": lambda: OPS.quantize_symmetric(X, torch.int8, 0, ROW.flatten()),
    "last_axis_by_index": lambda: OPS.quantize_symmetric(X, torch.int8, 1, base((1, 6)).abs() + 1),
    "affine_axis": lambda: OPS.quantize_affine(X, 4, 1, None, ROW, ROW),
    "affine_group": lambda: OPS.quantize_affine(X, 4, 0, 5, ROW, ROW),
    "weight_axis": lambda: quanto.quantize_weight(X, quanto.qint8, 1, ROW),
    "weight_axis_none": lambda: quanto.quantize_weight(X, quanto.qint8, None, ONE),
    "weight_with_shift": lambda: quanto.quantize_weight(X, quanto.qint8, 0, ROW, ROW),
    "weight_with_group": lambda: quanto.quantize_weight(X, quanto.qint8, 0, ROW, None, 2),
    "weight_without_shift": lambda: quanto.quantize_weight(X, quanto.qint4, 0, ROW),
    "weight_keywords": lambda: quanto.quantize_weight(X, qtype=quanto.qint8, axis=0, scale=ROW),
    "activation_scale": lambda: quanto.quantize_activation(X, quanto.qint8, ROW),
    "activation_scale_of_one_element": lambda: quanto.quantize_activation(X, quanto.qint8, ONE.reshape(1)),
    "activation_qtype": lambda: quanto.quantize_activation(X, quanto.qint4, ONE),
    "activation_keywords": lambda: quanto.quantize_activation(X, qtype=quanto.qint8, scale=ONE),
    "activation_of_other_scale_dtype": lambda: quanto.quantize_activation(X, quanto.qint8, ONE.half()),
    "activation_of_integers": lambda: quanto.quantize_activation(X.int(), quanto.qint8, ONE),
    "activation_of_an_activation": lambda: quanto.quantize_activation(activation("qint8"), quanto.qint8, ONE),
    "activation_clamps": lambda: quanto.quantize_activation(X * 1000, quanto.qint8, ONE),
    "qbytes_quantize_qtype": lambda: quanto.WeightQBytesTensor.quantize(X, quanto.qint4, 0, ROW),
    "qbits_quantize_qtype": lambda: quanto.WeightQBitsTensor.quantize(X, quanto.qint8, 0, None, ROW, ROW),
    "qbits_quantize_axis": lambda: quanto.WeightQBitsTensor.quantize(X, quanto.qint4, 1, None, ROW, ROW),
    "weight_of_a_weight": lambda: quanto.quantize_weight(weight("qint8", shape=(4, 6)), quanto.qint8, 0, ROW),
    "optimizer_axis": lambda: quanto.AbsmaxOptimizer()(X, quanto.qint8, 1),
    "max_optimizer_axis": lambda: quanto.MaxOptimizer()(X, quanto.qint4, 1),
    "max_optimizer_axis_none": lambda: quanto.MaxOptimizer()(X, quanto.qint4, None),
    "optimizer_keywords": lambda: quanto.MaxOptimizer()(X, qtype=quanto.qint4, axis=0, group_size=3, zeropoint=False),
    "unknown_qtype": lambda: quanto.qtypes["qint3"],
    "pack_bits": lambda: PackedTensor.pack(torch.zeros(4, 4, dtype=torch.uint8), 3),
    "pack_dtype": lambda: PackedTensor.pack(torch.zeros(4, 4), 4),
    "base_optimizer": lambda: quanto.Optimizer()(X, 8, 0),
    "base_symmetric_optimizer": lambda: quanto.SymmetricOptimizer()(X, quanto.qint8, 0),
    "base_affine_optimizer": lambda: quanto.AffineOptimizer()(X, quanto.qint4, 0),
    "absmax_scale_default": lambda: quanto.absmax_scale(X),
    "absmax_scale_of_an_activation": lambda: quanto.absmax_scale(activation("qint8")),
    "absmax_scale_axis": lambda: quanto.absmax_scale(X, quanto.qint8, 3),
    "qfallback": lambda: quanto.qfallback(torch.add, activation("qint8"), other=activation("qint8", seed=9)),
    "qfallback_list": lambda: quanto.qfallback(torch.cat, [activation("qint8"), weight("qint4", shape=(4, 6))]),
    "is_extension_available": lambda: quanto.is_extension_available("quanto_cuda"),
    "get_extension": lambda: quanto.library.get_extension("no_such_extension"),
}


class _HalfMax(quanto.SymmetricOptimizer):
    def optimize(self, base: torch.Tensor, qtype: Any, axis: int | None = None) -> torch.Tensor:
        return quanto.absmax_scale(base, qtype, axis) / 2


class _WrongDtype(quanto.SymmetricOptimizer):
    def optimize(self, base: torch.Tensor, qtype: Any, axis: int | None = None) -> torch.Tensor:
        return quanto.absmax_scale(base, qtype, axis).double()


class _Shifted(quanto.AffineOptimizer):
    def optimize(self, base: torch.Tensor, qtype: Any, axis: int) -> Any:
        dims = list(range(1, base.ndim)) if axis == 0 else list(range(base.ndim - 1))
        return base.abs().amax(dims, keepdim=True) / qtype.bits, base.abs().amax(dims, keepdim=True) / 2


USER_OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "symmetric": lambda: _HalfMax()(X, quanto.qint8, 0),
    "symmetric_none": lambda: _HalfMax()(X, quanto.qint8),
    "wrong_dtype": lambda: _WrongDtype()(X, quanto.qint8, 0),
    "affine": lambda: _Shifted()(X, quanto.qint4, 0, 3),
    "affine_zero_point": lambda: _Shifted()(X, quanto.qint4, -1, 4, True),
}


# Where code written for 0.2.7 imports names from. What is specific to CUDA kernels is gone.
PATHS = {
    "": "Calibration absmax_scale is_extension_available get_extension QConv2d QLayerNorm QLinear QModuleMixin "
    "register_qmodule quantize_module quantize freeze requantize quantization_map ActivationQBytesTensor "
    "quantize_activation axis_to_dim dtype_info group ungroup grouped_shape AbsmaxOptimizer AffineOptimizer "
    "HqqOptimizer MaxOptimizer Optimizer SymmetricOptimizer QBitsTensor QBytesTensor QTensor qfallback qtype qtypes "
    "qint2 qint4 qint8 qfloat8 qfloat8_e4m3fn qfloat8_e4m3fnuz qfloat8_e5m2 WeightQBitsTensor WeightQBytesTensor "
    "quantize_weight",
    "calibrate": "Calibration absmax_scale",
    "library": "is_extension_available get_extension",
    "library.extensions": "is_extension_available get_extension",
    "library.extensions.extension": "is_extension_available get_extension",
    "nn": "QConv2d QLayerNorm QLinear QModuleMixin register_qmodule quantize_module",
    "nn.qconv2d": "QConv2d",
    "nn.qlayernorm": "QLayerNorm",
    "nn.qlinear": "QLinear",
    "nn.qmodule": "QModuleMixin register_qmodule quantize_module",
    "quantize": "quantize freeze requantize quantization_map",
    "tensor": "QTensor QBytesTensor QBitsTensor ActivationQBytesTensor WeightQBytesTensor WeightQBitsTensor qtypes",
    "tensor.activations": "ActivationQBytesTensor quantize_activation",
    "tensor.activations.qbytes": "ActivationQBytesTensor",
    "tensor.activations.qbytes_ops": "get_qbytestensor_op_dispatch register_qbytestensor_op",
    "tensor.activations.quantization": "quantize_activation",
    "tensor.core": "axis_to_dim dtype_info",
    "tensor.function": "QuantizedLinearFunction",
    "tensor.grouped": "group ungroup grouped_shape",
    "tensor.optimizers": "AbsmaxOptimizer AffineOptimizer HqqOptimizer MaxOptimizer Optimizer SymmetricOptimizer",
    "tensor.optimizers.hqq_optimizer": "HqqOptimizer",
    "tensor.packed": "PackedTensor pack_weights",
    "tensor.qbits": "QBitsTensor",
    "tensor.qbytes": "QBytesTensor",
    "tensor.qtensor": "QTensor qfallback",
    "tensor.qtype": "qtype qtypes qint2 qint4 qint8 qfloat8 qfloat8_e4m3fn qfloat8_e4m3fnuz qfloat8_e5m2",
    "tensor.weights": "WeightQBitsTensor WeightQBytesTensor quantize_weight",
    "tensor.weights.qbits": "WeightQBitsTensor",
    "tensor.weights.qbytes": "WeightQBytesTensor",
    "tensor.weights.quantization": "quantize_weight",
}


def _kinds(path: str) -> dict[str, str]:
    module = importlib.import_module(f"optimum.quanto.{path}".rstrip("."))
    return {name: "class" if isinstance(getattr(module, name), type) else "other" for name in PATHS[path].split()}


def function_cases() -> list[Case]:
    return [
        *_symmetric_cases(),
        *_affine_cases(),
        *_product_cases(),
        *_packing_cases(),
        *_grouping_cases(),
        *_qtype_cases(),
        *(Case(f"error/{name}", call) for name, call in ERRORS.items()),
        *(Case(f"path/{path or 'optimum.quanto'}", partial(_kinds, path)) for path in PATHS),
        *(Case(f"optimizer/{name}", call) for name, call in USER_OPTIMIZERS.items()),
    ]
