"""Calibration: int8 and float8 activations with scales that sample inputs decide.

    python examples/calibration.py [--quick]

Quantized activations need a scale for each layer's input and output. `Calibration` runs samples through the model,
sets the scales, and leaves those outputs float that only functions without a quantized form consume. The table shows
a classifier of handwritten digits before calibration, when all scales are one, and after it: how far its outputs are
from those of the float model, and its accuracy.
"""

import copy
from typing import Any

import torch
from common import accuracy, arguments, digits, fit, floats, table
from torch import Tensor

from optimum.quanto import Calibration, freeze, quantize


def classifier() -> torch.nn.Module:
    """Convolutions and linear layers."""
    return torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 8, 8)),
        torch.nn.Conv2d(1, 32, 3),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 32, 3),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * 16, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 10),
    )


def error(model: torch.nn.Module, reference: torch.nn.Module, x: Tensor) -> float:
    """The distance of the outputs of two models, relative to their size."""
    with torch.no_grad():
        expected = reference(x)
        return float((floats(model(x)) - expected).norm() / expected.norm())


def quantized_with_activations(model: torch.nn.Module, weights: str, activations: str, samples: Any) -> dict[str, Any]:
    """The error before and after the samples, the accuracy, and how many layers quantize their outputs."""
    _, test = digits()
    version = copy.deepcopy(model)
    quantize(version, weights=weights, activations=activations)
    before = error(version, model, test[0])
    with torch.no_grad(), Calibration():
        for batch in samples:
            version(batch)
    freeze(version)
    layers = [m for m in version.modules() if hasattr(m, "quantizes_output")]
    return {
        "weights": weights,
        "activations": activations,
        "before": before,
        "after": error(version, model, test[0]),
        "accuracy": accuracy(version, test),
        "outputs": sum(m.quantizes_output for m in layers),
        "layers": len(layers),
    }


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the example; a row for each choice of types."""
    options = arguments(__doc__).parse_args(argv)
    torch.manual_seed(0)
    train, test = digits()
    model = classifier()
    fit(model, train, 3 if options.quick else 15, 1e-3)
    baseline = accuracy(model, test)
    samples = train[0].split(128)[: 2 if options.quick else 8]
    results = [
        quantized_with_activations(model, weights, activations, samples)
        for activations in ("qint8", "qfloat8_e4m3fn", "qfloat8_e5m2")
        for weights in ("qint8", "qfloat8", "qint4")
    ]
    print(f"float32: {baseline:.1%}")
    rows = [
        [
            r["weights"],
            r["activations"],
            f"{r['before']:.1%}",
            f"{r['after']:.1%}",
            f"{r['accuracy']:.1%}",
            f"{r['outputs']} of {r['layers']}",
        ]
        for r in results
    ]
    header = ["weights", "activations", "error, not calibrated", "calibrated", "accuracy", "quantized outputs"]
    print(table(header, rows))
    return [{"weights": "float32", "activations": "none", "accuracy": baseline}, *results]


if __name__ == "__main__":
    main()
