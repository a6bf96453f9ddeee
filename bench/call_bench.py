"""What a call of a frozen linear layer costs beside torch.nn.Linear where there is next to nothing to compute.

    .venv/bin/python bench/call_bench.py [--features 64] [--rows 1] [--dtype float32]

The layers take turns. A line shows the median of a call in microseconds and its ratio to the float layer's.
"""

import argparse
import statistics
import time

import torch

from optimum.quanto import freeze, qtypes, quantize


def _layer(features: int, dtype: torch.dtype, weights: str | None) -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(features, features, dtype=dtype))
    if weights is not None:
        quantize(model, weights=qtypes[weights])
        freeze(model)
    layer: torch.nn.Module = model[0]
    return layer


def _microseconds(layer: torch.nn.Module, x: torch.Tensor, calls: int = 200) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        layer(x)
    return 1e6 * (time.perf_counter() - start) / calls


@torch.inference_mode()
def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=51)
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    x = torch.randn(options.rows, options.features, dtype=dtype)
    weights = [None, "qint8", "qint4", "qint2", "qfloat8"]
    layers = {name or "float": _layer(options.features, dtype, name) for name in weights}
    times: dict[str, list[float]] = {name: [] for name in layers}
    for turn in range(options.rounds + 1):
        for name, layer in layers.items():
            value = _microseconds(layer, x)
            if turn > 0:
                times[name].append(value)
    for name, values in times.items():
        ratio = statistics.median(v / f for v, f in zip(values, times["float"], strict=True))
        print(f"{name:8} {statistics.median(values):7.2f} us  {ratio:5.2f} x float")


if __name__ == "__main__":
    main()
