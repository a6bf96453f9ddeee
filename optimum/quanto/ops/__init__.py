"""The operators of `torch.ops.quanto`: loading, shapes for tracing, compositions for devices other than the CPU."""

from . import compositions, fakes
from .library import active_isa, force_isa, isas, kernel_name, library_path, qtype_table
from .linear import linear_qbits, linear_qbytes


__all__ = [
    "active_isa",
    "force_isa",
    "isas",
    "kernel_name",
    "library_path",
    "linear_qbits",
    "linear_qbytes",
    "qtype_table",
]

fakes.register()
compositions.register()
