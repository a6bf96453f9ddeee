"""A diffusion transformer: how far denoising with quantized weights strays from the float model.

    python examples/diffusion_transformer.py [--quick]

A small transformer of the shape of "Scalable Diffusion Models with Transformers" (Peebles and Xie, 2023), with random
weights, turns noise into latent images of given classes in a few steps. Each version starts from the same noise. The
table shows the size of all parameters, how long a step takes, and how far the result is from that of the float model,
relative to its size.
"""

from typing import Any

import torch
from common import QTYPES, arguments, megabytes, quantized, seconds, table
from torch import Tensor


def transformer(layers: int) -> Any:
    """A float model for latent images of 4 x 16 x 16."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=64,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        sample_size=16,
        patch_size=2,
        num_embeds_ada_norm=10,
    ).eval()


def denoise(model: Any, noise: Tensor, classes: Tensor, steps: int) -> Tensor:
    """The latent images that the noise turns into."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(steps)
    latents = noise
    with torch.no_grad():
        for time in scheduler.timesteps:
            predicted = model(latents, timestep=time.expand(len(latents)), class_labels=classes).sample
            latents = scheduler.step(predicted, time, latents).prev_sample
    return latents


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the example; a row for each version of the model."""
    options = arguments(__doc__).parse_args(argv)
    steps = 3 if options.quick else 10
    model = transformer(2 if options.quick else 6)
    noise, classes = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(4)
    expected = denoise(model, noise, classes, steps)
    results: list[dict[str, Any]] = []
    for weights in [None, *QTYPES]:
        version = model if weights is None else quantized(model, weights)
        latents = denoise(version, noise, classes, steps)
        results.append(
            {
                "weights": weights or "float32",
                "MB": megabytes(version),
                "error": float((latents - expected).norm() / expected.norm()),
                "ms": 1e3 * seconds(lambda: denoise(version, noise, classes, 1)),  # noqa: B023
            }
        )
    rows = [[r["weights"], r["MB"], f"{r['error']:.2%}", r["ms"]] for r in results]
    print(table(["weights", "MB", f"error after {steps} steps", "ms a step"], rows))
    return results


if __name__ == "__main__":
    main()
