"""The operators of `torch.ops.quanto`: loading, shapes for tracing, compositions for devices other than the CPU."""

from . import compositions, fakes
from .conv import ConvWalk, PackedLayout, conv_qbits, conv_qbytes, runs_kernels
from .embedding import embedding_qbits, embedding_qbytes
from .library import active_isa, fingerprint, force_isa, isas, kernel_name, library_path, qtype_table
from .linear import linear_qbits, linear_qbytes


__all__ = [
    "ConvWalk",
    "PackedLayout",
    "active_isa",
    "conv_qbits",
    "conv_qbytes",
    "embedding_qbits",
    "embedding_qbytes",
    "fingerprint",
    "force_isa",
    "isas",
    "kernel_name",
    "library_path",
    "linear_qbits",
    "linear_qbytes",
    "qtype_table",
    "runs_kernels",
]

fakes.register()
compositions.register()
