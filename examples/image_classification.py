"""Image classification: a small vision transformer for handwritten digits with weights of every type.

    python examples/image_classification.py [--quick]

Trains the transformer on scikit-learn's digits, quantizes copies of it, and prints what each type costs: the size of
all parameters, the accuracy on images that training never saw, and how often it agrees with the float model.
"""

from typing import Any

import torch
from common import QTYPES, accuracy, arguments, digits, fit, megabytes, quantized, table
from torch import Tensor
from torch.nn import functional


class Block(torch.nn.Module):
    """Self-attention and a feed-forward network, each after a normalization and beside a residual path."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.up, self.down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def attention(self, x: Tensor) -> Tensor:
        """`(batch, tokens, width)` from tensors of that shape."""
        batch, tokens, width = x.shape
        parts = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class VisionTransformer(torch.nn.Module):
    """Patches of 2 x 2 pixels as tokens; the mean of the last tokens decides."""

    def __init__(self, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(1, width, kernel_size=2, stride=2)
        self.positions = torch.nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = torch.nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm = torch.nn.LayerNorm(width)
        self.head = torch.nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x.view(-1, 1, 8, 8)).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def trained(epochs: int) -> VisionTransformer:
    """A float classifier."""
    torch.manual_seed(0)
    model = VisionTransformer()
    fit(model, digits()[0], epochs, 3e-3)
    return model


def agreement(model: torch.nn.Module, reference: torch.nn.Module, x: Tensor) -> float:
    """The share of inputs that two classifiers put into the same class."""
    with torch.no_grad():
        return float((model(x).argmax(-1) == reference(x).argmax(-1)).float().mean())


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the example; a row for each version of the model."""
    options = arguments(__doc__).parse_args(argv)
    model = trained(12 if options.quick else 30)
    _, test = digits()
    results = []
    for weights in [None, *QTYPES, "qfloat8_e5m2", "qfloat8_e4m3fnuz"]:
        version = model if weights is None else quantized(model, weights)
        results.append(
            {
                "weights": weights or "float32",
                "MB": megabytes(version),
                "accuracy": accuracy(version, test),
                "agreement": agreement(version, model, test[0]),
            }
        )
    rows = [[r["weights"], r["MB"], f"{r['accuracy']:.1%}", f"{r['agreement']:.1%}"] for r in results]
    print(table(["weights", "MB", "accuracy", "as float32"], rows))
    return results


if __name__ == "__main__":
    main()
