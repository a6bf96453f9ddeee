"""The table of what torch's operators do to quantized activations."""

from collections.abc import Callable
from typing import Any


Operation = Callable[..., Any]
_OPERATIONS: dict[Any, Operation] = {}


def find_operation(op: Any) -> Operation | None:
    """The implementation of an aten operator on quantized activations, if there is one."""
    return _OPERATIONS.get(op)


def implements(*ops: Any) -> Callable[[Operation], Operation]:
    """Register a function `f(op, *args, **kwargs)` as the implementation of aten operators."""

    def register(operation: Operation) -> Operation:
        _OPERATIONS.update(dict.fromkeys(ops, operation))
        return operation

    return register
