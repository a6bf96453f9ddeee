"""The base of quantized modules, and the table of which module they replace."""

import importlib
import weakref
from abc import ABC
from collections.abc import Callable, MutableMapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.nn import Parameter

from ..ops import kernel_name
from ..ops.fakes import grouped_shape, packed_rows, scale_shape
from ..ops.library import release_recurring_memory
from ..tensor import (
    AbsmaxOptimizer,
    ActivationQBytesTensor,
    AffineOptimizer,
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
from ..tensor.packed import contiguous_strides
from ..tensor.qtype import as_qtype
from ..tensor.wrapper import FLOAT_DTYPES
from .observed import ObserverState, observer_name, restore_observer_states


__all__ = ["QModuleMixin", "quantize_module", "register_qmodule"]

_QMODULE_TABLE: dict[type[torch.nn.Module], "type[QModuleMixin]"] = {}

QModuleClass = TypeVar("QModuleClass", bound="type[QModuleMixin]")

# Quantized classes that are registered by importing a module, once a class of that name is met.
_LAZY_QMODULES = {"transformers.pytorch_utils.Conv1D": ".qtransformers_conv1d"}

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
        _QMODULE_TABLE[module_cls] = cls
        return cls

    return register


def quantize_module(
    module: torch.nn.Module,
    weights: qtype | str | None = None,
    activations: qtype | str | None = None,
    optimizer: Optimizer | None = None,
    embeddings: bool = False,
) -> "QModuleMixin | None":
    """The quantized counterpart of a module, sharing its parameters; None if it stays float (see `coverage`).

    Args:
        module: a layer.
        weights, activations, optimizer: as of `quantize`.
        embeddings: quantize a `torch.nn.Embedding` too.

    Raises:
        ValueError: an unknown qtype, or activations of fewer than 8 bits.
    """
    if reason_left_float(module, embeddings) is not None:
        return None
    return qmodule_of(module, weights, activations, optimizer)


def qmodule_of(
    module: torch.nn.Module,
    weights: qtype | str | None,
    activations: qtype | str | None,
    optimizer: Optimizer | None,
) -> "QModuleMixin | None":
    """`quantize_module` for a module that is known to be quantizable, by a quantization map for instance."""
    qmodule_cls = _qmodule_class(module)
    return None if qmodule_cls is None else qmodule_cls.from_module(module, weights, activations, optimizer)


def _registered(module: torch.nn.Module) -> type[torch.nn.Module] | None:
    """The module's own class, or the nearest of its bases, that a quantized class is registered for."""
    for cls in type(module).__mro__:
        home = _LAZY_QMODULES.get(f"{cls.__module__}.{cls.__qualname__}")
        if home is not None and cls not in _QMODULE_TABLE:
            importlib.import_module(home, __package__)
        if cls in _QMODULE_TABLE:
            return cls
    return None


def replaced_class(qmodule: "QModuleMixin") -> type[torch.nn.Module]:
    """The class that the class of `qmodule` is registered for."""
    bases = [base for base, cls in _QMODULE_TABLE.items() if isinstance(qmodule, cls) and isinstance(qmodule, base)]
    if not bases:
        raise TypeError(f"[quanto] module: got a {type(qmodule).__name__}, expected one of a registered class")
    return max(bases, key=lambda base: len(base.__mro__))


def _qmodule_class(module: torch.nn.Module) -> "type[QModuleMixin] | None":
    base = _registered(module)
    return None if base is None else _QMODULE_TABLE[base]


def reason_left_float(module: torch.nn.Module, embeddings: bool = False) -> str | None:
    """Why `quantize` leaves a module float, or None if it does not."""
    base = _registered(module)
    if base is None:
        return "no quantized counterpart"
    qmodule_cls = _QMODULE_TABLE[base]
    if not qmodule_cls.quantized_by_default and not embeddings:
        return "quantized only with embeddings=True"
    weight = getattr(module, "weight", None)
    if weight is not None and "weight" not in module._parameters:
        return "its weight is computed, by a parametrization or a hook"
    if isinstance(weight, torch.nn.parameter.UninitializedParameter):
        return "its weight is not initialized yet"
    reason = qmodule_cls.reason_against(module)
    if reason is None and not isinstance(module, QModuleMixin) and not _computes_alike(module, base, qmodule_cls):
        return f"its forward is not that of {base.__name__}"
    return reason


def _computes_alike(module: torch.nn.Module, base: type[torch.nn.Module], qmodule_cls: "type[QModuleMixin]") -> bool:
    """Whether a module computes what the class that is registered for it does: the same code, or a probe shows it."""
    if type(module).forward is base.forward:
        return True
    try:
        with torch.no_grad():
            probe = qmodule_cls.probe(module)
            if probe is None or probe[1].device.type == "meta":
                return False
            output = module(probe[0])
    except Exception:  # whatever it wants to be called with, it is another function
        return False
    precision = torch.finfo(output.dtype).eps * probe[0].shape[-1] ** 0.5
    return output.shape == probe[1].shape and torch.allclose(output, probe[1], rtol=0.01, atol=8 * precision)


def weight_kernel(weight: Tensor, name: Callable[[Any], str]) -> str:
    """`name` of a frozen weight where kernels read its layout; else by what other means it is used."""
    if weight.device.type != "cpu":
        return f"composition of torch operators on {weight.device.type}"
    is_read = isinstance(weight, WeightQBitsTensor | WeightQBytesTensor) and weight.axis != -1
    if is_read and isinstance(weight, WeightQBitsTensor) and weight.ndim == 2:
        is_read = weight.takes_codes
    return name(weight) if is_read else "slow: decodes the weight on every forward"


def linear_kernel(weight: Tensor, rows: int, codes: qtype | None = None) -> str:
    """The matmul kernel for `rows` rows of activations, or by what other means the weight is used.

    Activations are `codes` of that qtype, or floats of the weight's dtype.
    """

    def name(w: WeightQBitsTensor | WeightQBytesTensor) -> str:
        group_size = w._group_size or 0 if isinstance(w, WeightQBitsTensor) else 0
        in_features = w.numel() // max(1, w.shape[0])
        activations = w.dtype if codes is None else codes.name
        return kernel_name(w.qtype.name, activations, rows, w.shape[0], in_features, group_size)

    return weight_kernel(weight, name)


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

    Class attributes:
        quantized_by_default: whether `quantize` replaces modules by this class without being asked to.
    """

    quantized_by_default: ClassVar[bool] = True

    weight: Any
    bias: Any
    # Set by `quantize_dynamically`, where a class supports it.
    supports_dynamic: ClassVar[bool] = False
    dynamic_qtype: qtype | None
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
        self.dynamic_qtype = None
        if self.activation_qtype is not None and self.activation_qtype.bits != 8:
            raise ValueError(f"[quanto] activations: got {self.activation_qtype.name}, expected an 8-bit qtype")
        self.weight_group_size = (
            None if self.weight_qtype is None else default_group_size(self.weight_qtype, self.quantized_size)
        )
        if not isinstance(optimizer, Optimizer | None):
            raise TypeError(f"[quanto] optimizer: got {optimizer!r}, expected an Optimizer or None")
        self.optimizer = optimizer
        if optimizer is not None and self.weight_qtype is not None:
            _check_searches(optimizer, self.weight_qtype)
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
        # Where it is trained and goes without being frozen.
        weakref.finalize(qmodule, release_recurring_memory).atexit = False
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

    @classmethod
    def reason_against(cls, module: torch.nn.Module) -> str | None:
        """What keeps a module of the registered class from being quantized, if anything does."""
        return None

    @classmethod
    def probe(cls, module: torch.nn.Module) -> tuple[Tensor, Tensor] | None:
        """An input and what the registered class makes of it with the parameters of `module`, which is of a subclass
        with a forward of its own; None if such modules are to stay float."""
        return None

    def kernel(self, rows: int) -> str:
        """What the frozen forward runs on this machine for `rows` rows, or positions, of inputs."""
        return "its own forward"

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
        return self._quantized(*self.search_scales())

    def search_scales(self) -> tuple[Tensor, Tensor | None]:
        """The scales, and the shifts of 4- and 2-bit qtypes, that the optimizer finds for the float weight."""
        weight, group_size = self.weight_to_quantize(), self.weight_group_size
        assert self.weight_qtype is not None
        assert self.optimizer is not None
        if isinstance(self.optimizer, SymmetricOptimizer):
            return self.optimizer(weight, qtype=self.weight_qtype, axis=0).detach(), None
        scale, shift = self.optimizer(weight, qtype=self.weight_qtype, axis=0, group_size=group_size)
        count = grouped_shape(self.quantized_size, 0, group_size)[0]
        if scale.numel() != count or shift.numel() != count:
            got = f"{tuple(scale.shape)} and {tuple(shift.shape)}"
            raise ValueError(
                f"[{type(self.optimizer).__name__}] scale, shift: got shapes {got}, expected {count} elements"
            )
        return scale.detach(), shift.detach()

    def _quantized(self, scale: Tensor, shift: Tensor | None) -> Tensor:
        assert self.weight_qtype is not None
        return quantize_weight(
            self.weight_to_quantize(),
            qtype=self.weight_qtype,
            axis=0,
            scale=scale,
            shift=shift,
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
        """The weight that a forward uses: `qweight`, or the float weight if it stays float; output channels first.

        While the weight is trained, floats with the values of `qweight`: with gradients to compute as well, torch's
        matrix products of floats cost less than decoding the codes again in each of them.
        """
        if self.trains_weight:
            weight = self.weight_to_quantize()
            assert self.weight_qtype is not None
            assert self.optimizer is not None
            return fake_quantize_weight(weight, self.weight_qtype, self.optimizer, 0, self.weight_group_size)
        qweight = self.qweight
        return self.weight_to_quantize() if qweight is None else qweight

    @property
    def quantized_size(self) -> torch.Size:
        """The shape of the quantized weight, output channels first."""
        return self.weight.size()

    def weight_to_quantize(self) -> Tensor:
        """The float weight in that shape."""
        return self.weight

    def float_weight(self) -> Tensor:
        """The float weight, in the shape of the module that this one replaced; a frozen one is dequantized."""
        return self.weight.dequantize() if self.frozen else self.weight

    @property
    def has_finite_weight(self) -> bool:
        """Whether the weight has no NaN or infinite element; a weight without values (on the meta device, or a
        fake tensor) passes."""
        weight = self.weight.detach()
        return weight.device.type == "meta" or is_fake(weight) or bool(torch.ops.quanto.all_finite(weight))

    def freeze(self, allow_non_finite: bool = False, scales: tuple[Tensor, Tensor | None] | None = None) -> None:
        """Replace the float weight by its quantized form.

        Args:
            allow_non_finite: quantize a weight with NaN or infinite elements too.
            scales: what `search_scales` returned for the weight as it is; None to search now.

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
            weight = self._quantized(*(self.search_scales() if scales is None else scales))
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

        What it keeps of the samples becomes part of the module. A sample without elements, as an expert sees that got
        no token, says nothing.
        """
        assert self.activation_qtype is not None
        if sample.numel() == 0:
            return scale
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
        quantized = quantize_activation(output, qtype=self.activation_qtype, scale=self.output_scale)
        # torch.export cannot trace torch's functions on tensor subclasses made on the way. The next quantized module
        # finds the same codes again: quantization is idempotent.
        return quantized.dequantize() if torch.compiler.is_exporting() else quantized

    def _save_to_state_dict(self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool) -> None:
        own: dict[str, Any] = {}
        super()._save_to_state_dict(own, prefix, keep_vars)  # type: ignore[misc]
        for key, value in own.items():
            if key == prefix + "weight" and isinstance(self.weight, QTensor):
                # Inner tensors in the place of the wrapper, so that any file format can store them.
                self.weight.save_to_state_dict(destination, key + ".", keep_vars)
            else:
                destination[key] = value

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
            if self._holds_alike(loaded):
                with torch.no_grad():
                    self.weight.copy_(loaded)  # in place, so that tied weights stay tied
                return
            device = loaded.device if self.weight.device.type == "meta" else self.weight.device
            loaded = loaded.to(device, copy=True)
        self.weight = Parameter(loaded, requires_grad=False)

    def _holds_alike(self, loaded: QTensor) -> bool:
        """Whether the values of `loaded` fit into the frozen weight as it is."""
        weight = self.weight
        if not isinstance(weight, QTensor) or weight.device.type == "meta" or weight.dtype != loaded.dtype:
            return False
        kinds = [[inner.dtype for inner in t.inner_tensors().values()] for t in (weight, loaded)]
        return weight.metadata() == loaded.metadata() and kinds[0] == kinds[1]

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
        size = self.quantized_size
        stride = self.weight.stride() if size == self.weight.size() else contiguous_strides(size)
        if self.weight_qtype.bits == 8:
            return WeightQBytesTensor.load_from_state_dict(
                state_dict, prefix, self.weight_qtype, 0, size, stride, self.activation_qtype, missing_keys
            )
        return WeightQBitsTensor.load_from_state_dict(
            state_dict, prefix, self.weight_qtype, 0, self.weight_group_size, size, stride, missing_keys
        )

    def _expected_parts(self, prefix: str) -> dict[str, tuple[tuple[torch.dtype, ...], list[tuple[int, ...]]]]:
        """The allowed dtypes and shapes of each tensor that makes up the weight."""
        assert self.weight_qtype is not None
        size = tuple(self.quantized_size)
        if self.weight_qtype.bits == 8:
            return {
                prefix + "_data": ((self.weight_qtype.dtype,), [size]),
                prefix + "_scale": (FLOAT_DTYPES, [scale_shape(size, 0), ()]),
            }
        grouped = grouped_shape(size, 0, self.weight_group_size)
        packed = (packed_rows(grouped[0], self.weight_qtype.bits), *grouped[1:])
        # 0.2.7 gives a single row a scale for each column.
        scales = [scale_shape(grouped, axis) for axis in ((0, -1) if grouped[0] == 1 else (0,))]
        return {
            prefix + "_data._data": ((torch.uint8,), [packed]),
            prefix + "_scale": (FLOAT_DTYPES, scales),
            prefix + "_shift": ((*FLOAT_DTYPES, torch.uint8, torch.int8), scales),  # floats, or zero points
        }

    def _misfits(self, state_dict: MutableMapping[str, Any], prefix: str) -> list[str]:
        errors = []
        for key, (dtypes, shapes) in self._expected_parts(prefix).items():
            found = state_dict.get(key)
            if found is not None and tuple(found.shape) not in shapes:
                errors.append(f"{key}: got shape {tuple(found.shape)}, expected {' or '.join(map(str, shapes))}")
            elif found is not None and found.dtype not in dtypes:
                errors.append(f"{key}: got {found.dtype}, expected {' or '.join(map(str, dtypes))}")
        return errors


def _check_searches(optimizer: Optimizer, weights: qtype) -> None:
    """Refuse an optimizer for scales of another kind; one that is neither symmetric nor affine may find any."""
    expected = AffineOptimizer if weights.bits < 8 else SymmetricOptimizer
    if isinstance(optimizer, AffineOptimizer | SymmetricOptimizer) and not isinstance(optimizer, expected):
        got = type(optimizer).__name__
        raise ValueError(f"[quanto] optimizer: got {got}, expected one of {expected.__name__} for {weights.name}")


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
