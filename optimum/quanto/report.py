"""What became of each module of a quantized model."""

from dataclasses import dataclass, field

import torch

from .nn import QModuleMixin
from .ops import kernel_name
from .tensor import PackedTensor, QTensor, WeightQBitsTensor, WeightQBytesTensor


__all__ = ["Coverage", "CoverageRow", "coverage"]

_LARGE_FLOAT_SHARE = 0.5


@dataclass(frozen=True)
class CoverageRow:
    """One module that has parameters of its own.

    Attributes:
        name: of the module.
        kind: its class.
        weights: qtype of its weight, or its float dtype.
        bytes: of its parameters.
        elements: of its parameters.
        quantized: whether its weight is stored quantized.
        kernel: what its forward runs on this machine for a single row of activations, or how it gets by without.
        reason: why it was left float, or empty.
    """

    name: str
    kind: str
    weights: str
    bytes: int
    elements: int
    quantized: bool
    kernel: str
    reason: str


@dataclass
class Coverage:
    """The rows of a coverage report. Printing it prints a table."""

    rows: list[CoverageRow] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(row.bytes for row in self.rows)

    @property
    def float_share(self) -> float:
        """Share of the parameters that are stored as floats."""
        elements = sum(row.elements for row in self.rows)
        return sum(row.elements for row in self.rows if not row.quantized) / max(1, elements)

    def __str__(self) -> str:
        header = ("module", "class", "weights", "MB", "kernel or reason")
        lines = [header]
        for row in self.rows:
            lines.append((row.name, row.kind, row.weights, f"{row.bytes / 1e6:.3f}", row.kernel or row.reason))
        widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        table.append(f"{self.bytes / 1e6:.3f} MB; {self.float_share:.1%} of the parameters are float")
        if self.float_share > _LARGE_FLOAT_SHARE:
            table.append("warning: most parameters are float; see the reasons above")
        return "\n".join(line.rstrip() for line in table)


def tensor_bytes(t: torch.Tensor) -> int:
    """Bytes that a tensor stores: codes, scales and shifts for a quantized one."""
    if isinstance(t, QTensor | PackedTensor):
        return sum(tensor_bytes(inner) for inner in t.inner_tensors().values())
    return t.numel() * t.element_size()


def _kernel(module: torch.nn.Module, weight: torch.Tensor) -> str:
    if weight.device.type != "cpu":
        return f"composition of torch operators on {weight.device.type}"
    if not isinstance(module, torch.nn.Linear) or not isinstance(weight, WeightQBitsTensor | WeightQBytesTensor):
        return "slow: decodes the weight on every forward"
    group_size = weight._group_size or 0 if isinstance(weight, WeightQBitsTensor) else 0
    codes = (module.activation_qtype or module.dynamic_qtype) if isinstance(module, QModuleMixin) else None
    activations = weight.dtype if codes is None else codes.name
    return kernel_name(weight.qtype.name, activations, 1, weight.shape[0], weight.shape[1], group_size)


def _reason(module: torch.nn.Module) -> str:
    if isinstance(module, QModuleMixin):
        return "no weight qtype" if module.weight_qtype is None else "not frozen: quantizes on every forward"
    if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
        return "excluded"
    return "no quantized counterpart"


def coverage(model: torch.nn.Module) -> Coverage:
    """Report, for each module with parameters, what it is stored as, its size, its kernel, or why it is float.

    A tensor that several modules share is counted with the first.

    Example:
        >>> print(coverage(model))
    """
    report = Coverage()
    seen: set[int] = set()
    for name, module in model.named_modules():
        parameters = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(id(p) for p in parameters)
        if not parameters:
            continue
        weight = getattr(module, "weight", parameters[0])
        quantized = isinstance(weight, QTensor)
        report.rows.append(
            CoverageRow(
                name,
                type(module).__name__,
                weight.qtype.name if isinstance(weight, QTensor) else str(parameters[0].dtype).removeprefix("torch."),
                sum(tensor_bytes(p) for p in parameters),
                sum(p.numel() for p in parameters),
                quantized,
                _kernel(module, weight) if quantized else "",
                "" if quantized else _reason(module),
            )
        )
    return report
