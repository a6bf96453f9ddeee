"""Quantization-aware training: a classifier of handwritten digits gets back what int4 and int2 weights cost it.

    python examples/qat_digits.py [--quick] [--output qat_digits.png]

A float classifier is trained on scikit-learn's digits and quantized, which costs int2 much of its accuracy. Then the
quantized model is trained for some more epochs: each forward sees quantized weights, gradients pass straight through
to the float ones. The plot shows the accuracy on images that training never saw, after each epoch.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from common import accuracy, arguments, digits, fit, quantized, table
from matplotlib.figure import Figure

from optimum.quanto import freeze, quantize


def classifier() -> torch.nn.Module:
    """Two hidden layers, so narrow that no weight can be spared."""
    return torch.nn.Sequential(
        torch.nn.Linear(64, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 10),
    )


def train_quantized(model: torch.nn.Module, weights: str, epochs: int) -> dict[str, Any]:
    """The accuracies of a model quantized after training, and after each epoch of training it quantized."""
    train, test = digits()
    after = accuracy(quantized(model, weights), test)
    trained = copy.deepcopy(model)
    quantize(trained, weights=weights)
    curve = [after]
    fit(trained, train, epochs, 4e-3, lambda: curve.append(accuracy(trained, test)))
    freeze(trained)
    return {"weights": weights, "after": after, "aware": accuracy(trained, test), "curve": curve}


def plot(baseline: float, results: list[dict[str, Any]], path: Path) -> None:
    """One line for each type, and the float classifier's level."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(100 * baseline, color="0.5", linestyle="--", label="float32")
    for result in results:
        axes.plot([100 * a for a in result["curve"]], marker="o", markersize=3, label=result["weights"])
    axes.set_xlabel("epochs of quantization-aware training (0: quantized after training)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title("Handwritten digits, 8 x 8 pixels")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the example; the accuracies of each type."""
    parser = arguments(__doc__)
    parser.add_argument("--output", type=Path, default=Path("qat_digits.png"), help="where the plot goes")
    options = parser.parse_args(argv)
    epochs = 10 if options.quick else 30
    torch.manual_seed(0)
    train, test = digits()
    model = classifier()
    fit(model, train, epochs, 4e-3)
    baseline = accuracy(model, test)
    results = [train_quantized(model, weights, epochs) for weights in ("qint4", "qint2")]
    rows = [[r["weights"], f"{r['after']:.1%}", f"{r['aware']:.1%}"] for r in results]
    header = ["weights", "quantized after training", "quantization-aware training"]
    print(table(header, [["float32", f"{baseline:.1%}", ""], *rows]))
    plot(baseline, results, options.output)
    print(f"plot: {options.output}")
    return [{"weights": "float32", "after": baseline, "aware": baseline}, *results]


if __name__ == "__main__":
    main()
