"""Tensors of quantized numbers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .qtype import qtype
from .wrapper import WrapperTensor


_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]

__all__ = ["QTensor", "qfallback", "wants_grad"]


class QTensor(WrapperTensor):
    """A tensor of codes of a qtype, with the scales that turn them into numbers.

    Its dtype is that of the numbers. Functions without a quantized implementation see the dequantized tensor.
    """

    # What every forward asks a weight for lies in the object itself. A dict is several more lines of memory, in no
    # cache where a model is large: the forward of a 576 x 576 layer took 2 us longer.
    __slots__ = ("_axis", "_qtype")

    _qtype: qtype
    _axis: int | None

    dtype_names = ("_scale", "_shift")

    def __init__(self, qtype: qtype, axis: int | None) -> None:
        self._qtype = qtype
        self._axis = axis

    @property
    def qtype(self) -> qtype:
        """The quantized type of the codes."""
        return self._qtype

    @property
    def axis(self) -> int | None:
        """The dimension that has scales of its own: 0, -1, or None for a single scale."""
        return self._axis

    def dequantize(self) -> Tensor:
        """The numbers that the codes stand for, in the dtype of the scales. Gradients pass unchanged."""
        raise NotImplementedError

    def as_plain(self) -> Tensor:
        return self.dequantize()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.linear:
            return _linear(*args, **kwargs)
        if func is torch.equal:
            return _equal(*args, **kwargs)
        if type(func) is type(_SET_DATA) and func == _SET_DATA:
            raise NotImplementedError(
                f"[{cls.__name__}] data: got an assignment, which would leave the codes as they are; expected a new "
                "tensor in its place, or copy_ of one quantized alike"
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.quanto.linear.default:
            return _linear(*args)
        if func.overloadpacket is torch.ops.aten.embedding and hasattr(args[0], "embedding"):
            return args[0].embedding(args[1])  # its other arguments are about gradients
        return super().__torch_dispatch__(func, types, args, kwargs)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    linear = getattr(weight, "linear", None)
    if linear is not None:
        return linear(input, bias)
    with torch._C.DisableTorchFunctionSubclass():
        return qfallback(torch.nn.functional.linear, input, weight, bias)


def _equal(input: Tensor, other: Tensor) -> bool:
    return isinstance(input, QTensor) and input.equal(other)


def wants_grad(weight: Tensor) -> bool:
    """`weight.requires_grad`, which asked of a wrapper passes through `__torch_function__`, a microsecond."""
    with torch._C.DisableTorchFunctionSubclass():
        return weight.requires_grad


def qfallback(callable: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function with every `QTensor` in its arguments dequantized."""
    args, kwargs = pytree.tree_map_only(QTensor, lambda t: t.dequantize(), (args, kwargs))
    return callable(*args, **kwargs)
