"""Compile a quantized model ahead of time into a package that a C++ program runs without Python.

    python examples/aoti/export.py FOLDER

writes to FOLDER: `model.pt2`, the package; `input.f32` and `expected.f32`, a batch and what the model makes of it in
eager mode, as raw float32 numbers. Then, with the program of this folder built by CMake:

    run FOLDER/model.pt2 LIBRARY FOLDER/input.f32 ROWS FOLDER/output.f32

where LIBRARY is the path that this script prints, of the library with Quanto's operators.
"""

import argparse
from pathlib import Path

import torch

from optimum.quanto import freeze, qint4, quantize
from optimum.quanto.ops.library import library_path


FEATURES = 256


def quantized_classifier() -> torch.nn.Module:
    """A small classifier with 4-bit weights."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(FEATURES, 512), torch.nn.GELU(), torch.nn.Linear(512, 10)).eval()
    quantize(model, weights=qint4)
    freeze(model)
    return model


@torch.no_grad()
def main() -> None:
    """Write the package, an input and what eager mode makes of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)

    model, rows = quantized_classifier(), torch.randn(5, FEATURES)
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(model, (torch.randn(2, FEATURES),), dynamic_shapes=({0: batch},))
    torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "model.pt2"))
    rows.numpy().tofile(folder / "input.f32")
    model(rows).numpy().tofile(folder / "expected.f32")
    print(library_path())


if __name__ == "__main__":
    main()
