"""Quantized weights: their parts, what torch's functions do to them, and gradients."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional

import optimum.quanto as quanto
from optimum.quanto.tensor.packed import PackedTensor

from .cases import DTYPES, Case, base, weight


QTYPES = ("qint8", "qfloat8_e4m3fn", "qfloat8_e4m3fnuz", "qfloat8_e5m2", "qint4", "qint2")

# name: shape, axis, group size (of qint4 and qint2), zero point
LAYOUTS: dict[str, tuple[tuple[int, ...], int, int | None, bool]] = {
    "rows": ((8, 6), 0, None, False),
    "odd": ((5, 7), 0, None, False),
    "columns": ((8, 6), -1, None, False),
    "one_row": ((1, 6), 0, None, False),
    "one_column": ((6, 1), -1, None, False),
    "kernel": ((4, 3, 2, 2), 0, None, False),
    "kernel_last": ((4, 3, 2, 2), -1, None, False),
    "groups": ((6, 64), 0, 32, False),
    "groups_last": ((64, 4), -1, 32, False),
    "zero_point": ((8, 6), 0, None, True),
    "zero_point_groups": ((6, 64), 0, 32, True),
    "cache": ((1, 2, 4, 32), 0, 32, False),
    "cache_last": ((1, 2, 4, 32), -1, 4, False),
    "vector": ((6,), 0, None, False),
    "transposed": ((6, 8), 0, None, False),
}


def _make(layout: str, qtype: str, dtype: torch.dtype) -> Any:
    shape, axis, group_size, zeropoint = LAYOUTS[layout]
    eight_bits = quanto.qtypes[qtype].bits == 8
    floats = base(shape[::-1] if layout == "transposed" else shape, dtype, seed=777)
    return weight(
        qtype,
        dtype,
        axis=axis,
        group_size=None if eight_bits else group_size,
        zeropoint=zeropoint and not eight_bits,
        floats=floats.t() if layout == "transposed" else floats,
    )


PARTS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda w: w,
    "dequantize": lambda w: w.dequantize(),
    "codes": lambda w: w._data.unpack() if hasattr(w._data, "unpack") else w._data.view(torch.int8),
    "bytes": lambda w: w._data._data if hasattr(w._data, "unpack") else w._data.view(torch.int8),
    "scale": lambda w: w._scale,
    "shift": lambda w: getattr(w, "_shift", None),
    "attributes": lambda w: (w.axis, w.qtype.name, tuple(w.shape), w.stride(), getattr(w, "_group_size", None)),
    "state_dict": lambda w: _saved(w),
}


def _saved(w: Any) -> dict[str, Any]:
    destination: dict[str, Any] = {}
    w.save_to_state_dict(destination, "weight.", False)
    return {key: t.view(torch.uint8) if t.dtype.itemsize == 1 else t for key, t in destination.items()}


def _reloaded(w: Any) -> Any:
    destination: dict[str, Any] = {}
    w.save_to_state_dict(destination, "w.", False)
    missing: list[str] = []
    if w.qtype.bits == 8:
        loaded = quanto.WeightQBytesTensor.load_from_state_dict(
            destination, "w.", w.qtype, w.axis, w.size(), w.stride(), None, missing
        )
    else:
        loaded = quanto.WeightQBitsTensor.load_from_state_dict(
            destination, "w.", w.qtype, w.axis, w._group_size, w.size(), w.stride(), missing
        )
    return loaded, missing


def _missing(w: Any) -> Any:
    missing: list[str] = []
    if w.qtype.bits == 8:
        loaded = quanto.WeightQBytesTensor.load_from_state_dict(
            {}, "w.", w.qtype, w.axis, w.size(), w.stride(), None, missing
        )
    else:
        loaded = quanto.WeightQBitsTensor.load_from_state_dict(
            {}, "w.", w.qtype, w.axis, w._group_size, w.size(), w.stride(), missing
        )
    return loaded, missing


def _x(w: Any, rows: int = 3) -> torch.Tensor:
    return base((rows, w.shape[-1]), w.dtype, seed=3)


OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "detach": lambda w: w.detach(),
    "data": lambda w: w.data,
    "parameter": lambda w: torch.nn.Parameter(w, requires_grad=False),
    "parameter_with_gradient": lambda w: torch.nn.Parameter(w).requires_grad,
    "clone": lambda w: w.clone(),
    "to_cpu": lambda w: w.to("cpu"),
    "to_copy": lambda w: w.to("cpu", copy=True),
    "to_same_dtype": lambda w: w.to(w.dtype),
    "to_other_dtype": lambda w: w.to(torch.float16 if w.dtype != torch.float16 else torch.float32),
    "to_float64": lambda w: w.to(torch.float64),
    "to_int": lambda w: w.to(torch.int32),
    "cpu": lambda w: w.cpu(),
    "half": lambda w: w.half(),
    "t": lambda w: w.t(),
    "t_t": lambda w: w.t().t(),
    "T": lambda w: w.T,
    "transpose": lambda w: w.transpose(0, -1),
    "permute": lambda w: w.permute(*range(w.ndim - 1, -1, -1)),
    "view": lambda w: w.view(-1),
    "reshape": lambda w: w.reshape(-1),
    "flatten": lambda w: w.flatten(1),
    "contiguous": lambda w: w.contiguous(),
    "slice": lambda w: w[1:3],
    "select": lambda w: w[0],
    "index": lambda w: w[torch.tensor([0])],
    "unsqueeze": lambda w: w.unsqueeze(0),
    "squeeze": lambda w: w.squeeze(),
    "expand": lambda w: w.unsqueeze(0).expand(2, *w.shape),
    "split": lambda w: w.split(2),
    "chunk": lambda w: w.chunk(2),
    "cat": lambda w: torch.cat([w, w]),
    "stack": lambda w: torch.stack([w, w]),
    "repeat": lambda w: w.repeat(*[2] * w.ndim),
    "neg": lambda w: -w,
    "abs": torch.abs,
    "relu": torch.relu,
    "add": lambda w: w + 1.0,
    "add_itself": lambda w: w + w,
    "sub_itself": lambda w: w - w,
    "mul": lambda w: w * 2.0,
    "rmul": lambda w: 2.0 * w,
    "mul_itself": lambda w: w * w,
    "div": lambda w: w / 2.0,
    "pow": lambda w: w**2,
    "gt": lambda w: w > 0,
    "eq": lambda w: w == w,
    "sum": lambda w: w.sum(),
    "mean": lambda w: w.mean(),
    "amax": lambda w: w.amax(),
    "norm": lambda w: w.norm(),
    "where": lambda w: torch.where(w > 0, w, torch.zeros((), dtype=w.dtype)),
    "masked_fill": lambda w: w.masked_fill(torch.ones(w.shape, dtype=torch.bool), 0.0),
    "zeros_like": torch.zeros_like,
    "ones_like": torch.ones_like,
    "new_zeros": lambda w: w.new_zeros(2),
    "empty_like": lambda w: torch.empty_like(w).shape,
    "isfinite": lambda w: torch.isfinite(w).all(),
    "equal": lambda w: torch.equal(w, w),
    "equal_clone": lambda w: torch.equal(w, w.detach()),
    "equal_floats": lambda w: torch.equal(w, w.dequantize()),
    "method_equal": lambda w: w.equal(w.detach()),
    "not_equal": lambda w: w.equal(w.dequantize()),
    "allclose": lambda w: torch.allclose(w, w),
    "numpy": lambda w: torch.from_numpy(w.numpy()),
    "len": len,
    "numel": lambda w: w.numel(),
    "requires_grad": lambda w: w.requires_grad,
    "is_contiguous": lambda w: w.is_contiguous(),
    "element_size": lambda w: w.element_size(),
    "optimize": lambda w: w.optimize().dequantize(),
    "deepcopy": copy.deepcopy,
    "reload": _reloaded,
    "missing": _missing,
    "qfallback": lambda w: quanto.qfallback(torch.add, w, 1.0),
    "add_": lambda w: w.add_(1.0),
    "zero_": lambda w: w.zero_(),
    "copy_": lambda w: w.copy_(w.detach()),
    "copy_floats": lambda w: w.copy_(w.dequantize()),
    "into_floats": lambda w: torch.zeros(w.shape, dtype=w.dtype).copy_(w),
    "packed": lambda w: w._data if isinstance(w._data, PackedTensor) else None,
}

PRODUCTS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda w: functional.linear(_x(w), w),
    "linear_bias": lambda w: functional.linear(_x(w), w, base((w.shape[0],), w.dtype)),
    "linear_vector": lambda w: functional.linear(_x(w)[0], w),
    "linear_batch": lambda w: functional.linear(_x(w, 4).view(2, 2, -1), w),
    "linear_empty": lambda w: functional.linear(_x(w)[:0], w),
    "linear_many": lambda w: functional.linear(_x(w, 33), w),
    "linear_other_dtype": lambda w: functional.linear(_x(w).to(torch.float64), w),
    "linear_wrong_shape": lambda w: functional.linear(_x(w)[:, 1:], w),
    "linear_wrong_bias": lambda w: functional.linear(_x(w), w, base((w.shape[0] + 1,), w.dtype)),
    "matmul": lambda w: _x(w) @ w.t(),
    "matmul_left": lambda w: w @ _x(w).t(),
    "mm": lambda w: torch.mm(_x(w), w.t()),
    "addmm": lambda w: torch.addmm(base((w.shape[0],), w.dtype), _x(w), w.t()),
    "bmm": lambda w: torch.bmm(_x(w).unsqueeze(0), w.t().unsqueeze(0)),
    "mv": lambda w: torch.mv(w, _x(w)[0]),
    "embedding": lambda w: functional.embedding(torch.tensor([[0, 2], [1, 1]]), w),
    "einsum": lambda w: torch.einsum("ik,jk->ij", _x(w), w),
    "conv2d": lambda w: functional.conv2d(base((1, w.shape[1], 5, 5), w.dtype), w),
    "bilinear": lambda w: functional.linear(_x(w), w + w),
}


def _loss_gradients(qtype: str, dtype: torch.dtype, group_size: int | None, with_bias: bool) -> tuple[Any, ...]:
    """Gradients of the float weight, the input and the bias through quantization and a linear function."""
    floats = base((8, 64), dtype, seed=777).requires_grad_()
    w = weight(qtype, dtype, group_size=group_size, floats=floats)
    x = base((3, 64), dtype, seed=3).requires_grad_()
    bias = base((8,), dtype, seed=4).requires_grad_() if with_bias else None
    leaves = [floats, x] if bias is None else [floats, x, bias]
    output = functional.linear(x, w, bias)
    return (output.requires_grad, *torch.autograd.grad(output, leaves, base((3, 8), dtype, seed=5)))


def _dequantize_gradient(qtype: str, dtype: torch.dtype, axis: int) -> tuple[Any, ...]:
    floats = base((8, 6), dtype, seed=777).requires_grad_()
    w = weight(qtype, dtype, axis=axis, floats=floats)
    values = w.dequantize()
    return w.requires_grad, *torch.autograd.grad(values, floats, base((8, 6), dtype, seed=5))


def _frozen_gradient(qtype: str, dtype: torch.dtype, function: Callable[[Any, Any], Any]) -> tuple[Any, ...]:
    w, x = weight(qtype, dtype), base((3, 6), dtype, seed=3).requires_grad_()
    output = function(x, w)
    return output.requires_grad, *torch.autograd.grad(output.sum(), x)


def _gradient_cases() -> list[Case]:
    cases = []
    for qtype in QTYPES:
        for short, dtype in DTYPES.items():
            group_size = 32 if qtype in ("qint4", "qint2") else None
            for with_bias in (False, True):
                name = f"weight_gradient/linear/{qtype}/{short}/{'bias' if with_bias else 'plain'}"
                call = partial(_loss_gradients, qtype, dtype, group_size, with_bias)
                cases.append(Case(name, call, product=True))
            for axis in (0, -1):
                call = partial(_dequantize_gradient, qtype, dtype, axis)
                cases.append(Case(f"weight_gradient/dequantize/{qtype}/{short}/{axis}", call, product=True))
            for name, function in (
                ("frozen_linear", functional.linear),
                ("frozen_matmul", lambda x, w: x @ w.t()),
                ("frozen_mul", lambda x, w: x[:, None] * w),
            ):
                call = partial(_frozen_gradient, qtype, dtype, function)
                cases.append(Case(f"weight_gradient/{name}/{qtype}/{short}", call, product=True))
    return cases


def _layouts_of(operation: str, qtype: str) -> list[str]:
    if operation in PARTS:
        return list(LAYOUTS)
    return ["rows", "columns", "kernel"] if qtype in ("qint8", "qint4") else ["rows"]


def weight_cases() -> list[Case]:
    cases = []
    for product, functions in ((False, PARTS), (False, OPERATIONS), (True, PRODUCTS)):
        for name, function in functions.items():
            for qtype in QTYPES:
                for layout in _layouts_of(name, qtype):
                    for short, dtype in DTYPES.items():
                        # Every layout in one dtype, every dtype in one layout.
                        if short != "f32" and layout not in ("rows", "groups", "groups_last"):
                            continue
                        make = partial(_make, layout, qtype, dtype)
                        label = f"weight/{name}/{qtype}/{short}/{layout}"
                        cases.append(Case(label, function, lambda m=make: (m(),), product))
    return [*cases, *_gradient_cases()]
