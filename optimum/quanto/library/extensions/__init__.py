"""Kept for code written for earlier versions, which compiled extensions per device at run time."""

from .extension import get_extension, is_extension_available


__all__ = ["get_extension", "is_extension_available"]
