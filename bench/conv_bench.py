"""What a convolution with quantized weights costs by its two ways, beside the float layer.

    .venv/bin/python bench/conv_bench.py [--weights qint8 qint4] [--dtypes bfloat16 float32] [--seconds 0.5]

The ways are the kernels, which multiply activations with the codes, and torch's convolution with the decoded weight.
All take turns. A line shows the layer, its output positions, the float layer's median, and both ways in multiples of
it: `runs_kernels` of `optimum/quanto/ops/conv.py` chooses between them.
"""

import argparse
import copy
import statistics
import time
from typing import NamedTuple

import torch

from optimum.quanto import freeze, quantize
from optimum.quanto.ops import conv as conv_ops


class Layer(NamedTuple):
    """A square convolution: channels, size of the kernel, stride, and the size of the image."""

    what: str
    inputs: int
    outputs: int
    kernel: int
    stride: int
    height: int
    width: int


LAYERS = [
    Layer("latents 8x8", 1280, 1280, 3, 1, 8, 8),
    Layer("latents 16x16", 1280, 1280, 3, 1, 16, 16),
    Layer("latents 32x32", 640, 640, 3, 1, 32, 32),
    Layer("latents 64x64", 320, 320, 3, 1, 64, 64),
    Layer("residual 7x7", 512, 512, 3, 1, 7, 7),
    Layer("residual 14x14", 256, 256, 3, 1, 14, 14),
    Layer("residual 28x28", 128, 128, 3, 1, 28, 28),
    Layer("residual 56x56", 64, 64, 3, 1, 56, 56),
    Layer("first 7x7", 3, 64, 7, 2, 224, 224),
    Layer("downsampling", 128, 256, 3, 2, 56, 56),
    Layer("bottleneck 1x1", 1024, 256, 1, 1, 14, 14),
    Layer("widening 1x1", 64, 256, 1, 1, 56, 56),
    Layer("patches 16x16", 3, 768, 16, 16, 224, 224),
    Layer("speech k3", 512, 512, 3, 2, 1, 3000),
]


def _seconds(model: torch.nn.Module, x: torch.Tensor, kernels: bool) -> float:
    conv_ops.runs_kernels = lambda *_: kernels
    start = time.perf_counter()
    model(x)
    return time.perf_counter() - start


def _measure(layer: Layer, weights: str, dtype: torch.dtype, budget: float) -> str:
    torch.manual_seed(0)
    kernel = (layer.kernel if layer.height > 1 else 1, layer.kernel)
    padding = tuple(k // 2 if layer.stride < k else 0 for k in kernel)
    stride = (layer.stride if layer.height > 1 else 1, layer.stride)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(layer.inputs, layer.outputs, kernel, stride=stride, padding=padding, dtype=dtype)
    )
    quantized = copy.deepcopy(model)
    quantize(quantized, weights=weights)
    freeze(quantized)
    x = torch.randn(1, layer.inputs, layer.height, layer.width, dtype=dtype)
    positions = model(x)[0, 0].numel()
    times: list[tuple[float, float, float]] = []
    for kernels in (True, False):
        _seconds(quantized, x, kernels)
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(times) < 5:
        times.append((_seconds(model, x, False), _seconds(quantized, x, True), _seconds(quantized, x, False)))
    dense, patches, decoded = (statistics.median(column) for column in zip(*times, strict=True))
    return (
        f"{layer.what:16} {weights:18} {str(dtype)[6:]:9} {positions:6} positions  float {1e3 * dense:8.3f} ms  "
        f"kernels {patches / dense:5.2f} x  decoded {decoded / dense:5.2f} x"
    )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", nargs="+", default=["qint8", "qint4"])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--seconds", type=float, default=0.5, help="to spend on each layer")
    options = parser.parse_args()
    with torch.inference_mode():
        for dtype in options.dtypes:
            for weights in options.weights:
                for layer in LAYERS:
                    print(_measure(layer, weights, getattr(torch, dtype), options.seconds), flush=True)


if __name__ == "__main__":
    main()
