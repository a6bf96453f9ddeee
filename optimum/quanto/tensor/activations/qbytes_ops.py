"""Kept for code written for earlier versions: the table of dispatch.py under its old names."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .dispatch import Operation, find_operation, implements


__all__ = ["get_qbytestensor_op_dispatch", "register_qbytestensor_op"]


def register_qbytestensor_op(aten_ops: Sequence[Any]) -> Callable[[Operation], Operation]:
    """Register a function `f(op, *args, **kwargs)` as the implementation of aten operators on activations."""
    return implements(*aten_ops)


def get_qbytestensor_op_dispatch(aten_op: Any) -> Callable[..., Any] | None:
    """The implementation of an aten operator, without its first argument; None if there is none."""
    operation = find_operation(aten_op)
    return None if operation is None else partial(operation, aten_op)
