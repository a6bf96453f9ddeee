"""What the operators of torch do to quantized activations."""

import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core import dtype_info
from ..qbytes import QBytesTensor
from ..qtensor import QTensor, qfallback
from ..qtype import qint8
from .dispatch import implements
from .qbytes import ActivationQBytesTensor
from .quantization import quantize_activation


aten = torch.ops.aten


def _with_data(t: ActivationQBytesTensor, data: Tensor, scale: Tensor | None = None) -> ActivationQBytesTensor:
    """Other codes, and maybe another scale, of the same qtype."""
    return ActivationQBytesTensor(t.qtype, data.size(), data.stride(), data, t._scale if scale is None else scale)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, numbers.Number) or (type(value) is Tensor and value.ndim == 0)


def _share_scale(tensors: Sequence[Any]) -> bool:
    first = tensors[0]
    return all(
        isinstance(t, ActivationQBytesTensor) and t.qtype == first.qtype and torch.equal(t._scale, first._scale)
        for t in tensors
    )


@implements(
    aten.view,
    aten._unsafe_view,
    aten.reshape,
    aten.expand,
    aten.permute,
    aten.select,
    aten.slice,
    aten.squeeze,
    aten.unsqueeze,
    aten.transpose,
    aten.t,
)
def _move(op: Any, t: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(t, ActivationQBytesTensor):
        return qfallback(op, t, *args, **kwargs)
    return _with_data(t, op(t._data, *args, **kwargs))


@implements(aten.split, aten.chunk, aten.unbind)
def _split(op: Any, t: ActivationQBytesTensor, *args: Any, **kwargs: Any) -> list[ActivationQBytesTensor]:
    return [_with_data(t, data) for data in op(t._data, *args, **kwargs)]


@implements(aten.clone)
def _clone(op: Any, t: ActivationQBytesTensor, *, memory_format: Any = torch.preserve_format) -> Any:
    return _with_data(t, op(t._data, memory_format=memory_format), t._scale.clone())


@implements(aten.cat, aten.stack)
def _join(op: Any, tensors: Sequence[Any], dim: int = 0) -> Any:
    # float8 codes have no concatenation of their own, and codes of different scales do not mix.
    if _share_scale(tensors) and not tensors[0].qtype.is_floating_point:
        return _with_data(tensors[0], op([t._data for t in tensors], dim))
    return qfallback(op, tensors, dim)


@implements(aten.lt)
def _less(op: Any, input: Any, other: Any) -> Any:
    if _share_scale([input, other]) and not input.qtype.is_floating_point:
        return op(input._data, other._data)
    return qfallback(op, input, other)


@implements(aten.neg, aten.relu)
def _integer_only(op: Any, t: ActivationQBytesTensor) -> Any:
    # -(-128) is not an int8: such a code, which a calibrated scale can give, falls back with all the others.
    overflows = op is aten.neg and not t.qtype.is_floating_point and bool((t._data == -128).any())
    if t.qtype.is_floating_point or overflows:
        return qfallback(op, t)
    return _with_data(t, op(t._data))


@implements(aten.mul)
def _mul(op: Any, input: Any, other: Any) -> Any:
    if isinstance(input, ActivationQBytesTensor) and _is_scalar(other):
        return _scaled(input, input._scale * other)
    if isinstance(other, ActivationQBytesTensor) and _is_scalar(input):
        return _scaled(other, input * other._scale)
    return qfallback(op, input, other)


@implements(aten.div)
def _div(op: Any, input: Any, other: Any, **kwargs: Any) -> Any:
    if isinstance(input, ActivationQBytesTensor) and _is_scalar(other) and kwargs.get("rounding_mode") is None:
        return _scaled(input, input._scale / other)
    return qfallback(op, input, other, **kwargs)


def _scaled(t: ActivationQBytesTensor, scale: Tensor) -> ActivationQBytesTensor:
    return _with_data(t, t._data, scale.to(t._scale.dtype))


@implements(aten._softmax)
def _softmax(op: Any, input: ActivationQBytesTensor, dim: int, half_to_float: bool) -> Any:
    # The result lies between 0 and 1, so its best scale is known.
    output = op(input.dequantize(), dim, half_to_float)
    scale = torch.full((), 1 / dtype_info(input.qtype.dtype).max, dtype=input._scale.dtype, device=input.device)
    return quantize_activation(output, qtype=input.qtype, scale=scale)


@implements(aten.where)
def _where(op: Any, condition: Any, input: Any, other: Any) -> Any:
    if isinstance(input, ActivationQBytesTensor) and not isinstance(condition, QTensor):
        plain = other.dequantize() if isinstance(other, QTensor) else other
        return quantize_activation(op(condition, input.dequantize(), plain), input.qtype, input._scale)
    return qfallback(op, condition, input, other)


@implements(aten.bmm)
def _bmm(op: Any, input: Any, other: Any) -> Any:
    codes = isinstance(input, ActivationQBytesTensor) and isinstance(other, QBytesTensor)
    if not codes or other.axis is not None or input.qtype != qint8 or other.qtype != qint8:
        return qfallback(op, input, other)
    # Products of int8 codes are exact in float32 up to 2^24 / 2^14 = 1024 terms, in float64 always.
    wide = torch.float32 if input.shape[-1] <= 1024 else torch.float64
    sums = op(input._data.to(wide), other._data.to(wide)).to(torch.float32)
    return (sums * (input._scale * other._scale).to(torch.float32)).to(input._scale.dtype)


@implements(aten.is_same_size)
def _is_same_size(op: Any, input: Tensor, other: Tensor) -> bool:
    return input.shape == other.shape
