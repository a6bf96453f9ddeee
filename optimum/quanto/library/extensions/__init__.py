"""Kept for code written for earlier versions, which compiled extensions per device at run time."""

__all__ = ["is_extension_available"]


def is_extension_available(name: str) -> bool:
    """Whether there are compiled kernels: always for `quanto_cpp`; there is no run-time compiled extension."""
    return name == "quanto_cpp"
