"""What the operators of torch do to quantized activations."""

import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from ..core import dtype_info
from ..qbytes import QBytesTensor
from ..qtensor import QTensor, qfallback
from ..qtype import qint8
from ..wrapper import FLOAT_DTYPES, fallback, to_copy
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
        isinstance(t, ActivationQBytesTensor) and t.qtype == first.qtype and _same_scale(t, first) for t in tensors
    )


def _same_scale(one: ActivationQBytesTensor, other: ActivationQBytesTensor) -> bool:
    # A graph cannot depend on values; falling back gives the same numbers.
    return one._scale is other._scale or (not is_fake(one._scale) and torch.equal(one._scale, other._scale))


@implements(
    aten.view,
    aten._unsafe_view,
    aten.reshape,
    aten.expand,
    aten.permute,
    aten.select,
    aten.slice,
    aten.unsqueeze,
    aten.transpose,
    aten.t,
)
def _move(op: Any, t: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(t, ActivationQBytesTensor):
        return qfallback(op, t, *args, **kwargs)
    return _with_data(t, op(t._data, *args, **kwargs))


@implements(aten.split, aten.chunk)
def _split(op: Any, t: ActivationQBytesTensor, *args: Any, **kwargs: Any) -> list[ActivationQBytesTensor]:
    return [_with_data(t, data) for data in op(t._data, *args, **kwargs)]


@implements(aten._to_copy)
def _to_copy(op: Any, t: ActivationQBytesTensor, *, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
    # Scales have the dtypes that the kernels have; integers have no scales.
    if dtype is None or dtype in FLOAT_DTYPES:
        return to_copy(op, t, dtype=dtype, **kwargs)
    return qfallback(op, t, dtype=dtype, **kwargs)


@implements(aten.clone)
def _clone(op: Any, t: ActivationQBytesTensor, *, memory_format: Any = torch.preserve_format) -> Any:
    return _with_data(t, op(t._data, memory_format=memory_format), t._scale.clone())


@implements(aten.cat)
def _cat(op: Any, tensors: Sequence[Any], dim: int = 0) -> Any:
    # float8 codes have no concatenation of their own.
    if len(tensors) == 2 and any(isinstance(t, QTensor) and t.qtype.is_floating_point for t in tensors):
        return qfallback(op, tensors, dim)
    return _join(op, tensors, dim)


@implements(aten.stack)
def _join(op: Any, tensors: Sequence[Any], dim: int = 0) -> Any:
    """Pairs stay quantized; codes of different scales do not mix."""
    if len(tensors) == 2 and _share_scale(tensors):
        return _with_data(tensors[0], op([t._data for t in tensors], dim))
    return qfallback(op, tensors, dim)


@implements(aten.lt)
def _less(op: Any, input: Any, other: Any) -> Any:
    if _share_scale([input, other]) and not input.qtype.is_floating_point:
        scale = input._scale  # a product with a number may have turned it around, or made it zero
        return torch.where(scale < 0, op(other._data, input._data), op(input._data, other._data)) & (scale != 0)
    return qfallback(op, input, other)


def _positive_part(t: ActivationQBytesTensor) -> Tensor:
    """The codes of `t` where it is positive, and else those of zero: a scale is negative after a product with such."""
    codes = t._data.to(torch.float32) if t.qtype.is_floating_point else t._data
    return torch.where(t._scale < 0, codes.clamp(max=0), codes.clamp(min=0)).to(t._data.dtype)


def _may_overflow(codes: Tensor) -> bool:
    return is_fake(codes) or bool((codes == -128).any())


@implements(aten.neg, aten.relu)
def _integer_only(op: Any, t: ActivationQBytesTensor) -> Any:
    # -(-128) is not an int8: such a code, which a calibrated scale can give, falls back with all the others.
    if t.qtype.is_floating_point or (op is aten.neg and _may_overflow(t._data)):
        return qfallback(op, t)
    return _with_data(t, _positive_part(t) if op is aten.relu else op(t._data))


@implements(aten.relu_)
def _relu_(op: Any, t: ActivationQBytesTensor) -> ActivationQBytesTensor:
    # What activation layers with inplace=True call; other functions in place have no codes to give.
    t._data.copy_(_positive_part(t))
    return t


@implements(aten.masked_fill_)
def _masked_fill_(op: Any, t: Any, mask: Tensor, value: Any) -> Any:
    # torch's gradients (of norms, for instance) put zeros into what may be quantized.
    is_number = isinstance(value, numbers.Number)
    if not isinstance(t, ActivationQBytesTensor) or not is_number or value != 0:
        return fallback(op.Scalar if is_number else op.Tensor, t, mask, value)
    op(t._data.view(torch.uint8), mask, 0)
    return t


@implements(aten.mul)
def _mul(op: Any, input: Any, other: Any) -> Any:
    if isinstance(input, ActivationQBytesTensor) and _is_scalar(other):
        return _with_data(input, input._data, input._scale * other)
    if isinstance(other, ActivationQBytesTensor) and _is_scalar(input):
        return _with_data(other, other._data, input * other._scale)
    return qfallback(op, input, other)


@implements(aten.div)
def _div(op: Any, input: Any, other: Any, **kwargs: Any) -> Any:
    if isinstance(input, ActivationQBytesTensor) and _is_scalar(other) and kwargs.get("rounding_mode") is None:
        return _with_data(input, input._data, input._scale / other)
    return qfallback(op, input, other, **kwargs)


@implements(aten._softmax)
def _softmax(op: Any, input: ActivationQBytesTensor, dim: int, half_to_float: bool) -> Any:
    # The result lies between 0 and 1, so its best scale is known.
    output = op(input.dequantize(), dim, half_to_float)
    scale = torch.full((), 1 / dtype_info(input.qtype.dtype).max, dtype=input._scale.dtype, device=input.device)
    return quantize_activation(output, qtype=input.qtype, scale=scale)


@implements(aten.where)
def _where(op: Any, condition: Any, input: Any, other: Any) -> Any:
    result = qfallback(op, condition, input, other)
    fits = isinstance(input, ActivationQBytesTensor) and not isinstance(condition, QTensor)
    if fits and (not isinstance(other, QTensor) or _share_scale([input, other])):
        return quantize_activation(result, input.qtype, input._scale)
    return result


def _are_int8_codes(input: Any, other: Any) -> bool:
    codes = isinstance(input, ActivationQBytesTensor) and isinstance(other, QBytesTensor)
    return codes and other.axis is None and input.qtype == other.qtype == qint8


def _product_scale(input: QBytesTensor, other: QBytesTensor) -> Tensor:
    # Sums of int8 products are exact; they are scaled in float32.
    return (input._scale * other._scale).to(torch.float32)


@implements(aten.mm)
def _mm(op: Any, input: Any, other: Any) -> Any:
    if _are_int8_codes(input, other):
        sums = torch.ops.quanto.qbytes_mm(input._data, other._data.t(), _product_scale(input, other))
        return sums.to(input._scale.dtype)
    if isinstance(other, QBytesTensor) and other.axis != 0 and hasattr(other, "linear_forward"):
        return other.transposed().linear_forward(input, None)  # type: ignore[attr-defined]
    return qfallback(op, input, other)


@implements(aten.bmm)
def _bmm(op: Any, input: Any, other: Any) -> Any:
    if not _are_int8_codes(input, other) or len(input) == 0:
        return qfallback(op, input, other)
    scale, pairs = _product_scale(input, other), zip(input._data, other._data.mT, strict=True)
    return torch.stack([torch.ops.quanto.qbytes_mm(a, b, scale) for a, b in pairs]).to(input._scale.dtype)


@implements(aten.is_same_size)
def _is_same_size(op: Any, input: Tensor, other: Tensor) -> bool:
    return input.shape == other.shape
