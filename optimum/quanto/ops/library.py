"""The shared library: where it is, and what it tells without tensors."""

import ctypes
import hashlib
import json
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch


LIBRARY_NAME = "libquanto_ops.so"


@lru_cache(maxsize=1)
def library_path() -> Path:
    """Path of the operator library.

    The environment variable `QUANTO_LIBRARY` names it; else it lies in a folder of the package (an editable install
    keeps it apart from the Python files).

    Raises:
        ImportError: there is none.
    """
    named = os.environ.get("QUANTO_LIBRARY")
    if named:
        candidates = [Path(named)]
    else:
        package = sys.modules[__name__.removesuffix(".ops.library")]
        candidates = [Path(folder) / LIBRARY_NAME for folder in package.__path__]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ImportError(
        f"[quanto] operator library: got none of {', '.join(map(str, candidates))}, expected the compiled "
        f"{LIBRARY_NAME}. Install the package again: pip install --no-build-isolation ."
    )


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """A hash of the version and of the schemas of all operators: compiled code fits those it was compiled with."""
    schemas = (str(schema) for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("quanto::"))
    version = sys.modules[__name__.removesuffix(".ops.library")].__version__
    return hashlib.sha256("\n".join((version, *sorted(schemas))).encode()).hexdigest()


@lru_cache(maxsize=1)
def _functions() -> ctypes.CDLL:
    functions = ctypes.CDLL(str(library_path()))
    for name in ("quanto_qtypes_json", "quanto_isas_json", "quanto_active_isa", "quanto_last_error"):
        getattr(functions, name).restype = ctypes.c_char_p
    functions.quanto_force_isa.argtypes = [ctypes.c_char_p]
    functions.quanto_kernel_name.restype = ctypes.c_char_p
    functions.quanto_kernel_name.argtypes = [ctypes.c_char_p] * 2 + [ctypes.c_int64] * 4
    return functions


def _text(value: bytes | None) -> str:
    if value is None:
        raise ValueError(_functions().quanto_last_error().decode())
    return value.decode()


def qtype_table() -> list[dict[str, Any]]:
    """The rows of the core's qtype table: name, bits, is_floating_point, storage, qmin, qmax."""
    return list(json.loads(_text(_functions().quanto_qtypes_json())))


def isas() -> list[dict[str, Any]]:
    """The instruction sets that kernels exist for: name, requires, compiled, supported."""
    return list(json.loads(_text(_functions().quanto_isas_json())))


_active_isa: str | None = None
"""What the library said since the last `force_isa`: a value that traced code may ask for."""


def active_isa() -> str:
    """Name of the instruction set whose kernels run."""
    global _active_isa
    if _active_isa is None:
        _active_isa = _text(_functions().quanto_active_isa())
    return _active_isa


def force_isa(name: str) -> None:
    """Run the kernels of the instruction set called `name`; an empty name restores the default.

    Raises:
        ValueError: the name is unknown or this machine does not support it.
    """
    global _active_isa
    if _functions().quanto_force_isa(name.encode()) != 0:
        raise ValueError(_functions().quanto_last_error().decode())
    _active_isa = None
    active_isa()


def release_recurring_memory() -> None:
    """Give the memory that rounded weights are made in anew, in each training step, back to the operating system."""
    _functions().quanto_release_recurring_memory()


def release_freed_memory() -> None:
    """Give the memory of freed tensors, which glibc's allocator keeps in pieces, back to the operating system."""
    _functions().quanto_release_freed_memory()


def kernel_name(
    qtype: str, activations: torch.dtype | str, rows: int, out_features: int, in_features: int, group_size: int
) -> str:
    """The kernel that a linear layer runs on the CPU for `rows` rows of activations: `isa/qtype/dtype/regime`.

    Args:
        qtype: name of the weight's qtype.
        activations: their dtype: float32, bfloat16 or float16; or the name of their qtype, if they are codes.
        group_size: 0 for one scale per output channel.
    """
    kind = activations if isinstance(activations, str) else str(activations).removeprefix("torch.")
    return _text(
        _functions().quanto_kernel_name(qtype.encode(), kind.encode(), rows, out_features, in_features, group_size)
    )


torch.ops.load_library(str(library_path()))
active_isa()
