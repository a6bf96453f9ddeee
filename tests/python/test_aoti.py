"""The example in examples/aoti: a model compiled ahead of time, run by a C++ program without Python."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch


ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_cpp_program_runs_the_package(tmp_path):
    source, build, folder = ROOT / "examples" / "aoti", ROOT / "build" / "aoti", tmp_path / "model"
    cmake = Path(sys.executable).parent / "cmake"
    configure = [cmake, "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"]
    for command in (configure, [cmake, "--build", build]):
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
    export = subprocess.run(
        [sys.executable, source / "export.py", folder], check=True, capture_output=True, text=True, cwd=ROOT
    )
    library = export.stdout.splitlines()[-1]
    program = str(build / "run")
    files = [str(folder / name) for name in ("model.pt2", "input.f32", "output.f32", "expected.f32")]
    subprocess.run([program, files[0], library, files[1], "5", files[2]], check=True)
    found, expected = (torch.frombuffer(bytearray(Path(f).read_bytes()), dtype=torch.float32) for f in files[2:])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    linked = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    assert "libpython" not in linked
    refused = subprocess.run([program, files[0], library, files[1], "7", files[2]], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "ROWS does not divide" in refused.stderr
