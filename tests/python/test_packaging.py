"""The wheel: one binary for every Python, no compiler at run time, and nothing of the shared namespace."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from optimum.quanto.ops import library_path


ROOT = Path(__file__).parents[2]


def test_the_library_needs_torch_and_not_python():
    needed = subprocess.run(["readelf", "-d", str(library_path())], capture_output=True, text=True, check=True).stdout
    assert "[libtorch_cpu.so]" in needed
    assert "libpython" not in needed
    assert "libtorch_python" not in needed
    assert "libgomp" not in needed
    symbols = ["nm", "-D", "--undefined-only", str(library_path())]
    undefined = subprocess.run(symbols, capture_output=True, text=True, check=True).stdout
    assert "aoti_torch_" in undefined or "torch_" in undefined
    # Nothing of torch's C++ ABI, which changes with every version.
    assert not [line for line in undefined.splitlines() if "N2at" in line or "N3c10" in line]


@pytest.mark.slow
def test_the_wheel(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", str(ROOT)]
    subprocess.run([*command, "-w", str(tmp_path)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith("optimum_quanto-1.0.0-py3-none-")
    names = zipfile.ZipFile(wheel).namelist()
    assert "optimum/quanto/libquanto_ops.so" in names
    assert "optimum/quanto/py.typed" in names
    assert "optimum/__init__.py" not in names
    assert "optimum/commands/register/register_quanto.py" in names
    ours = ("optimum/quanto/", "optimum/commands/register/", "optimum_quanto-1.0.0.dist-info/")
    assert all(name.startswith(ours) for name in names)
    assert not [name for name in names if name.startswith("optimum/commands/") and name.endswith("__init__.py")]
