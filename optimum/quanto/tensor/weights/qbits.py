"""4- and 2-bit weights."""

from collections.abc import Mapping, MutableMapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from ...ops import ConvWalk, PackedLayout, conv_qbits, embedding_qbits, linear_qbits
from ...ops.compositions import convolve
from ..activations.qbytes import ActivationQBytesTensor
from ..function import QuantizedLinearFunction, float_input
from ..grouped import grouped_shape
from ..packed import PackedTensor, contiguous_strides
from ..qbits import QBitsTensor
from ..qtensor import wants_grad
from ..qtype import qtype as QType
from ..wrapper import WrapperTensor


__all__ = ["WeightQBitsTensor"]

_linear_qbits = torch.ops.quanto.linear_qbits.default
_linear_codes_qbits = torch.ops.quanto.linear_codes_qbits.default
_linear_quantizing_qbits = torch.ops.quanto.linear_quantizing_qbits.default


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, base: Tensor, qtype: QType, axis: int, group_size: int | None, scale: Tensor, shift: Tensor
    ) -> "WeightQBitsTensor":
        packed = torch.ops.quanto.quantize_affine_packed(base, qtype.bits, axis, group_size, scale, shift)
        data = _packed_codes(packed, qtype, axis, group_size, base.shape)
        return WeightQBitsTensor(qtype, axis, group_size, base.size(), base.stride(), data, scale, shift)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None, None, None, None, None


def _codes_shape(size: Sequence[int], axis: int, group_size: int | None) -> tuple[int, ...]:
    return tuple(size) if group_size is None else grouped_shape(size, axis, group_size)


def _packed_codes(
    packed: Tensor, qtype: QType, axis: int, group_size: int | None, size: Sequence[int]
) -> PackedTensor:
    shape = _codes_shape(size, axis, group_size)
    return PackedTensor(packed, qtype.bits, shape, contiguous_strides(shape))


class WeightQBitsTensor(QBitsTensor):
    """A weight of packed 4- or 2-bit codes (see `QBitsTensor`), quantized along its first or last axis."""

    __slots__ = ("_bits", "_size", "_stride", "takes_codes")

    meta_names = ("_qtype", "_axis", "_group_size", "_size", "_stride")

    # What the operator of `linear` calls, without the Python function around it: 0.2 us less.
    untraced_operator = _linear_qbits._op

    @staticmethod
    def __new__(
        cls: "type[WeightQBitsTensor]",
        qtype: QType,
        axis: int,
        group_size: int | None,
        size: Sequence[int],
        stride: Sequence[int],
        data: Tensor,
        scale: Tensor,
        shift: Tensor,
        requires_grad: bool = False,
    ) -> "WeightQBitsTensor":
        if not data.device == scale.device == shift.device:
            devices = f"{data.device}, {scale.device} and {shift.device}"
            raise ValueError(f"[WeightQBitsTensor] data, scale and shift: got devices {devices}, expected the same")
        return torch.Tensor._make_wrapper_subclass(
            cls, size, strides=stride, dtype=scale.dtype, device=data.device, requires_grad=requires_grad
        )

    def __init__(
        self,
        qtype: QType,
        axis: int,
        group_size: int | None,
        size: Sequence[int],
        stride: Sequence[int],
        data: Tensor,
        scale: Tensor,
        shift: Tensor,
        requires_grad: bool = False,
    ) -> None:
        super().__init__(qtype, axis, group_size, size, stride, data, scale, shift)
        self._size = tuple(size)
        self._stride = tuple(stride)
        # Asked on every forward: whether linear kernels read this layout, and its bits. They find groups in its shape.
        self.takes_codes = (
            axis == 0
            and len(self._size) == 2
            and self._size[1] > 0
            and isinstance(data, PackedTensor)
            and tuple(data.shape) == _codes_shape(self._size, axis, group_size)
        )
        self._bits = qtype.bits

    @classmethod
    def from_parts(
        cls,
        inner: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        size: torch.Size | None,
        stride: tuple[int, ...] | None,
    ) -> "WeightQBitsTensor":
        return cls(
            meta["_qtype"],
            meta["_axis"],
            meta["_group_size"],
            meta["_size"],
            meta["_stride"],
            inner["_data"],
            inner["_scale"],
            inner["_shift"],
        )

    # The bytes of packed codes. Not kept beside them: loaders of other libraries put tensors into `_data`. Without a
    # Python function, since every forward asks for it.
    _packed: Any = property(attrgetter("_data._data"))

    def traced_parts(self) -> tuple[list[str], dict[str, Any]]:
        data = self._data
        if type(data) is not PackedTensor:
            return self.parts()
        # The bytes themselves: a wrapper between them and the weight would have guards of its own on every call.
        return ["_packed", "_scale", "_shift"], {**self.metadata(), "_packing": data.metadata()}

    @classmethod
    def __tensor_unflatten__(
        cls,
        inner_tensors: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        outer_size: torch.Size | None,
        outer_stride: tuple[int, ...] | None,
    ) -> "WeightQBitsTensor":
        if "_packing" in meta:
            data = PackedTensor.from_parts({"_data": inner_tensors["_packed"]}, meta["_packing"], None, None)
            inner_tensors = {**inner_tensors, "_data": data}
        return cls.from_parts(inner_tensors, meta, outer_size, outer_stride)

    @classmethod
    def create(
        cls,
        qtype: QType,
        axis: int,
        group_size: int | None,
        size: Sequence[int],
        stride: Sequence[int],
        data: Tensor,
        scale: Tensor,
        shift: Tensor,
        requires_grad: bool = False,
    ) -> "WeightQBitsTensor":
        """A weight from its codes (a `PackedTensor`, or uint8 to be packed), scales and shifts."""
        if not isinstance(data, PackedTensor):
            data = PackedTensor.pack(data, qtype.bits)
        return cls(qtype, axis, group_size, size, stride, data, scale, shift, requires_grad)

    @classmethod
    def quantize(
        cls,
        base: Tensor,
        qtype: QType,
        axis: int,
        group_size: int | None,
        scale: Tensor,
        shift: Tensor,
        optimized: bool | None = True,
    ) -> "WeightQBitsTensor":
        """Quantize `base` with the given scales and shifts; gradients pass straight through.

        Raises:
            ValueError: the qtype has 8 bits, or the axis or the group size is not supported.
        """
        if qtype.bits not in (2, 4):
            raise ValueError(f"[WeightQBitsTensor.quantize] qtype: got {qtype.name}, expected qint4 or qint2")
        if axis not in (0, -1):
            raise ValueError(f"[WeightQBitsTensor.quantize] axis: got {axis}, expected 0 or -1")
        if base.ndim < 1:
            raise ValueError("[WeightQBitsTensor.quantize] base: got 0 dimensions, expected at least 1")
        along = base.numel() // max(1, base.shape[axis])
        if group_size is not None and (group_size <= 0 or along % group_size != 0):
            raise ValueError(
                f"[WeightQBitsTensor.quantize] group_size: got {group_size}, expected a divisor of {along}"
            )
        return _Quantize.apply(base, qtype, axis, group_size, scale, shift)

    @classmethod
    def load_from_state_dict(
        cls,
        state_dict: MutableMapping[str, Any],
        prefix: str,
        qtype: QType,
        axis: int,
        group_size: int | None,
        size: Sequence[int],
        stride: Sequence[int],
        missing_keys: list[str],
    ) -> "WeightQBitsTensor | None":
        """Take the parts from `state_dict`; None, and the keys in `missing_keys`, if some are not there."""
        keys = [prefix + "_data._data", prefix + "_scale", prefix + "_shift"]
        missing = [key for key in keys if key not in state_dict]
        if missing:
            missing_keys.extend(missing)
            return None
        packed, scale, shift = (state_dict.pop(key) for key in keys)
        if size[0] == 1 and group_size is None and scale.numel() > 1:
            axis = -1  # as 0.2.7 stores a single row: with a scale and a shift for each column
        data = _packed_codes(packed, qtype, axis, group_size, size)
        return cls(qtype, axis, group_size, size, stride, data, scale, shift)

    def optimize(self) -> "WeightQBitsTensor":
        """The weight itself: its layout is the one that the kernels read."""
        return self

    def weight_qbits_tensor(self) -> "WeightQBitsTensor":
        """The weight itself: there are no other layouts to convert from."""
        return self

    def linear(self, input: Tensor, bias: Tensor | None = None, operator: Any = _linear_qbits) -> Tensor:
        """`input @ self.T + bias`; gradients reach the input, the bias and the float weight of an unfrozen module.
        `operator`: `untraced_operator` where neither TorchDynamo nor torch.jit.trace follows."""
        scale = self._scale
        if (
            type(input) is Tensor
            and input.dtype is scale.dtype
            and input.is_cpu
            and scale.is_cpu
            and self.takes_codes
            and not torch.is_grad_enabled()
        ):  # what follows comes to the same
            packed: Tensor = self._data._data  # type: ignore[attr-defined]
            if self._bits == 4:
                return operator(input, packed, scale, self._shift, bias)
            return operator(input, packed, scale, self._shift, bias, self._bits)
        if torch.is_grad_enabled() and (wants_grad(self) or isinstance(input, WrapperTensor)):
            return QuantizedLinearFunction.apply(input, self, bias)
        return self.linear_forward(input, bias)

    def linear_forward(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """`linear` without gradients for the weight."""
        # An attribute of the wrapper passes through __torch_function__, a microsecond each; one of its parts does not.
        scale = self._scale
        if input.device != scale.device:
            raise RuntimeError(f"[linear] input: got device {input.device}, expected {scale.device}")
        codes = input if isinstance(input, ActivationQBytesTensor) else None
        if codes is None and input.dtype != scale.dtype:
            raise RuntimeError(f"[linear] input: got {input.dtype}, expected {scale.dtype}, the dtype of the weight")
        if not self.takes_codes:
            plain = input if codes is None else codes.dequantize()
            return torch.nn.functional.linear(plain, self.dequantize(), bias)
        if codes is not None:
            return self.linear_of_codes(codes._data, codes._scale, bias)
        return linear_qbits(input, self._packed, scale, self._shift, bias, self._bits)

    def linear_of_codes(self, codes: Tensor, codes_scale: Tensor, bias: Tensor | None) -> Tensor:
        """`linear` of 8-bit codes `(..., K)` with a scale for all of them or for each row; without gradients."""
        scale = self._scale
        return _linear_codes_qbits(codes, codes_scale, self._packed, scale, self._shift, bias, scale.dtype, self._bits)

    def linear_quantizing(
        self, input: Tensor, dtype: torch.dtype, scale: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """`linear_of_codes` of what a plain `input` is quantized to, by a scalar `scale` or by one for each row that
        is found from it (None), in one operator; without gradients."""
        return _linear_quantizing_qbits(input, dtype, scale, self._packed, self._scale, self._shift, bias, self._bits)

    def conv(self, input: Tensor, bias: Tensor | None, walk: ConvWalk) -> Tensor:
        """The convolution of `input` with filters along the first axis; no gradients for the weight."""
        scale = self._scale
        input = float_input("conv", input, scale)
        if self._axis != 0 or not isinstance(self._data, PackedTensor):
            return convolve(input, self.dequantize(), bias, *walk)
        layout = PackedLayout(self._qtype.bits, self._group_size or 0, self._size)
        return conv_qbits(input, self._packed, scale, self._shift, layout, bias, walk)

    def embedding(self, indices: Tensor) -> Tensor:
        """The rows that `indices` name, dequantized."""
        if not self.takes_codes:
            return torch.nn.functional.embedding(indices, self.dequantize())
        rows, columns = self._size
        return embedding_qbits(
            indices, self._packed, self._scale, self._shift, self._bits, self._group_size or 0, (rows, columns)
        )


torch.serialization.add_safe_globals([WeightQBitsTensor])
