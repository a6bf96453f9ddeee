"""Kept for code written for earlier versions: `optimum.quanto.quantization` under its old name."""

from .quantization import freeze, quantization_map, quantize, requantize


__all__ = ["freeze", "quantization_map", "quantize", "requantize"]
