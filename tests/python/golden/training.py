"""A training step of a small quantized model, in terms of both libraries.

Run with optimum-quanto 0.2.7 installed, in an environment of its own, it writes what that version computes:

python training.py training_0_2_7.safetensors
"""

import sys

import torch
from cases import QTYPES, base_tensor, float_model
from safetensors.torch import save_file

from optimum.quanto import Calibration, QTensor, quantize


TRAININGS = {
    f"{weights}.{activations}": (weights, activations)
    for weights in QTYPES
    for activations in ("none", "qint8", "qfloat8_e4m3fn")
}


def _floats(t: torch.Tensor) -> torch.Tensor:
    return t.dequantize() if isinstance(t, QTensor) else t


def train(weights: str, activations: str) -> dict[str, torch.Tensor]:
    """The output and all gradients of a step, and the output after it."""
    model = float_model(torch.float32)
    quantize(model, weights=weights, activations=None if activations == "none" else activations)
    x, upstream = base_tensor((5, 160), torch.float32), base_tensor((5, 6), torch.float32)
    with torch.no_grad(), Calibration(streamline=False):  # 0.2.7 would stop quantizing every output
        model(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs = x.clone().requires_grad_()
    output = _floats(model(inputs))
    (output * upstream).sum().backward()
    found = {"output": output.detach(), "input": inputs.grad}
    found.update({name: parameter.grad for name, parameter in model.named_parameters()})
    optimizer.step()
    found["next output"] = _floats(model(x)).detach()
    return found


def main() -> None:
    tensors = {}
    for name, case in TRAININGS.items():
        tensors.update({f"{name}.{key}": t.contiguous() for key, t in train(*case).items()})
    save_file(tensors, sys.argv[1])


if __name__ == "__main__":
    main()
