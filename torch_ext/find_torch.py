"""Print torch's include folder in the environment of this interpreter, without importing torch."""

import importlib.util
import os
import site
import sys
import sysconfig


def main() -> None:
    """Print the first folder found, or nothing."""
    folders = [sysconfig.get_path("platlib"), *site.getsitepackages(), *sys.path]
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        folders.insert(0, os.path.dirname(os.path.dirname(spec.origin)))
    for folder in folders:
        include = os.path.join(folder, "torch", "include")
        if os.path.isdir(include):
            print(include)
            return


if __name__ == "__main__":
    main()
