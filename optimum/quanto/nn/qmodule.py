"""The base of quantized modules, and the table of which module they replace."""

from abc import ABC
from collections.abc import Callable, MutableMapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from ..ops.fakes import grouped_shape, packed_rows, scale_shape
from ..tensor import (
    AbsmaxOptimizer,
    ActivationQBytesTensor,
    MaxOptimizer,
    Optimizer,
    QTensor,
    SymmetricOptimizer,
    WeightQBitsTensor,
    WeightQBytesTensor,
    fake_quantize_activation,
    fake_quantize_weight,
    qtype,
    quantize_activation,
    quantize_weight,
)
from ..tensor.qtype import as_qtype
from .observed import ObserverState, observer_name, restore_observer_states


__all__ = ["QModuleMixin", "quantize_module", "register_qmodule"]

_QMODULES: dict[type[torch.nn.Module], "type[QModuleMixin]"] = {}

QModuleClass = TypeVar("QModuleClass", bound="type[QModuleMixin]")

_LARGEST_GROUP = 128
_GROUP_STEP = 32


def register_qmodule(module_cls: type[torch.nn.Module]) -> Callable[[QModuleClass], QModuleClass]:
    """Class decorator: `quantize` replaces instances of `module_cls` by the decorated class.

    The class derives from `QModuleMixin` and then from a `torch.nn.Module`, and has

    - `qcreate(cls, module, weights, activations, optimizer, device)`, a class method that returns an instance for
      `module` without copying its weights, or None if there is nothing to quantize in it,
    - `forward`, which uses `self.forward_weight`.
    """

    def register(cls: QModuleClass) -> QModuleClass:
        _QMODULES[module_cls] = cls
        return cls

    return register


def quantize_module(
    module: torch.nn.Module,
    weights: qtype | str | None = None,
    activations: qtype | str | None = None,
    optimizer: Optimizer | None = None,
) -> "QModuleMixin | None":
    """The quantized counterpart of a module, sharing its parameters; None if there is none.

    Raises:
        ValueError: an unknown qtype, or activations of fewer than 8 bits.
    """
    qmodule_cls = _qmodule_class(module)
    return None if qmodule_cls is None else qmodule_cls.from_module(module, weights, activations, optimizer)


def _qmodule_class(module: torch.nn.Module) -> "type[QModuleMixin] | None":
    """The class registered for the module's own class, or for the nearest of its bases."""
    return next((_QMODULES[cls] for cls in type(module).__mro__ if cls in _QMODULES), None)


def is_quantizable(module: torch.nn.Module) -> bool:
    """Whether a quantized class is registered for the module."""
    return _qmodule_class(module) is not None


def default_group_size(weights: qtype, weight_shape: torch.Size) -> int | None:
    """The group size of a weight: 128, or the largest smaller multiple of 32 that divides a channel; else None."""
    elements = weight_shape.numel() // max(1, weight_shape[0])
    if weights.bits == 8 or elements <= _LARGEST_GROUP:
        return None
    for group_size in range(_LARGEST_GROUP, 0, -_GROUP_STEP):
        if elements % group_size == 0:
            return group_size
    return None


class QModuleMixin(ABC):
    """What quantized modules share. Comes before the `torch.nn.Module` class among the bases.

    Args:
        weights: qtype of the weight, or None to leave it float.
        activations: 8-bit qtype of the outputs (and inputs), or None.
        optimizer: scale search for the weight; by default `AbsmaxOptimizer` for 8-bit qtypes, else `MaxOptimizer`.
        quantize_input: quantize inputs that are not quantized yet, if there are `activations`.

    Attributes:
        weight_qtype, activation_qtype, optimizer: as given.
        weight_group_size: elements of the weight that share a scale, or None for one scale per output channel.
        input_scale, output_scale: scalar buffers, set by calibration.
        dynamic_qtype: qtype that each forward quantizes its input to, a scale for each token; or None.
    """

    weight: Any
    bias: Any
    # Set by `quantize_dynamically`, where a class supports it.
    supports_dynamic: ClassVar[bool] = False
    dynamic_qtype: qtype | None = None
    input_scale: Tensor
    output_scale: Tensor

    def __init__(
        self,
        *args: Any,
        weights: qtype | str | None = None,
        activations: qtype | str | None = None,
        optimizer: Optimizer | None = None,
        quantize_input: bool = False,
        device: torch.device | None = None,
        **kwargs: Any,
    ) -> None:
        bases = type(self).__mro__
        if torch.nn.Module not in bases or bases.index(QModuleMixin) > bases.index(torch.nn.Module):
            raise TypeError(
                f"[{type(self).__name__}] bases: got {[base.__name__ for base in bases[1:]]}, expected QModuleMixin "
                "before a torch.nn.Module class"
            )
        super().__init__(*args, device=device, **kwargs)  # type: ignore[call-arg]
        self.weight_qtype = as_qtype(weights, "weights")
        self.activation_qtype = as_qtype(activations, "activations")
        if self.activation_qtype is not None and self.activation_qtype.bits != 8:
            raise ValueError(f"[quanto] activations: got {self.activation_qtype.name}, expected an 8-bit qtype")
        self.weight_group_size = (
            None if self.weight_qtype is None else default_group_size(self.weight_qtype, self.weight.shape)
        )
        self.optimizer = optimizer
        if optimizer is None and self.weight_qtype is not None:
            self.optimizer = AbsmaxOptimizer() if self.weight_qtype.bits == 8 else MaxOptimizer()
        self._quantize_hooks: dict[str, Any] = {}
        if self.activation_qtype is not None:
            if quantize_input:
                self.enable_input_quantization()
            self._quantize_hooks["output"] = self.register_forward_hook(self.quantize_output)
        scale_dtype = torch.float32 if self.weight is None else self.weight.dtype
        for name in ("input_scale", "output_scale"):
            self.register_buffer(name, torch.ones((), dtype=scale_dtype, device=device))

    # torch.nn.Module provides these; mypy sees the mixin alone.
    register_forward_pre_hook: Callable[..., Any]
    register_forward_hook: Callable[..., Any]
    register_buffer: Callable[..., None]

    @classmethod
    def from_module(
        cls,
        module: torch.nn.Module,
        weights: qtype | str | None = None,
        activations: qtype | str | None = None,
        optimizer: Optimizer | None = None,
    ) -> "QModuleMixin | None":
        """A quantized module that shares the parameters and buffers of `module`."""
        qmodule = cls.qcreate(
            module, as_qtype(weights, "weights"), as_qtype(activations, "activations"), optimizer, torch.device("meta")
        )
        if qmodule is None:
            return None
        assert isinstance(qmodule, torch.nn.Module)
        _share_tensors(module, qmodule)
        qmodule.train(module.training)
        return qmodule

    @classmethod
    def qcreate(
        cls,
        module: torch.nn.Module,
        weights: qtype | None,
        activations: qtype | None = None,
        optimizer: Optimizer | None = None,
        device: torch.device | None = None,
    ) -> "QModuleMixin | None":
        """An instance for `module` on `device`, whose parameters are about to be replaced by those of `module`."""
        raise NotImplementedError(f"[{cls.__name__}] qcreate: expected an implementation")

    @property
    def frozen(self) -> bool:
        """Whether the weight is stored quantized."""
        return isinstance(self.weight, QTensor)

    @property
    def qweight(self) -> Tensor | None:
        """The quantized weight: the stored one, or one made from the float weight for this call, through which
        gradients reach it. None if the weight stays float."""
        weight = self.weight
        if self.weight_qtype is None or isinstance(weight, QTensor):
            return weight if isinstance(weight, QTensor) else None
        shift = None
        if isinstance(self.optimizer, SymmetricOptimizer):
            scale = self.optimizer(weight, qtype=self.weight_qtype, axis=0)
        else:
            assert self.optimizer is not None
            scale, shift = self.optimizer(weight, qtype=self.weight_qtype, axis=0, group_size=self.weight_group_size)
        return quantize_weight(
            weight,
            qtype=self.weight_qtype,
            axis=0,
            scale=scale.detach(),
            shift=None if shift is None else shift.detach(),
            group_size=self.weight_group_size,
            activation_qtype=self.activation_qtype,
        )

    @property
    def trains_weight(self) -> bool:
        """Whether a forward now has to let gradients reach the float weight."""
        quantized = self.weight_qtype is not None and not self.frozen
        return quantized and torch.is_grad_enabled() and bool(self.weight.requires_grad)

    @property
    def forward_weight(self) -> Tensor:
        """The weight that a forward uses: `qweight`, or the float weight if it stays float.

        While the weight is trained, floats with the values of `qweight`: with gradients to compute as well, torch's
        matrix products of floats cost less than decoding the codes again in each of them.
        """
        if self.trains_weight:
            assert self.weight_qtype is not None
            assert self.optimizer is not None
            return fake_quantize_weight(self.weight, self.weight_qtype, self.optimizer, 0, self.weight_group_size)
        qweight = self.qweight
        return self.weight if qweight is None else qweight

    @property
    def has_finite_weight(self) -> bool:
        """Whether the weight has no NaN or infinite element; a weight without values (meta device) passes."""
        weight = self.weight.detach()
        return weight.device.type == "meta" or bool(torch.ops.quanto.all_finite(weight))

    def freeze(self, allow_non_finite: bool = False) -> None:
        """Replace the float weight by its quantized form.

        Raises:
            ValueError: the weight has NaN or infinite elements, and `allow_non_finite` is False.
        """
        if self.frozen or self.weight_qtype is None:
            return
        if not allow_non_finite and not self.has_finite_weight:
            name = getattr(self, "name", type(self).__name__)
            raise ValueError(
                f"[freeze] weight of {name}: got NaN or infinite elements, expected finite ones; "
                "pass allow_non_finite=True to quantize them anyway"
            )
        with torch.no_grad():
            weight = self.qweight
        if weight is not None:
            self.weight = Parameter(weight, requires_grad=False)

    def enable_input_quantization(self) -> None:
        """Quantize inputs that are not quantized yet from now on, if there is a qtype for activations."""
        if self.activation_qtype is not None and "input" not in self._quantize_hooks:
            self._quantize_hooks["input"] = self.register_forward_pre_hook(self.quantize_input)

    @property
    def quantizes_output(self) -> bool:
        """Whether the outputs are quantized."""
        return "output" in self._quantize_hooks

    def quantize_dynamically(self, activations: qtype) -> bool:
        """Quantize the input of each forward, with a scale for each row of its last dimension; no calibration.

        Returns:
            Whether the class supports it; if not, nothing changes.

        Raises:
            ValueError: activations of fewer than 8 bits.
        """
        if activations.bits != 8:
            raise ValueError(f"[quanto] activations: got {activations.name}, expected an 8-bit qtype")
        if self.supports_dynamic and self.weight_qtype is not None:
            self.dynamic_qtype = activations
        return self.dynamic_qtype is not None

    def observe(self, kind: str, observer: Any, sample: Tensor, scale: Tensor) -> Tensor:
        """The scale that an `Observer` finds after one more sample of the input or the output (`kind`).

        What it keeps of the samples becomes part of the module.
        """
        assert self.activation_qtype is not None
        name = observer_name(kind)
        state = getattr(self, name, None) or ObserverState()
        scale = observer(sample, self.activation_qtype, scale, state)
        if len(state) > 0:
            setattr(self, name, state)
        return scale

    def disable_output_quantization(self) -> None:
        """Return float outputs from now on."""
        hook = self._quantize_hooks.pop("output", None)
        if hook is not None:
            hook.remove()

    def quantize_input(self, module: torch.nn.Module, input: Any) -> Any:
        """Forward pre-hook: quantize the first argument."""
        first = input[0]
        assert self.activation_qtype is not None
        if isinstance(first, ActivationQBytesTensor):
            # The dtype of the codes tells the qtype, and unlike the qtype it is a constant to torch.compile.
            if first._data.dtype != self.activation_qtype.dtype:
                raise ValueError(
                    f"[{type(self).__name__}] input: got {first.qtype.name} activations, expected "
                    f"{self.activation_qtype.name}; models with several activation qtypes are not supported"
                )
            return input
        # The forward of a weight in training takes floats: no codes are made for it.
        fused = self.trains_weight and first.dtype == self.input_scale.dtype
        quantize = fake_quantize_activation if fused else quantize_activation
        return (quantize(first, qtype=self.activation_qtype, scale=self.input_scale), *input[1:])

    def quantize_output(self, module: torch.nn.Module, input: Any, output: Tensor) -> Tensor:
        """Forward hook: quantize the output."""
        assert self.activation_qtype is not None
        return quantize_activation(output, qtype=self.activation_qtype, scale=self.output_scale)

    def _save_to_state_dict(self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        if isinstance(self.weight, QTensor):
            # Inner tensors in the place of the wrapper, so that any file format can store them.
            del destination[prefix + "weight"]
            self.weight.save_to_state_dict(destination, prefix + "weight.", keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: MutableMapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        restore_observer_states(self, state_dict, prefix)
        missing: list[str] = []
        quantized_keys = [key for key in state_dict if key.startswith(prefix + "weight.")]
        takes_quantized = self.weight_qtype is not None and prefix + "weight" not in state_dict
        if takes_quantized and (quantized_keys or self.frozen):
            assign = bool(local_metadata.get("assign_to_params_buffers", False))
            self._load_quantized_weight(state_dict, prefix + "weight.", assign, missing_keys, error_msgs)
        super()._load_from_state_dict(  # type: ignore[misc]
            state_dict, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs
        )
        if takes_quantized and (quantized_keys or self.frozen):
            missing = [key for key in missing if key != prefix + "weight"]
        missing_keys.extend(missing)

    def _load_quantized_weight(
        self,
        state_dict: MutableMapping[str, Any],
        prefix: str,
        assign: bool,
        missing_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        errors = self._misfits(state_dict, prefix)
        if errors:
            error_msgs.extend(errors)
            for key in [key for key in state_dict if key.startswith(prefix)]:
                state_dict.pop(key)
            return
        loaded: Any = self.weight_from_state_dict(state_dict, prefix, missing_keys)
        if loaded is None:
            for key in self._expected_parts(prefix):  # the parts that are there are not unexpected
                state_dict.pop(key, None)
            return
        if not assign:
            device = loaded.device if self.weight.device.type == "meta" else self.weight.device
            loaded = loaded.to(device, copy=True)
        self.weight = Parameter(loaded, requires_grad=False)

    def set_weight_from_state_dict(self, state_dict: MutableMapping[str, Any], prefix: str) -> None:
        """Make the tensors under `prefix` the frozen weight, as they are.

        Raises:
            ValueError: tensors are missing or do not fit; the message names them.
        """
        missing: list[str] = []
        errors = self._misfits(state_dict, prefix)
        weight = None if errors else self.weight_from_state_dict(state_dict, prefix, missing)
        if weight is None:
            raise ValueError(f"[{type(self).__name__}] weight: {'; '.join(errors) or 'missing ' + ', '.join(missing)}")
        self.weight = Parameter(weight, requires_grad=False)

    def weight_from_state_dict(
        self, state_dict: MutableMapping[str, Any], prefix: str, missing_keys: list[str]
    ) -> WeightQBytesTensor | WeightQBitsTensor | None:
        """The weight made of the tensors under `prefix`, which are taken out; None if some are missing."""
        assert self.weight_qtype is not None
        size, stride = self.weight.size(), self.weight.stride()
        if self.weight_qtype.bits == 8:
            return WeightQBytesTensor.load_from_state_dict(
                state_dict, prefix, self.weight_qtype, 0, size, stride, self.activation_qtype, missing_keys
            )
        return WeightQBitsTensor.load_from_state_dict(
            state_dict, prefix, self.weight_qtype, 0, self.weight_group_size, size, stride, missing_keys
        )

    def _expected_parts(self, prefix: str) -> dict[str, tuple[torch.dtype | None, list[tuple[int, ...]]]]:
        """The dtype (None: any float) and the allowed shapes of each tensor that makes up the weight."""
        assert self.weight_qtype is not None
        size = tuple(self.weight.shape)
        if self.weight_qtype.bits == 8:
            return {
                prefix + "_data": (self.weight_qtype.dtype, [size]),
                prefix + "_scale": (None, [scale_shape(size, 0), ()]),
            }
        grouped = grouped_shape(size, 0, self.weight_group_size)
        packed = (packed_rows(grouped[0], self.weight_qtype.bits), *grouped[1:])
        # 0.2.7 gives a single row a scale for each column.
        scales = [scale_shape(grouped, axis) for axis in ((0, -1) if grouped[0] == 1 else (0,))]
        return {
            prefix + "_data._data": (torch.uint8, [packed]),
            prefix + "_scale": (None, scales),
            prefix + "_shift": (None, scales),
        }

    def _misfits(self, state_dict: MutableMapping[str, Any], prefix: str) -> list[str]:
        errors = []
        for key, (dtype, shapes) in self._expected_parts(prefix).items():
            found = state_dict.get(key)
            if found is not None and tuple(found.shape) not in shapes:
                errors.append(f"{key}: got shape {tuple(found.shape)}, expected {' or '.join(map(str, shapes))}")
            elif found is not None and dtype is not None and found.dtype != dtype:
                errors.append(f"{key}: got {found.dtype}, expected {dtype}")
        return errors


def _share_tensors(module: torch.nn.Module, qmodule: torch.nn.Module) -> None:
    """Give the quantized module the parameters and buffers of the float one, and scales of one."""
    device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    for name, _parameter in list(qmodule.named_parameters(recurse=False)):
        source = getattr(module, name, None)
        if source is None:
            raise RuntimeError(f"[{type(qmodule).__name__}] parameter {name}: expected one in {type(module).__name__}")
        setattr(qmodule, name, source)
    for name, buffer in list(qmodule.named_buffers(recurse=False)):
        source = getattr(module, name, None)
        setattr(
            qmodule, name, torch.ones(buffer.shape, dtype=buffer.dtype, device=device) if source is None else source
        )
