"""There is one library, compiled when the package was built: no extensions are."""

from typing import NoReturn


__all__ = ["get_extension", "is_extension_available"]


def is_extension_available(extension_type: str) -> bool:
    """Whether there are compiled kernels: always for `quanto_cpp`; there is no run-time compiled extension."""
    return extension_type == "quanto_cpp"


def get_extension(extension_type: str) -> NoReturn:
    """Raises KeyError: extensions compiled at run time do not exist."""
    raise KeyError(f"[get_extension] extension_type: got {extension_type!r}, expected none: all kernels are operators")
