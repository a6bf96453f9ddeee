"""Observers: how calibration turns the samples that it sees into the scale of an input or an output."""

from abc import ABC, abstractmethod
from collections.abc import MutableMapping

import torch
from torch import Tensor

from .tensor import qtype


__all__ = ["AbsmaxObserver", "MseObserver", "Observer", "PercentileObserver", "as_observer"]


class Observer(ABC):
    """Chooses scales of activations. One object serves all modules: what it learns of each lies in its `state`.

    A subclass of yours implements `__call__` and goes to `Calibration(observer=...)`, as a class or an object.
    """

    @abstractmethod
    def __call__(self, sample: Tensor, qtype: qtype, scale: Tensor, state: MutableMapping[str, Tensor]) -> Tensor:
        """The scale after one more sample.

        Args:
            sample: float activations of any shape, without gradient.
            qtype: 8-bit qtype of the activations.
            scale: the scale so far, a scalar; one if there was no sample yet.
            state: tensors that are kept for this input or output, none at first. They are part of the state dict of
                the module, under `input_observer` and `output_observer`.

        Returns:
            A scalar in the dtype of `sample`.
        """


class AbsmaxObserver(Observer):
    """The largest magnitude of each sample takes the full range of codes; scales are averaged over the samples.

    Args:
        momentum: weight of the previous scale when a new sample comes, from 0 (the last sample decides) to 1.
    """

    def __init__(self, momentum: float = 0.9) -> None:
        if not 0 <= momentum <= 1:
            raise ValueError(f"[AbsmaxObserver] momentum: got {momentum}, expected a number from 0 to 1")
        self.momentum = momentum

    def __call__(self, sample: Tensor, qtype: qtype, scale: Tensor, state: MutableMapping[str, Tensor]) -> Tensor:
        new_scale = torch.ops.quanto.absmax_scale(sample, qtype.name, None)
        averaged = self.momentum * scale + new_scale * (1.0 - self.momentum)
        # One is the value of a module that saw no sample. No `if`: a scale on the meta device has no value to ask for.
        return torch.where(scale == 1, new_scale, averaged)


class _HistogramObserver(Observer):
    """Reads the scale from a histogram of the magnitudes of all samples.

    Its state: `counts`, of the bins from 0 to a power of two, and the `exponent` of that. The range widens with the
    samples, so that the result does not depend on their order.
    """

    def __init__(self, bins: int = 2048) -> None:
        if bins < 1 or bins & (bins - 1) != 0:
            raise ValueError(f"[{type(self).__name__}] bins: got {bins}, expected a power of two")
        self.bins = bins

    def __call__(self, sample: Tensor, qtype: qtype, scale: Tensor, state: MutableMapping[str, Tensor]) -> Tensor:
        counts, exponent = state.get("counts"), state.get("exponent")
        if counts is None or exponent is None:
            counts = torch.zeros(self.bins, dtype=torch.int64, device=sample.device)
            exponent = torch.zeros((), dtype=torch.int64, device=sample.device)
        counts, exponent = torch.ops.quanto.observe_magnitudes(sample, counts, exponent)
        state["counts"], state["exponent"] = counts, exponent
        return _kept_positive(self.scale(counts, exponent, qtype), sample.dtype)

    @abstractmethod
    def scale(self, counts: Tensor, exponent: Tensor, qtype: qtype) -> Tensor:
        """The scale that the histogram suggests, a float32 scalar."""


class PercentileObserver(_HistogramObserver):
    """Clamps the largest magnitudes: a percentile of them all takes the full range of codes.

    Args:
        percentile: of the magnitudes, in (0, 100].
        bins: of the histogram, a power of two.
    """

    def __init__(self, percentile: float = 99.99, bins: int = 2048) -> None:
        super().__init__(bins)
        if not 0 < percentile <= 100:
            raise ValueError(f"[PercentileObserver] percentile: got {percentile}, expected a number in (0, 100]")
        self.percentile = percentile

    def scale(self, counts: Tensor, exponent: Tensor, qtype: qtype) -> Tensor:
        return torch.ops.quanto.percentile_scale(counts, exponent, qtype.name, float(self.percentile))


class MseObserver(_HistogramObserver):
    """The scale whose codes are nearest to all samples, in the mean of the squared error.

    Args:
        bins: of the histogram, a power of two.
    """

    def scale(self, counts: Tensor, exponent: Tensor, qtype: qtype) -> Tensor:
        return torch.ops.quanto.mse_scale(counts, exponent, qtype.name)


def _kept_positive(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A scale in another dtype, in which one that is not zero does not round to it."""
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    return torch.where(scale > 0, scale.to(dtype).clamp(min=smallest), scale.to(dtype))


_OBSERVERS: dict[str, type[Observer]] = {
    "absmax": AbsmaxObserver,
    "mse": MseObserver,
    "percentile": PercentileObserver,
}


def as_observer(value: "str | Observer | type[Observer]", momentum: float) -> Observer:
    """The observer that `value` names, is, or is the class of. `momentum` goes to `AbsmaxObserver`.

    Raises:
        ValueError: no such name. TypeError: not an observer.
    """
    if isinstance(value, str):
        if value not in _OBSERVERS:
            raise ValueError(f"[Calibration] observer: got {value!r}, expected one of {', '.join(_OBSERVERS)}")
        value = _OBSERVERS[value]
    if value is AbsmaxObserver:
        return AbsmaxObserver(momentum)
    observer = value() if isinstance(value, type) else value
    if not isinstance(observer, Observer):
        raise TypeError(f"[Calibration] observer: got {observer!r}, expected a name, an Observer or its class")
    return observer
