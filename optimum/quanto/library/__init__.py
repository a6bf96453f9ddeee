"""Kept for code written for earlier versions: the operators live in `optimum.quanto.ops`."""

from .extensions import is_extension_available


__all__ = ["is_extension_available"]
