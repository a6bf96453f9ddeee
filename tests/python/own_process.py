"""Checks of a process's memory, which other tests of the same process would disturb."""

import subprocess
import sys


def in_a_process_of_its_own(function, *args):
    """Call a function of a test module where no other test has left memory behind.

    Its arguments are what `repr` shows as a literal.
    """
    name = f"import {function.__module__} as module; module.{function.__name__}(*{args!r})"
    code = f"import sys; sys.path[:0] = {sys.path!r}; {name}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
