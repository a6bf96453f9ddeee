"""8-bit weights."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...ops import ConvWalk, conv_qbytes, embedding_qbytes, linear_qbytes
from ...ops.compositions import convolve
from ..activations.qbytes import ActivationQBytesTensor
from ..function import QuantizedLinearFunction, float_input
from ..qbytes import QBytesTensor
from ..qtensor import wants_grad
from ..qtype import qtype as QType
from ..wrapper import WrapperTensor


__all__ = ["WeightQBytesTensor"]

_linear_qbytes = torch.ops.quanto.linear_qbytes.default
_linear_codes_qbytes = torch.ops.quanto.linear_codes_qbytes.default
_linear_quantizing_qbytes = torch.ops.quanto.linear_quantizing_qbytes.default


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, base: Tensor, qtype: QType, axis: int | None, scale: Tensor, activation_qtype: QType | None
    ) -> "WeightQBytesTensor":
        data = torch.ops.quanto.quantize_symmetric(base, dtype=qtype.dtype, axis=axis, scale=scale)
        return WeightQBytesTensor(qtype, axis, base.size(), base.stride(), data, scale, activation_qtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None, None, None, None


class WeightQBytesTensor(QBytesTensor):
    """A weight of 8-bit codes (see `QBytesTensor`), quantized along its first axis, its last one or as a whole."""

    __slots__ = ("activation_qtype",)

    meta_names = ("_qtype", "_axis", "activation_qtype")

    # What the operator of `linear` calls, without the Python function around it: 0.2 us less.
    untraced_operator = _linear_qbytes._op

    @staticmethod
    def __new__(
        cls: "type[WeightQBytesTensor]",
        qtype: QType,
        axis: int | None,
        size: Sequence[int],
        stride: Sequence[int],
        data: Tensor,
        scale: Tensor,
        activation_qtype: QType | None = None,
        requires_grad: bool = False,
    ) -> "WeightQBytesTensor":
        if data.device != scale.device:
            raise ValueError(f"[WeightQBytesTensor] scale: got device {scale.device}, expected {data.device}")
        return torch.Tensor._make_wrapper_subclass(
            cls, size, strides=stride, dtype=scale.dtype, device=data.device, requires_grad=requires_grad
        )

    def __init__(
        self,
        qtype: QType,
        axis: int | None,
        size: Sequence[int],
        stride: Sequence[int],
        data: Tensor,
        scale: Tensor,
        activation_qtype: QType | None = None,
        requires_grad: bool = False,
    ) -> None:
        super().__init__(qtype, axis, size, stride, data, scale)
        self.activation_qtype = activation_qtype

    @classmethod
    def from_parts(
        cls,
        inner: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        size: Any,
        stride: Any,
    ) -> "WeightQBytesTensor":
        data = inner["_data"]
        return cls(
            meta["_qtype"],
            meta["_axis"],
            data.size() if size is None else size,
            data.stride() if stride is None else stride,
            data,
            inner["_scale"],
            meta["activation_qtype"],
        )

    @classmethod
    def create(
        cls,
        qtype: QType,
        axis: int | None,
        size: Sequence[int],
        stride: Sequence[int],
        data: Tensor,
        scale: Tensor,
        activation_qtype: QType | None = None,
        requires_grad: bool = False,
    ) -> "WeightQBytesTensor":
        """A weight from its codes and scales; there is one layout for every device."""
        return cls(qtype, axis, size, stride, data, scale, activation_qtype, requires_grad)

    @classmethod
    def quantize(
        cls,
        base: Tensor,
        qtype: QType,
        axis: int | None,
        scale: Tensor,
        activation_qtype: QType | None = None,
        optimized: bool | None = True,
    ) -> "WeightQBytesTensor":
        """Quantize `base` with the given scales; gradients pass straight through.

        Raises:
            ValueError: the qtype has fewer than 8 bits, or the scales do not fit the axis.
        """
        if qtype.bits != 8:
            raise ValueError(f"[WeightQBytesTensor.quantize] qtype: got {qtype.name}, expected an 8-bit qtype")
        _check_scale(base, axis, scale)
        return _Quantize.apply(base, qtype, axis, scale, activation_qtype)

    @classmethod
    def load_from_state_dict(
        cls,
        state_dict: MutableMapping[str, Any],
        prefix: str,
        qtype: QType,
        axis: int | None,
        size: Sequence[int],
        stride: Sequence[int],
        activation_qtype: QType | None,
        missing_keys: list[str],
    ) -> "WeightQBytesTensor | None":
        """Take codes and scales from `state_dict`; None, and the keys in `missing_keys`, if some are not there."""
        missing = [prefix + name for name in cls.inner_names if prefix + name not in state_dict]
        if missing:
            missing_keys.extend(missing)
            return None
        data, scale = (state_dict.pop(prefix + name) for name in cls.inner_names)
        return cls(qtype, axis if scale.ndim > 0 else None, size, stride, data, scale, activation_qtype)

    def optimize(self) -> "WeightQBytesTensor":
        """The weight itself: its layout is the one that the kernels read."""
        return self

    def linear(self, input: Tensor, bias: Tensor | None = None, operator: Any = _linear_qbytes) -> Tensor:
        """`input @ self.T + bias`; gradients reach the input, the bias and the float weight of an unfrozen module.
        `operator`: `untraced_operator` where neither TorchDynamo nor torch.jit.trace follows."""
        scale = self._scale
        if (
            type(input) is Tensor
            and input.dtype is scale.dtype
            and input.is_cpu
            and scale.is_cpu
            and self._axis != -1
            and self._data.ndim == 2
            and not torch.is_grad_enabled()
        ):  # what follows comes to the same
            return operator(input, self._data, scale, bias)
        if torch.is_grad_enabled() and (wants_grad(self) or isinstance(input, WrapperTensor)):
            return QuantizedLinearFunction.apply(input, self, bias)
        return self.linear_forward(input, bias)

    def linear_forward(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """`linear` without gradients for the weight."""
        # An attribute of the wrapper passes through __torch_function__, a microsecond each; one of its parts does not.
        scale = self._scale
        if input.device != scale.device:
            raise RuntimeError(f"[linear] input: got device {input.device}, expected {scale.device}")
        if isinstance(input, ActivationQBytesTensor):
            if self.takes_codes:
                return self.linear_of_codes(input._data, input._scale, bias)
            return torch.nn.functional.linear(input.dequantize(), self.dequantize(), bias)
        if input.dtype != scale.dtype:
            input = input.to(scale.dtype)
        if self._axis == -1 or self._data.ndim != 2:
            return torch.nn.functional.linear(input, self.dequantize(), bias)
        return linear_qbytes(input, self._data, scale, bias)

    @property
    def takes_codes(self) -> bool:
        """Whether a kernel multiplies quantized activations with this layout."""
        return self._axis != -1 and self._data.ndim == 2

    def linear_of_codes(self, codes: Tensor, codes_scale: Tensor, bias: Tensor | None) -> Tensor:
        """`linear` of 8-bit codes `(..., K)` with a scale for all of them or for each row; without gradients."""
        scale = self._scale
        return _linear_codes_qbytes(codes, codes_scale, self._data, scale, bias, scale.dtype)

    def linear_quantizing(
        self, input: Tensor, dtype: torch.dtype, scale: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """`linear_of_codes` of what a plain `input` is quantized to, by a scalar `scale` or by one for each row that
        is found from it (None), in one operator; without gradients."""
        return _linear_quantizing_qbytes(input, dtype, scale, self._data, self._scale, bias)

    def conv(self, input: Tensor, bias: Tensor | None, walk: ConvWalk) -> Tensor:
        """The convolution of `input` with filters along the first axis; no gradients for the weight."""
        scale = self._scale
        input = float_input("conv", input, scale)
        if self._axis == -1:
            return convolve(input, self.dequantize(), bias, *walk)
        return conv_qbytes(input, self._data, scale, bias, walk)

    def embedding(self, indices: Tensor) -> Tensor:
        """The rows that `indices` name, dequantized."""
        if not self.takes_codes:
            return torch.nn.functional.embedding(indices, self.dequantize())
        return embedding_qbytes(indices, self._data, self._scale)

    def transposed(self) -> "WeightQBytesTensor":
        """The same codes with rows and columns exchanged; no data moves."""
        axis = None if self._axis is None else -1 if self._axis == 0 else 0
        scale = self._scale if self._axis is None else self._scale.t()
        data = self._data.t()
        return WeightQBytesTensor(self._qtype, axis, data.size(), data.stride(), data, scale, self.activation_qtype)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        op = func.overloadpacket
        if op is torch.ops.aten.t:
            return args[0].transposed()
        if op is torch.ops.aten.mm and type(args[0]) is Tensor and args[1]._axis != 0:
            # `input @ weight.t()` is a linear layer, whose kernel decodes no weight to memory.
            return args[1].transposed().linear_forward(args[0], None)
        return super().__torch_dispatch__(func, types, args, kwargs)


def _check_scale(base: Tensor, axis: int | None, scale: Tensor) -> None:
    if axis is None:
        if scale.ndim > 0:
            raise ValueError(f"[quantize] scale: got shape {tuple(scale.shape)}, expected a scalar for axis None")
        return
    if base.ndim < 2:
        raise ValueError(f"[quantize] base: got {base.ndim} dimensions, expected at least 2 to quantize per axis")
    if axis not in (0, -1, base.ndim - 1):
        raise ValueError(f"[quantize] axis: got {axis}, expected 0 or -1")
    if base.shape[axis] == 1:
        raise ValueError(f"[quantize] axis: got {axis}, of size 1 in {tuple(base.shape)}, expected a larger one")
    expected = [1] * base.ndim
    expected[axis] = base.shape[axis]
    if list(scale.shape) != expected:
        raise ValueError(f"[quantize] scale: got shape {tuple(scale.shape)}, expected {tuple(expected)}")


torch.serialization.add_safe_globals([WeightQBytesTensor])
