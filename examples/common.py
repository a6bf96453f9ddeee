"""What the examples share: the digits, quantized copies of a model, and tables of what came out."""

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from optimum.quanto import QTensor, coverage, freeze, quantize


QTYPES = ["qint8", "qfloat8", "qint4", "qint2"]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The command line of an example: `description` is its docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of everything, for a first look")
    return parser


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """scikit-learn's handwritten digits for training and for testing: images of 8 x 8 as rows of 64, and labels."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32) / 8 - 1
    y = torch.tensor(labels)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[:1297], order[1297:]
    return (x[train], y[train]), (x[test], y[test])


def fit(
    model: torch.nn.Module,
    data: tuple[Tensor, Tensor],
    epochs: int,
    learning_rate: float,
    after_epoch: Callable[[], Any] = lambda: None,
) -> None:
    """Train a small classifier with Adam, float or quantized and not frozen alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the layers are too small to share
    try:
        _fit(model, data, epochs, learning_rate, after_epoch)
    finally:
        torch.set_num_threads(threads)


def _fit(
    model: torch.nn.Module,
    data: tuple[Tensor, Tensor],
    epochs: int,
    learning_rate: float,
    after_epoch: Callable[[], Any],
) -> None:
    x, y = data
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(y), generator=generator).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(floats(model(x[batch])), y[batch]).backward()
            optimizer.step()
        schedule.step()
        after_epoch()
    model.eval()


def accuracy(model: torch.nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """The share of images that a classifier gets right."""
    x, y = data
    with torch.no_grad():
        return float((floats(model(x)).argmax(-1) == y).float().mean())


def floats(t: Tensor) -> Tensor:
    """The numbers of a tensor that a model with quantized activations may return quantized."""
    return t.dequantize() if isinstance(t, QTensor) else t


def quantized(model: torch.nn.Module, weights: str, **options: Any) -> Any:
    """A frozen copy of the model with quantized weights; `options` are those of `quantize`."""
    model = copy.deepcopy(model)
    quantize(model, weights=weights, **options)
    freeze(model)
    return model


def megabytes(model: torch.nn.Module) -> float:
    """The size of all parameters."""
    return coverage(model).bytes / 1e6


def seconds(call: Callable[[], Any], repeat: int = 3) -> float:
    """The shortest of some runs."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def quiet_transformers() -> None:
    """Keep transformers' progress bars and notes out of the way."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def table(header: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
    """Text in columns; floats with the digits that matter."""
    cells = [list(header), *[[c if isinstance(c, str) else f"{c:.4g}" for c in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    )
