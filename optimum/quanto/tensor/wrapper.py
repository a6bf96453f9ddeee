"""The base of the tensor subclasses: a class lists its inner tensors and its metadata once.

Flattening, tracing, detach, clone, moves between devices and dtypes, copies, pickles and state dicts all follow from
those two lists.
"""

from collections.abc import Callable, Mapping, MutableMapping
from itertools import repeat
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..ops import fingerprint


Self = TypeVar("Self", bound="WrapperTensor")

# The dtypes of scales, and of the numbers that wrapper tensors stand for.
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Metadata(dict[str, Any]):
    """Metadata that nobody changes: a copy of it is itself, and pytrees do not look inside.

    Guards of compiled code compare a tensor's metadata with a copy of it on every call; identical values are equal at
    once.
    """

    def __copy__(self) -> "Metadata":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Metadata":
        return self


class WrapperTensor(Tensor):
    """A tensor made of inner tensors.

    Subclasses set:
        inner_names: attributes that hold the inner tensors.
        meta_names: attributes that hold plain values, which `from_parts` takes back.
        dtype_names: the inner tensors that change dtype with the wrapper, if they hold floats.

    Or they have their own `__tensor_flatten__` and `__tensor_unflatten__`, as subclasses of other libraries do.
    """

    inner_names: ClassVar[tuple[str, ...]]
    meta_names: ClassVar[tuple[str, ...]]
    dtype_names: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_parts(
        cls: type[Self],
        inner: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        size: torch.Size | None,
        stride: tuple[int, ...] | None,
    ) -> Self:
        """The tensor with these inner tensors and metadata; `size` and `stride` None where the metadata tells."""
        raise NotImplementedError

    def parts(self) -> tuple[list[str], dict[str, Any]]:
        """The names of the inner tensors, and the metadata, that copies, pickles and state dicts are made of."""
        if type(self).__tensor_flatten__ is not WrapperTensor.__tensor_flatten__:
            return self.__tensor_flatten__()  # of another library
        return list(self.inner_names), {name: getattr(self, name) for name in self.meta_names}

    def traced_parts(self) -> tuple[list[str], dict[str, Any]]:
        """The same for tracing; `__tensor_unflatten__` takes both."""
        return self.parts()

    def inner_tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.parts()[0]}

    def metadata(self) -> dict[str, Any]:
        return self.parts()[1]

    def map_inner(self: Self, function: Callable[[str, Tensor], Tensor]) -> Self:
        """The same kind of tensor with every inner tensor replaced by `function(name, inner)`."""
        inner = {name: function(name, t) for name, t in self.inner_tensors().items()}
        return self.__tensor_unflatten__(inner, self.metadata(), self.size(), self.stride())

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, Any]]:
        names, metadata = self.traced_parts()
        flattened = names, Metadata(metadata)
        # The guards of compiled code ask for it twice on every call. From now on they find a function that is no
        # Python function, and returns this again and again.
        self.__dict__["__tensor_flatten__"] = repeat(flattened).__next__
        return flattened

    @classmethod
    def __tensor_unflatten__(
        cls: type[Self],
        inner_tensors: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        outer_size: torch.Size | None,
        outer_stride: tuple[int, ...] | None,
    ) -> Self:
        return cls.from_parts(inner_tensors, meta, outer_size, outer_stride)

    def _stable_hash_for_caching(self) -> str:
        """What torch.compile's cache knows the tensor by: everything but the values. Also the operators, which
        compiled code calls."""
        layout = f"{self.metadata()!r}{tuple(self.size())}{tuple(self.stride())}{self.dtype}"
        return f"{type(self).__name__}{layout}{fingerprint()}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (
            type(self),
            self.inner_tensors(),
            self.metadata(),
            self.size(),
            self.stride(),
            self.requires_grad,
            isinstance(self, torch.nn.Parameter),
        )

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        if id(self) in memo:
            return memo[id(self)]
        copied = self.map_inner(lambda _, t: t.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        else:
            copied.requires_grad_(self.requires_grad)
        memo[id(self)] = copied
        return copied

    def save_to_state_dict(self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool) -> None:
        """Store every inner tensor under `prefix` + its name, nested ones flattened in turn."""
        for name, inner in self.inner_tensors().items():
            if isinstance(inner, WrapperTensor):
                inner.save_to_state_dict(destination, f"{prefix}{name}.", keep_vars)
            else:
                destination[prefix + name] = inner if keep_vars else inner.detach()

    def share_memory_(self: Self) -> Self:
        """Move every inner tensor into memory that processes share. Torch would look for bytes of the wrapper."""
        for inner in self.inner_tensors().values():
            inner.share_memory_()
        return self

    def is_shared(self) -> bool:
        """Whether every inner tensor lies in memory that processes share."""
        return all(inner.is_shared() for inner in self.inner_tensors().values())

    def equal(self, other: Any) -> bool:
        """Same type, same metadata, and the same values in every inner tensor."""
        if type(self) is not type(other) or self.size() != other.size() or self.metadata() != other.metadata():
            return False
        pairs = zip(self.inner_tensors().values(), other.inner_tensors().values(), strict=True)
        return all(same_values(mine, theirs) for mine, theirs in pairs)

    def numpy(self, *, force: bool = False) -> Any:
        return self.as_plain().cpu().numpy(force=force)

    def as_plain(self) -> Tensor:
        """The ordinary tensor that this one stands for."""
        raise NotImplementedError

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        parts = [f"{name.lstrip('_')}={value!r}" for name, value in self.inner_tensors().items()]
        parts += [f"{name.lstrip('_')}={value!s}" for name, value in self.metadata().items()]
        return f"{type(self).__name__}({', '.join(parts)}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        op = func.overloadpacket
        handler = _HANDLERS.get(op)
        if handler is not None and isinstance(args[0], WrapperTensor):
            return handler(func, *args, **kwargs)
        return fallback(func, *args, **kwargs)


def fallback(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Call `func` with every wrapper tensor replaced by the ordinary tensor that it stands for.

    Raises:
        NotImplementedError: `func` writes into a wrapper tensor; the ordinary one would be changed instead, and lost.
    """
    _refuse_writes(func, args, kwargs)
    args, kwargs = pytree.tree_map_only(WrapperTensor, lambda t: t.as_plain(), (args, kwargs))
    return func(*args, **kwargs)


def _refuse_writes(func: Any, args: Any, kwargs: Any) -> None:
    schema = func._schema
    if not schema.is_mutable:
        return
    for index, argument in enumerate(schema.arguments):
        value = args[index] if index < len(args) else kwargs.get(argument.name)
        written = argument.alias_info is not None and argument.alias_info.is_write
        found = [t for t in pytree.tree_leaves(value) if isinstance(t, WrapperTensor)] if written else []
        if found:
            raise NotImplementedError(
                f"[{type(found[0]).__name__}] {schema.name}: got a quantized tensor to write to, expected an ordinary "
                "one; use the function that returns a new tensor, change dequantize() and quantize that, or copy_ a "
                "tensor quantized alike"
            )


def _rebuild(
    cls: type[WrapperTensor],
    inner: dict[str, Tensor],
    meta: dict[str, Any],
    size: torch.Size,
    stride: tuple[int, ...],
    requires_grad: bool,
    is_parameter: bool = False,
) -> WrapperTensor:
    rebuilt = cls.__tensor_unflatten__(inner, meta, size, stride)
    if is_parameter:
        return torch.nn.Parameter(rebuilt, requires_grad)  # type: ignore[return-value]
    rebuilt.requires_grad_(requires_grad)
    return rebuilt


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bytes."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if isinstance(a, WrapperTensor):
        return a.equal(b)
    if a.dtype.itemsize == 1:
        # float8 has no comparison of its own; equal bytes are what matters.
        a, b = a.view(torch.uint8), b.view(torch.uint8)
    return torch.equal(a, b)


def _each_inner(func: Any, t: WrapperTensor, *args: Any, **kwargs: Any) -> WrapperTensor:
    return t.map_inner(lambda _, inner: func(inner, *args, **kwargs))


def _clone(func: Any, t: WrapperTensor, *, memory_format: Any = None) -> WrapperTensor:
    return t.map_inner(lambda _, inner: inner.clone())


def to_copy(func: Any, t: WrapperTensor, *, dtype: torch.dtype | None = None, **kwargs: Any) -> WrapperTensor:
    """`t` on another device or with scales of another dtype."""
    kwargs.pop("memory_format", None)
    if dtype is not None and dtype != t.dtype and (not t.dtype_names or dtype not in FLOAT_DTYPES):
        allowed = ", ".join(map(str, FLOAT_DTYPES)) if t.dtype_names else str(t.dtype)
        raise ValueError(f"[{type(t).__name__}.to] dtype: got {dtype}, expected {allowed}")

    def move(name: str, inner: Tensor) -> Tensor:
        follows = name in t.dtype_names and inner.dtype.is_floating_point
        return torch.ops.aten._to_copy(inner, dtype=dtype if follows else None, **kwargs)

    return t.map_inner(move)


def _copy_(func: Any, t: WrapperTensor, source: Tensor, non_blocking: bool = False) -> WrapperTensor:
    if type(source) is not type(t) or source.size() != t.size() or source.metadata() != t.metadata():
        raise ValueError(
            f"[{type(t).__name__}.copy_] source: got {type(source).__name__} of shape {tuple(source.shape)}, expected "
            f"the same type, shape {tuple(t.shape)} and metadata {t.metadata()}"
        )
    for name, inner in t.inner_tensors().items():
        inner.copy_(getattr(source, name), non_blocking=non_blocking)
    return t


_HANDLERS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.detach: _each_inner,
    torch.ops.aten.alias: _each_inner,
    torch.ops.aten.detach_: lambda func, t: t,
    torch.ops.aten.clone: _clone,
    torch.ops.aten._to_copy: to_copy,
    torch.ops.aten.copy_: _copy_,
}

torch.serialization.add_safe_globals([_rebuild])
