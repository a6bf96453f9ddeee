"""Choosing the scales of activations by running samples through a model."""

from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from .nn import QModuleMixin
from .observers import AbsmaxObserver, Observer, as_observer
from .tensor import ActivationQBytesTensor, QTensor, qint8, qtype


__all__ = ["Calibration", "absmax_scale"]


def absmax_scale(base: Tensor, qtype: qtype = qint8, axis: int | None = None) -> Tensor:
    """`max |base| / qmax`, of the whole tensor or for each index of `axis`.

    Args:
        base: float32, bfloat16 or float16.
        qtype: an 8-bit qtype.
        axis: a dimension, or None.

    Returns:
        A scalar, or a tensor with as many dimensions as `base`, in its dtype.

    Raises:
        ValueError: there is no such dimension.
    """
    if axis is not None and 0 < axis < base.ndim - 1:
        return torch.ops.quanto.absmax_scale(base.movedim(axis, 0), qtype.name, 0).movedim(0, axis)
    return torch.ops.quanto.absmax_scale(base, qtype.name, axis)


class Calibration(TorchFunctionMode):
    """Context manager: while samples run through a model, set the input and output scales of its quantized modules.

    Args:
        momentum: weight of the previous scale when a new sample comes, for the observer "absmax".
        streamline: stop quantizing outputs that only functions without a quantized form consume.
        debug: print what was decided for each module.
        observer: how samples make a scale: "absmax" (the largest magnitude of each, averaged), "percentile" (of all
            magnitudes: clamps outliers) or "mse" (the least squared error); or an `Observer`, or its class.

    Raises:
        ValueError, TypeError: there is no such observer.
    """

    def __init__(
        self,
        *args: Any,
        momentum: float = 0.9,
        streamline: bool = True,
        debug: bool = False,
        observer: str | Observer | type[Observer] = AbsmaxObserver,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.momentum = momentum
        self.observer = as_observer(observer, momentum)
        self.streamline = streamline
        self.debug = debug
        self.modules_qactivations: dict[torch.nn.Module, bool] = {}
        self.streamline_hooks: dict[torch.nn.Module, Any] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if self.streamline and any(issubclass(t, QTensor) for t in types):
            for arg in args:
                source = getattr(arg, "src_module", None)
                if source is not None and isinstance(output, ActivationQBytesTensor):
                    self.modules_qactivations[source] = True
                elif source is not None and isinstance(output, Tensor):
                    self.modules_qactivations.setdefault(source, False)
        return output

    def __enter__(self) -> "Calibration":
        super().__enter__()
        self._handles = [
            register_module_forward_pre_hook(self.calibrate_input),
            register_module_forward_hook(self.calibrate_output),
        ]
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)
        for handle in (*self._handles, *self.streamline_hooks.values()):
            handle.remove()
        self.streamline_hooks.clear()

    def calibrate_input(self, module: torch.nn.Module, input: Any) -> None:
        """Global forward pre-hook: update the scale of the input, before the module quantizes it."""
        if not isinstance(module, QModuleMixin) or module.activation_qtype is None:
            return
        first = input[0]
        if isinstance(first, ActivationQBytesTensor):
            module.input_scale = first._scale.detach().clone().reshape(())  # no tensor is saved under two names
        else:
            module.input_scale = self._observed(module, "input", first, module.input_scale)
        if self.streamline and module not in self.streamline_hooks:
            # Runs after the hook that quantizes the output.
            self.streamline_hooks[module] = module.register_forward_hook(self.tag_outputs)

    def calibrate_output(self, module: torch.nn.Module, input: Any, output: Any) -> None:
        """Global forward hook: update the scale of the output, before the module quantizes it."""
        if isinstance(module, QModuleMixin) and module.activation_qtype is not None:
            module.output_scale = self._observed(module, "output", output, module.output_scale)
            return
        children = [(name, m) for name, m in module.named_children() if isinstance(m, QModuleMixin)]
        for name, child in children:
            if self.streamline and child.activation_qtype is not None and not self.modules_qactivations.get(child):
                child.disable_output_quantization()
            if self.debug:
                self._print(name, child)

    def _observed(self, module: QModuleMixin, kind: str, sample: Tensor, scale: Tensor) -> Tensor:
        assert module.activation_qtype is not None
        found = module.observe(kind, self.observer, sample.detach(), scale)
        if found.device.type != "meta" and not is_fake(found) and not bool(torch.isfinite(found)):
            name = getattr(module, "name", type(module).__name__)
            raise ValueError(f"[Calibration] {kind} of {name}: got NaN or infinite values, expected finite ones")
        return found

    @staticmethod
    def _print(name: str, module: QModuleMixin) -> None:
        kind = type(module).__name__
        if module.activation_qtype is None:
            print(f"{name}({kind}): activations are not quantized")
        else:
            print(f"{name}({kind}): activations are {module.activation_qtype} with scale {module.output_scale}")

    @staticmethod
    def tag_outputs(module: torch.nn.Module, input: Any, output: Any) -> None:
        """Forward hook: remember which module an output came from."""
        output.src_module = module
