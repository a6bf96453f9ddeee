"""The device `host`: an out-of-tree device of torch's, compiled from host_device.cpp, with the host's memory."""

import contextlib
import subprocess
import types
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths


SOURCE = Path(__file__).with_suffix(".cpp")
LIBRARY = Path(__file__).parents[2] / "build" / "libhost_device.so"


def _compile() -> None:
    if LIBRARY.is_file() and LIBRARY.stat().st_mtime > SOURCE.stat().st_mtime:
        return
    LIBRARY.parent.mkdir(exist_ok=True)
    partial = LIBRARY.with_suffix(".partial")
    includes = [f"-isystem{path}" for path in include_paths()]
    libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-lc10"]
    command = ["g++", "-std=c++20", "-O1", "-fPIC", "-shared", *includes, str(SOURCE), "-o", str(partial), *libraries]
    subprocess.run(command, check=True)
    partial.rename(LIBRARY)


class _Module(types.ModuleType):
    """What torch asks of `torch.host`."""

    device = staticmethod(lambda index: contextlib.nullcontext())
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    _is_in_bad_fork = staticmethod(lambda: False)
    # Random numbers are those of the CPU.
    manual_seed_all = staticmethod(lambda seed: None)
    get_rng_state = staticmethod(lambda device=None: torch.empty(0, dtype=torch.uint8))
    set_rng_state = staticmethod(lambda state, device=None: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])


def register() -> torch.device:
    """Compile the device if it is not, and make it known to torch, once in a process."""
    if not hasattr(torch, "host"):
        _compile()
        torch.utils.rename_privateuse1_backend("host")
        torch._register_device_module("host", _Module("host"))
        torch.utils.generate_methods_for_privateuse1_backend()
        torch.ops.load_library(str(LIBRARY))
    return torch.device("host", 0)
