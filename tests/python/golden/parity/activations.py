"""What torch's functions do to quantized activations, alone, in pairs and in place, and what autograd sees."""

import copy
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional

import optimum.quanto as quanto

from .cases import DTYPES, QTYPES_8_BIT, Case, activation, base, weight


Unary = dict[str, Callable[[Any], Any]]
Binary = dict[str, Callable[[Any, Any], Any]]

SHAPES = {"vector": (6,), "matrix": (4, 6), "cube": (2, 4, 6), "images": (2, 3, 4, 4), "empty": (0, 6), "scalar": ()}


def _last(t: Any) -> int:
    return max(t.ndim - 1, 0)


def _ones(t: Any, *shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=t.dtype)


def _mask(t: Any) -> torch.Tensor:
    return (torch.arange(t.numel()) % 3 == 0).reshape(t.shape)


MOVES: Unary = {
    "view": lambda t: t.view(-1),
    "view_as_rows": lambda t: t.view(-1, t.shape[-1]),
    "view_as": lambda t: t.view_as(torch.empty(t.shape)),
    "reshape": lambda t: t.reshape(-1),
    "reshape_after_transpose": lambda t: t.transpose(0, -1).reshape(-1),
    "flatten": lambda t: t.flatten(),
    "ravel": lambda t: t.ravel(),
    "unflatten": lambda t: t.unflatten(-1, (2, -1)),
    "transpose": lambda t: t.transpose(0, -1),
    "swapaxes": lambda t: t.swapaxes(0, -1),
    "t": lambda t: t.t(),
    "T": lambda t: t.T,
    "mT": lambda t: t.mT,
    "permute": lambda t: t.permute(*range(t.ndim - 1, -1, -1)),
    "movedim": lambda t: t.movedim(0, -1),
    "contiguous": lambda t: t.contiguous(),
    "contiguous_after_transpose": lambda t: t.transpose(0, -1).contiguous(),
    "slice": lambda t: t[1:3],
    "slice_last": lambda t: t[..., ::2],
    "select": lambda t: t[1],
    "select_negative": lambda t: t.select(-1, -1),
    "narrow": lambda t: t.narrow(-1, 1, 2),
    "index": lambda t: t[torch.tensor([1, 0])],
    "index_mask": lambda t: t[_mask(t)],
    "index_none": lambda t: t[None],
    "index_select": lambda t: t.index_select(0, torch.tensor([1, 0])),
    "gather": lambda t: t.gather(0, torch.zeros(t.shape, dtype=torch.long)),
    "take_along_dim": lambda t: t.take_along_dim(torch.zeros(t.shape, dtype=torch.long), 0),
    "take": lambda t: t.take(torch.tensor([2, 0])),
    "masked_select": lambda t: t.masked_select(_mask(t)),
    "unsqueeze": lambda t: t.unsqueeze(0),
    "unsqueeze_last": lambda t: t.unsqueeze(-1),
    "squeeze_dim": lambda t: t.unsqueeze(0).squeeze(0),
    "squeeze": lambda t: t.unsqueeze(0).squeeze(),
    "squeeze_nothing": lambda t: t.squeeze(0),
    "expand": lambda t: t.unsqueeze(0).expand(3, *t.shape),
    "expand_as": lambda t: t.unsqueeze(0).expand_as(torch.empty(2, *t.shape)),
    "broadcast_to": lambda t: t.broadcast_to((2, *t.shape)),
    "repeat": lambda t: t.repeat(*[2] * max(t.ndim, 1)),
    "repeat_interleave": lambda t: t.repeat_interleave(2, 0),
    "tile": lambda t: t.tile(2),
    "flip": lambda t: t.flip(0),
    "roll": lambda t: t.roll(1, 0),
    "split": lambda t: t.split(1),
    "split_uneven": lambda t: t.split(3, -1),
    "split_sizes": lambda t: torch.split(t, [1, t.shape[-1] - 1], -1),
    "chunk": lambda t: t.chunk(2, -1),
    "tensor_split": lambda t: t.tensor_split(2, -1),
    "unbind": lambda t: t.unbind(0),
    "unbind_last": lambda t: torch.unbind(t, -1),
    "cat": lambda t: torch.cat([t, t]),
    "cat_last": lambda t: torch.cat([t, t], -1),
    "cat_one": lambda t: torch.cat([t]),
    "cat_three": lambda t: torch.cat([t, t, t]),
    "concat": lambda t: torch.concat([t, t]),
    "cat_of_split": lambda t: torch.cat(t.split(1)),
    "stack": lambda t: torch.stack([t, t]),
    "stack_last": lambda t: torch.stack([t, t], -1),
    "stack_three": lambda t: torch.stack([t, t, t]),
    "hstack": lambda t: torch.hstack([t, t]),
    "vstack": lambda t: torch.vstack([t, t]),
    "clone": lambda t: t.clone(),
    "clone_after_transpose": lambda t: t.transpose(0, -1).clone(),
    "detach": lambda t: t.detach(),
    "data": lambda t: t.data,
    "alias": lambda t: torch.ops.aten.alias(t),
    "deepcopy": copy.deepcopy,
    "to_cpu": lambda t: t.to("cpu"),
    "to_copy": lambda t: t.to("cpu", copy=True),
    "to_float32": lambda t: t.to(torch.float32),
    "to_float16": lambda t: t.to(torch.float16),
    "to_bfloat16": lambda t: t.to(torch.bfloat16),
    "to_float64": lambda t: t.to(torch.float64),
    "to_int32": lambda t: t.to(torch.int32),
    "type_as": lambda t: t.type_as(torch.empty(0, dtype=torch.float16)),
    "float": lambda t: t.float(),
    "half": lambda t: t.half(),
    "cpu": lambda t: t.cpu(),
    "pad": lambda t: functional.pad(t, (0, 1)),
    "tril": lambda t: t.tril(),
    "triu": lambda t: t.triu(),
    "diagonal": lambda t: t.diagonal(),
    "unfold": lambda t: t.unfold(0, 2, 1),
    "as_strided": lambda t: t.as_strided((2,), (1,)),
    "zeros_like": lambda t: torch.zeros_like(t),
    "ones_like": lambda t: torch.ones_like(t),
    "empty_like": lambda t: torch.empty_like(t).shape,
    "full_like": lambda t: torch.full_like(t, 2.0),
    "new_zeros": lambda t: t.new_zeros(2, 3),
    "new_ones": lambda t: t.new_ones(2),
    "new_tensor": lambda t: t.new_tensor([1.0, 2.0]),
    "sort": lambda t: t.sort(-1).values,
    "topk": lambda t: t.topk(2, -1).values,
}

ARITHMETIC: Unary = {
    "neg": torch.neg,
    "minus": lambda t: -t,
    "abs": torch.abs,
    "sign": torch.sign,
    "relu": torch.relu,
    "functional_relu": functional.relu,
    "relu6": functional.relu6,
    "leaky_relu": functional.leaky_relu,
    "clamp": lambda t: t.clamp(-0.1, 0.1),
    "clamp_min": lambda t: t.clamp_min(0.0),
    "hardtanh": functional.hardtanh,
    "threshold": lambda t: functional.threshold(t, 0.1, 0.0),
    "round": torch.round,
    "floor": torch.floor,
    "mul": lambda t: t * 2.0,
    "mul_int": lambda t: t * 3,
    "mul_negative": lambda t: t * -0.3,
    "rmul": lambda t: 0.5 * t,
    "mul_scalar_tensor": lambda t: t * torch.tensor(0.7),
    "mul_scalar_tensor_same_dtype": lambda t: t * torch.tensor(0.7, dtype=t.dtype),
    "rmul_scalar_tensor": lambda t: torch.tensor(0.7) * t,
    "mul_one_element": lambda t: t * _ones(t, 1),
    "torch_mul": lambda t: torch.mul(t, 3.0),
    "multiply": lambda t: torch.multiply(t, 3.0),
    "mul_zero": lambda t: t * 0.0,
    "div": lambda t: t / 4.0,
    "div_int": lambda t: t / 3,
    "div_scalar_tensor": lambda t: t / torch.tensor(3.0),
    "div_tensor": lambda t: t / (2 * _ones(t, *t.shape)),
    "div_floor": lambda t: torch.div(t, 2.0, rounding_mode="floor"),
    "div_trunc": lambda t: torch.div(t, 2.0, rounding_mode="trunc"),
    "floordiv": lambda t: t // 0.25,
    "rdiv": lambda t: 1.0 / (t + 10.0),
    "reciprocal": lambda t: (t + 10.0).reciprocal(),
    "remainder": lambda t: t % 0.25,
    "fmod": lambda t: t.fmod(0.25),
    "add": lambda t: t + 1,
    "add_float": lambda t: t + 1.5,
    "radd": lambda t: 1.5 + t,
    "add_scalar_tensor": lambda t: t + torch.tensor(1.5),
    "add_alpha": lambda t: torch.add(t, 1.0, alpha=2.0),
    "sub": lambda t: t - 1.5,
    "rsub": lambda t: 1.5 - t,
    "pow": lambda t: t**2,
    "square": torch.square,
    "rpow": lambda t: 2.0**t,
    "sqrt": lambda t: t.abs().sqrt(),
    "rsqrt": lambda t: (t.abs() + 1).rsqrt(),
    "exp": torch.exp,
    "log": lambda t: (t.abs() + 1).log(),
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "erf": torch.erf,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "elu": functional.elu,
    "softplus": functional.softplus,
    "mish": functional.mish,
    "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid,
    "softmax": lambda t: torch.softmax(t, -1),
    "softmax_first": lambda t: functional.softmax(t, 0),
    "softmax_dtype": lambda t: functional.softmax(t, -1, dtype=torch.float32),
    "log_softmax": lambda t: torch.log_softmax(t, -1),
    "logsumexp": lambda t: t.logsumexp(-1),
    "layer_norm": lambda t: functional.layer_norm(t, t.shape[-1:]),
    "layer_norm_affine": lambda t: functional.layer_norm(
        t, t.shape[-1:], _ones(t, t.shape[-1]), _ones(t, t.shape[-1])
    ),
    "rms_norm": lambda t: functional.rms_norm(t, t.shape[-1:]),
    "normalize": lambda t: functional.normalize(t, dim=-1),
    "dropout_eval": lambda t: functional.dropout(t, 0.5, False),
    "dropout_nothing": lambda t: functional.dropout(t, 0.0, True),
    "isnan": torch.isnan,
    "isfinite": torch.isfinite,
    "nan_to_num": torch.nan_to_num,
    "logical_not": torch.logical_not,
    "lerp": lambda t: torch.lerp(t, _ones(t, *t.shape), 0.5),
    "addcmul": lambda t: torch.addcmul(t, t, t),
    "masked_fill": lambda t: t.masked_fill(_mask(t), 0.0),
    "where": lambda t: torch.where(_mask(t), t, torch.zeros((), dtype=t.dtype)),
    "where_float": lambda t: torch.where(_mask(t), t, 0.0),
    "where_tensor": lambda t: torch.where(_mask(t), t, _ones(t, *t.shape)),
    "where_other": lambda t: torch.where(_mask(t), _ones(t, *t.shape), t),
    "where_both": lambda t: torch.where(_mask(t), t, t),
    "where_condition": lambda t: torch.where(t > 0, t, torch.zeros((), dtype=t.dtype)),
}

REDUCTIONS: Unary = {
    "sum": lambda t: t.sum(),
    "sum_dim": lambda t: t.sum(-1, keepdim=True),
    "mean": lambda t: t.mean(-1),
    "var": lambda t: t.var(-1),
    "std": lambda t: t.std(),
    "norm": lambda t: t.norm(),
    "prod": lambda t: t.prod(-1),
    "cumsum": lambda t: t.cumsum(-1),
    "amax": lambda t: t.amax(),
    "amin": lambda t: t.amin(-1),
    "max": lambda t: t.max(),
    "max_dim": lambda t: t.max(-1).values,
    "min": lambda t: torch.min(t),
    "argmax": lambda t: t.argmax(),
    "argmin_dim": lambda t: t.argmin(-1),
    "all": lambda t: t.all(),
    "any": lambda t: (t > 0).any(),
    "median": lambda t: t.median(),
    "count_nonzero": lambda t: t.count_nonzero(),
    "item": lambda t: t.sum().item() > -1e9,
    "tolist": lambda t: len(t.tolist()) if t.ndim else isinstance(t.tolist(), float),
    "numpy": lambda t: (
        torch.from_numpy(t.float().numpy()) if t.dtype == torch.bfloat16 else torch.from_numpy(t.numpy())
    ),
    "bool": lambda t: bool(t.flatten()[0] > -1e9),
    "len": len,
    "size": lambda t: tuple(t.size()),
    "stride": lambda t: t.stride(),
    "stride_after_transpose": lambda t: t.transpose(0, -1).stride(),
    "is_contiguous": lambda t: t.is_contiguous(),
    "numel": lambda t: t.numel(),
    "is_floating_point": lambda t: t.is_floating_point(),
    "element_size": lambda t: t.element_size(),
    "qtype": lambda t: t.qtype.name,
    "axis": lambda t: t.axis,
    "dequantize": lambda t: t.dequantize(),
    "codes": lambda t: t._data.view(torch.int8),
    "scale": lambda t: t._scale,
    "qfallback": lambda t: quanto.qfallback(torch.add, t, 1.0),
    "equal_itself": lambda t: torch.equal(t, t),
    "equal_clone": lambda t: torch.equal(t, t.clone()),
    "method_equal": lambda t: t.equal(t.clone()),
    "equal_floats": lambda t: t.equal(t.dequantize()),
    "allclose": lambda t: torch.allclose(t, t),
    "isinstance": lambda t: (isinstance(t, quanto.QTensor), isinstance(t, quanto.QBytesTensor)),
}

COMPARISONS: Unary = {
    "gt": lambda t: t > 0.0,
    "lt": lambda t: t < 0.0,
    "ge": lambda t: t >= 0,
    "le": lambda t: t <= 0,
    "eq": lambda t: t == 0,
    "ne": lambda t: t != 0,
    "gt_tensor": lambda t: torch.gt(t, torch.zeros(())),
}

IN_PLACE: Unary = {
    "mul_": lambda t: t.mul_(2.0),
    "imul": lambda t: operator.imul(t, 2.0),
    "div_": lambda t: t.div_(2.0),
    "add_": lambda t: t.add_(1.0),
    "sub_": lambda t: t.sub_(1.0),
    "neg_": lambda t: t.neg_(),
    "relu_": lambda t: t.relu_(),
    "abs_": lambda t: t.abs_(),
    "clamp_": lambda t: t.clamp_(-0.1, 0.1),
    "exp_": lambda t: t.exp_(),
    "zero_": lambda t: t.zero_(),
    "fill_": lambda t: t.fill_(1.0),
    "masked_fill_": lambda t: t.masked_fill_(_mask(t), 0.0),
    "setitem": lambda t: operator.setitem(t, 0, 0.0),
    "unsqueeze_": lambda t: t.unsqueeze_(0),
    "squeeze_": lambda t: t.squeeze_(),
    "transpose_": lambda t: t.transpose_(0, -1),
    "t_": lambda t: t.t_(),
    "detach_": lambda t: t.detach_(),
    "requires_grad_": lambda t: t.requires_grad_().requires_grad,
    "copy_clone": lambda t: t.copy_(t.clone()),
    "copy_other_scale": lambda t: t.copy_(t * 2.0),
    "copy_floats": lambda t: t.copy_(_ones(t, *t.shape)),
    "into_floats": lambda t: torch.zeros(t.shape, dtype=t.dtype).copy_(t),
    "add_to_floats": lambda t: torch.zeros(t.shape, dtype=t.dtype).add_(t),
    "mul_floats": lambda t: torch.ones(t.shape, dtype=t.dtype).mul_(t),
    "set_floats": lambda t: operator.setitem(torch.zeros(2, *t.shape, dtype=t.dtype), 1, t),
    "relu_inplace_argument": lambda t: functional.relu(t, inplace=True),
}

BINARY: Binary = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": lambda a, b: torch.pow(abs(a) + 1, b),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "lt": operator.lt,
    "gt": operator.gt,
    "le": operator.le,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "cat": lambda a, b: torch.cat([a, b]),
    "stack": lambda a, b: torch.stack([a, b]),
    "where": lambda a, b: torch.where(_mask(a), a, b),
    "equal": torch.equal,
    "is_same_size": lambda a, b: torch.is_same_size(a, b),
    "allclose": torch.allclose,
    "copy_": lambda a, b: a.clone().copy_(b),
    "add_": lambda a, b: a.clone().add_(b),
    "mul_": lambda a, b: a.clone().mul_(b),
    "dist": torch.dist,
    "mse_loss": functional.mse_loss,
    "cosine_similarity": functional.cosine_similarity,
}

PRODUCTS: Binary = {
    "mm": lambda a, b: torch.mm(a, b.t()),
    "matmul": lambda a, b: a @ b.t(),
    "matmul_batch": lambda a, b: a.unsqueeze(0).expand(2, *a.shape) @ b.t(),
    "bmm": lambda a, b: torch.bmm(a.unsqueeze(0), b.t().unsqueeze(0)),
    "matmul_of_batches": lambda a, b: a.view(1, 1, *a.shape) @ b.t().view(1, 1, *b.shape[::-1]),
    "mv": lambda a, b: torch.mv(a, b[0]),
    "dot": lambda a, b: torch.dot(a[0], b[0]),
    "outer": lambda a, b: torch.outer(a[0], b[0]),
    "einsum": lambda a, b: torch.einsum("ik,jk->ij", a, b),
    "addmm": lambda a, b: torch.addmm(torch.ones((), dtype=a.dtype), a, b.t()),
    "baddbmm": lambda a, b: torch.baddbmm(torch.ones((1, 1, 1), dtype=a.dtype), a.unsqueeze(0), b.t().unsqueeze(0)),
    "linear": lambda a, b: functional.linear(a, b),
    "linear_bias": lambda a, b: functional.linear(a, b, torch.ones(b.shape[0], dtype=a.dtype)),
    "linear_batch": lambda a, b: functional.linear(a.unsqueeze(0).expand(2, *a.shape), b),
    "linear_view": lambda a, b: functional.linear(a.view(2, 2, -1), b),
    "linear_vector": lambda a, b: functional.linear(a[0], b),
    "attention": lambda a, b: functional.scaled_dot_product_attention(
        a.view(1, 1, *a.shape), b.view(1, 1, *b.shape), b.view(1, 1, *b.shape)
    ),
    "conv1d": lambda a, b: functional.conv1d(a.unsqueeze(0), b.unsqueeze(-1)[:, :4]),
}


def _unary_cases() -> list[Case]:
    cases = []
    for name, function in {**MOVES, **ARITHMETIC, **REDUCTIONS, **COMPARISONS, **IN_PLACE}.items():
        for qtype in QTYPES_8_BIT:
            cases.append(Case(f"activation/{name}/{qtype}/f32/matrix", function, lambda q=qtype: (activation(q),)))
        for short in ("bf16", "f16"):
            make = partial(activation, "qint8", DTYPES[short])
            cases.append(Case(f"activation/{name}/qint8/{short}/matrix", function, lambda m=make: (m(),)))
        for shape in SHAPES:
            if shape == "matrix" or (shape in ("empty", "scalar") and name in REDUCTIONS):
                continue
            make = partial(activation, "qint8", torch.float32, SHAPES[shape])
            cases.append(Case(f"activation/{name}/qint8/f32/{shape}", function, lambda m=make: (m(),)))
    return cases


# What meets a quantized activation (4, 6); same: of the same scale.
PARTNERS: dict[str, Callable[[str, torch.dtype], Any]] = {
    "same": lambda q, d: activation(q, d),
    "rescaled": lambda q, d: activation(q, d, seed=99),
    "other_qtype": lambda q, d: activation("qfloat8_e4m3fn" if q == "qint8" else "qint8", d),
    "floats": lambda q, d: base((4, 6), d, seed=99),
    "scalar": lambda q, d: 1.5,
    "scalar_tensor": lambda q, d: torch.tensor(1.5, dtype=d),
    "row": lambda q, d: base((6,), d, seed=99),
    "weight": lambda q, d: weight("qint8", d, (4, 6)),
    "weight4": lambda q, d: weight("qint4", d, (4, 6)),
}


def _binary_cases() -> list[Case]:
    cases = []
    for name, function in BINARY.items():
        for partner, make in PARTNERS.items():
            for qtype, short in (("qint8", "f32"), ("qfloat8_e4m3fn", "f32"), ("qint8", "bf16")):
                dtype = DTYPES[short]
                pair = lambda q=qtype, d=dtype, m=make: (activation(q, d), m(q, d))  # noqa: E731
                cases.append(Case(f"pair/{name}/{qtype}/{short}/{partner}", function, pair))
                if partner not in ("same", "rescaled") and name not in ("where", "copy_", "add_", "mul_"):
                    swapped = lambda p=pair: p()[::-1]  # noqa: E731
                    cases.append(Case(f"pair/{name}/{qtype}/{short}/{partner}-swapped", function, swapped))
    return cases


def _product_cases() -> list[Case]:
    partners: dict[str, Callable[[str, torch.dtype], Any]] = {
        "same": lambda q, d: activation(q, d),
        "rescaled": lambda q, d: activation(q, d, seed=99),
        "other_qtype": lambda q, d: activation("qfloat8_e4m3fn" if q == "qint8" else "qint8", d),
        "floats": lambda q, d: base((8, 6), d, seed=99),
        "weight8": lambda q, d: weight("qint8", d),
        "weight8_last": lambda q, d: weight("qint8", d, axis=-1),
        "weightf8": lambda q, d: weight("qfloat8_e4m3fn", d),
        "weight4": lambda q, d: weight("qint4", d),
        "weight2": lambda q, d: weight("qint2", d),
        "weight4_zero_point": lambda q, d: weight("qint4", d, zeropoint=True),
    }
    cases = []
    for name, function in PRODUCTS.items():
        for partner, make in partners.items():
            for qtype, short in (("qint8", "f32"), ("qfloat8_e4m3fn", "f32"), ("qint8", "bf16"), ("qint8", "f16")):
                dtype = DTYPES[short]
                pair = lambda q=qtype, d=dtype, m=make: (activation(q, d), m(q, d))  # noqa: E731
                cases.append(Case(f"product/{name}/{qtype}/{short}/{partner}", function, pair, product=True))
                if partner in ("floats", "weight8", "weight4") and qtype == "qint8":
                    swapped = lambda d=dtype, m=make: (base((4, 6), d), m("qint8", d))  # noqa: E731
                    cases.append(Case(f"product/{name}/floats/{short}/{partner}", function, swapped, product=True))
    return cases


def _gradient(function: Callable[[Any], Any], qtype: str, dtype: torch.dtype) -> tuple[Any, ...]:
    floats = base((4, 6), dtype).requires_grad_()
    target = quanto.qtypes[qtype]
    result = function(quanto.quantize_activation(floats, target, quanto.absmax_scale(floats.detach(), target)))
    result = result[0] if isinstance(result, tuple | list) else result
    plain = result.dequantize() if isinstance(result, quanto.QTensor) else result
    upstream = base(tuple(plain.shape), plain.dtype, seed=5)
    (gradient,) = torch.autograd.grad(plain, floats, upstream)
    return result.requires_grad, gradient


def _gradient_cases() -> list[Case]:
    # Functions of integers or of shapes have none.
    functions = {k: f for k, f in {**MOVES, **ARITHMETIC}.items() if not k.startswith(("is", "new_", "empty"))}
    functions |= {k: REDUCTIONS[k] for k in ("sum", "sum_dim", "mean", "norm", "amax", "dequantize")}
    functions |= {k: IN_PLACE[k] for k in ("mul_", "add_", "relu_", "into_floats")}
    functions |= {
        "matmul": lambda t: t @ base((6, 3), t.dtype),
        "linear": lambda t: functional.linear(t, base((3, 6), t.dtype)),
        "linear8": lambda t: functional.linear(t, weight("qint8", t.dtype)),
        "linear4": lambda t: functional.linear(t, weight("qint4", t.dtype)),
        "bmm": lambda t: torch.bmm(t.unsqueeze(0), t.t().unsqueeze(0)),
        "add_itself": lambda t: t + t,
        "mul_itself": lambda t: t * t,
    }
    cases = []
    for name, function in functions.items():
        for qtype, short in (("qint8", "f32"), ("qfloat8_e4m3fn", "f32"), ("qint8", "bf16")):
            call = partial(_gradient, function, qtype, DTYPES[short])
            cases.append(Case(f"gradient/{name}/{qtype}/{short}", call, product=True))
    return cases


def activation_cases() -> list[Case]:
    return [*_unary_cases(), *_binary_cases(), *_product_cases(), *_gradient_cases()]
