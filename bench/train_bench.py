"""What a training step of a quantized, unfrozen linear layer costs beside that of the float layer.

    python bench/train_bench.py [--features 1024 2048] [--rows 64 256] [--dtypes float32 bfloat16]
                                [--weights qint8 qint4 qint2 qfloat8_e4m3fn] [--activations none qint8]

A step is forward, backward and SGD. The two layers take turns, so that a change of the machine's speed meets both.
Each line shows the medians, their ratio, and the quartiles of the ratios of neighbouring steps.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch

from optimum.quanto import Calibration, quantize


def _training_step(features: int, rows: int, dtype: torch.dtype, weights: str | None, activations: str | None):
    """A function that trains one linear layer by one step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(features, features, dtype=dtype))
    inputs = torch.randn(rows, features, dtype=dtype)
    gradient = torch.randn(rows, features, dtype=dtype)
    if weights is not None:
        quantize(model, weights=weights, activations=activations)
        with Calibration(), torch.no_grad():
            model(inputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    inputs.requires_grad_()  # as in the middle of a model

    def step() -> None:
        inputs.grad = None
        optimizer.zero_grad()
        output = model(inputs)
        if hasattr(output, "dequantize") and hasattr(output, "qtype"):
            output = output.dequantize()
        output.backward(gradient)
        optimizer.step()

    return step


def _seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _compare(plain: Callable[[], None], quantized: Callable[[], None], budget: float) -> list[tuple[float, float]]:
    """Times of the two steps in turn, for about `budget` seconds."""
    for _ in range(3):
        plain()
        quantized()
    pairs = []
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(pairs) < 5:
        pairs.append((_seconds(plain), _seconds(quantized)))
    return pairs


def _report(name: str, pairs: list[tuple[float, float]]) -> None:
    low, _, high = statistics.quantiles([b / a for a, b in pairs], n=4)
    a, b = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"{name:64} {a * 1e3:8.3f} {b * 1e3:8.3f} {b / a:6.2f}   {low:5.2f} .. {high:5.2f}", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", nargs="+", type=int, default=[1024, 2048])
    parser.add_argument("--rows", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--weights", nargs="+", default=["qint8", "qint4", "qint2", "qfloat8_e4m3fn"])
    parser.add_argument("--activations", nargs="+", default=["none", "qint8"])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line")
    return parser.parse_args()


def _main() -> None:
    options = _parse()
    print(f"{'a step':64} {'float':>8} {'quanto':>8} {'ratio':>6}   {'its quartiles':>14}   (ms)")
    for features, rows, name in itertools.product(options.features, options.rows, options.dtypes):
        dtype = getattr(torch, name)
        plain = _training_step(features, rows, dtype, None, None)
        for weights, activations in itertools.product(options.weights, options.activations):
            quantized = _training_step(features, rows, dtype, weights, None if activations == "none" else activations)
            text = f"{features} x {features}, {rows} rows, {name}, {weights}, activations {activations}"
            _report(text, _compare(plain, quantized, options.seconds))


if __name__ == "__main__":
    _main()
