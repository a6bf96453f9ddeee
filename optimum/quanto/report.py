"""What became of each module of a quantized model."""

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch._subclasses.fake_tensor import is_fake

from .nn import QModuleMixin
from .nn.qmodule import reason_left_float
from .quantization import reason_not_asked_for, require_module
from .tensor import PackedTensor, QTensor


__all__ = ["Coverage", "CoverageRow", "coverage"]

_LARGE_FLOAT_SHARE = 0.5
_FEW_ROWS, _MANY_ROWS = 1, 512
_ROWS = (*range(2, 65), 128, 256, _MANY_ROWS)
"""Between two of them kernels change at most once."""


@dataclass(frozen=True)
class CoverageRow:
    """One module that has parameters of its own.

    Attributes:
        name: of the module.
        kind: its class.
        weights: qtype of its weight, or its float dtype.
        activations: qtype of its activations, or `none`.
        bytes: of its parameters.
        float_bytes: that they would take in the dtype of the model.
        elements: of its parameters.
        quantized: whether its weight is stored quantized.
        kernel: what its forward runs on this machine for a single row of activations, or how it gets by without.
        kernel_many_rows: the same for many rows, 512 of them.
        kernels: from how many rows on which of them runs, in pairs of both.
        reason: why it was left float, or empty.
        excluded: whether the user's patterns are that reason.
        shared_with: the module whose tensor its weight is, which counts its bytes, or empty.
    """

    name: str
    kind: str
    weights: str
    activations: str
    bytes: int
    float_bytes: int
    elements: int
    quantized: bool
    kernel: str
    kernel_many_rows: str
    kernels: tuple[tuple[int, str], ...]
    reason: str
    excluded: bool
    shared_with: str

    @property
    def remark(self) -> str:
        """What the table says of the module: its kernels, or why there are none."""
        parts = [self.reason or self.kernel]
        for (_, previous), (rows, kernel) in pairwise(self.kernels):
            same_types = previous.rpartition("/")[0] == kernel.rpartition("/")[0]
            parts.append(f"from {rows} rows: {kernel.rpartition('/')[2] if same_types else kernel}")
        if self.shared_with:
            parts.append(f"shares the bytes of {self.shared_with}")
        return "; ".join(part for part in parts if part)


@dataclass
class Coverage:
    """The rows of a coverage report. Printing it prints a table."""

    rows: list[CoverageRow] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(row.bytes for row in self.rows)

    @property
    def float_bytes(self) -> int:
        """Bytes that they would take in the dtypes of the float model."""
        return sum(row.float_bytes for row in self.rows)

    @property
    def float_share(self) -> float:
        """Share of the parameters that are stored as floats."""
        elements = sum(row.elements for row in self.rows)
        return sum(row.elements for row in self.rows if not row.quantized) / max(1, elements)

    @property
    def unwanted_float(self) -> tuple[float, CoverageRow | None]:
        """Share of the parameters that are floats without having been excluded, and the largest module of them."""
        rows = [row for row in self.rows if not row.quantized and not row.excluded]
        elements = sum(row.elements for row in self.rows)
        largest = max(rows, key=lambda row: row.elements, default=None)
        return sum(row.elements for row in rows) / max(1, elements), largest

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, which `json.dumps` takes."""
        totals = {"bytes": self.bytes, "float_bytes": self.float_bytes, "float_share": self.float_share}
        return {"rows": [asdict(row) for row in self.rows], **totals}

    def __str__(self) -> str:
        header = ("module", "class", "weights", "activations", "MB", "kernel or reason")
        lines = [header]
        for row in self.rows:
            lines.append(
                (row.name or "(model)", row.kind, row.weights, row.activations, f"{row.bytes / 1e6:.3f}", row.remark)
            )
        widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        table.append(
            f"{self.bytes / 1e6:.3f} MB, {self.float_bytes / 1e6:.3f} MB as floats; "
            f"{self.float_share:.1%} of the parameters are float"
        )
        if self.float_share > _LARGE_FLOAT_SHARE:
            table.append("warning: most parameters are float; see the reasons above")
        return "\n".join(line.rstrip() for line in table)


def tensor_bytes(t: torch.Tensor) -> int:
    """Bytes that a tensor stores: codes, scales and shifts for a quantized one."""
    if isinstance(t, QTensor | PackedTensor):
        return sum(tensor_bytes(inner) for inner in t.inner_tensors().values())
    return t.numel() * t.element_size()


def _storage(t: torch.Tensor) -> Any:
    """What two names of the same bytes have in common: a quantized weight may have several wrappers."""
    if isinstance(t, QTensor | PackedTensor):
        return tuple(_storage(inner) for inner in t.inner_tensors().values())
    if t.numel() == 0:
        return id(t)
    if t.device.type == "meta" or is_fake(t):  # without an address
        return (t.untyped_storage()._cdata, t.storage_offset())
    return (t.device, t.untyped_storage().data_ptr(), t.storage_offset(), t.numel())


def _reason(module: torch.nn.Module) -> str:
    if isinstance(module, torch.nn.LayerNorm):
        return "its weight is not quantized, only its activations are"
    if isinstance(module, QModuleMixin):
        return "no weight qtype" if module.weight_qtype is None else "not frozen: quantizes on every forward"
    not_asked_for = reason_not_asked_for(module)
    # What keeps an embedding float in any case says more than that it was not asked for.
    return not_asked_for or reason_left_float(module, embeddings=True) or reason_left_float(module) or "not quantized"


def _kernels(module: QModuleMixin) -> tuple[tuple[int, str], ...]:
    """From how many rows on a module runs which kernel."""
    found = [(_FEW_ROWS, module.kernel(_FEW_ROWS))]
    low = _FEW_ROWS
    for rows in _ROWS:
        kernel = module.kernel(rows)
        if kernel != found[-1][1]:
            first = rows
            while first - low > 1:
                middle = (low + first) // 2
                low, first = (low, middle) if module.kernel(middle) == kernel else (middle, first)
            found.append((first, kernel))
        low = rows
    return tuple(found)


def _row(name: str, module: torch.nn.Module, parameters: list[torch.Tensor], shared_with: str) -> CoverageRow:
    weight = getattr(module, "weight", None)
    weight = weight if isinstance(weight, torch.Tensor) else next(module.parameters(recurse=False))
    quantized = isinstance(weight, QTensor)
    activations = (module.activation_qtype or module.dynamic_qtype) if isinstance(module, QModuleMixin) else None
    kernels = _kernels(module) if quantized and isinstance(module, QModuleMixin) else ()
    return CoverageRow(
        name=name,
        kind=type(module).__name__,
        weights=weight.qtype.name if isinstance(weight, QTensor) else str(weight.dtype).removeprefix("torch."),
        activations="none" if activations is None else activations.name,
        bytes=sum(tensor_bytes(p) for p in parameters),
        float_bytes=sum(p.numel() * p.element_size() for p in parameters),
        elements=sum(p.numel() for p in parameters),
        quantized=quantized,
        kernel=kernels[0][1] if kernels else "",
        kernel_many_rows=kernels[-1][1] if kernels else "",
        kernels=kernels,
        reason="" if quantized else _reason(module),
        excluded=not quantized and reason_not_asked_for(module) is not None,
        shared_with=shared_with,
    )


def coverage(model: torch.nn.Module) -> Coverage:
    """Report, for each module with parameters, what it is stored as, its size, its kernel, or why it is float.

    A tensor that several modules share is counted with the first.

    Example:
        >>> print(coverage(model))
        >>> json.dumps(coverage(model).to_dict())
    """
    require_module(model, "coverage")
    report = Coverage()
    owners: dict[Any, str] = {}
    for name, module in model.named_modules():
        parameters = list(module.parameters(recurse=False))
        if not parameters:
            continue
        own = [p for p in parameters if _storage(p) not in owners]
        shared = next((owners[_storage(p)] for p in parameters if _storage(p) in owners), "")
        owners.update((_storage(p), name) for p in own)
        report.rows.append(_row(name, module, own, shared))
    return report
