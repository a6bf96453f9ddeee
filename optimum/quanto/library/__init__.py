"""Kept for code written for earlier versions: the operators live in `optimum.quanto.ops`."""

from .extensions import get_extension, is_extension_available


__all__ = ["get_extension", "is_extension_available"]
