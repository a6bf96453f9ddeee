"""What the quantized models of all libraries share."""

import inspect
import os
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from huggingface_hub import ModelHubMixin, snapshot_download

from .. import is_installed
from ..quantization import Patterns, freeze, quantization_map, quantize
from ..tensor import Optimizer, qtype
from .checkpoint import QUANTIZATION_MAP_NAME, read_quantization_map, replacing, write_quantization_map


Self = TypeVar("Self", bound="QuantizedModel")


def is_transformers_available() -> bool:
    """Whether transformers can be imported."""
    return is_installed("transformers")


def is_diffusers_available() -> bool:
    """Whether diffusers can be imported."""
    return is_installed("diffusers")


class QuantizedModel(ModelHubMixin):  # type: ignore[misc]
    """A quantized model in the place of the model that it wraps: attributes and calls are forwarded.

    Subclasses set:
        library: name of the library that the model comes from.
        model_class: the base class of its models.
    """

    BASE_NAME = "quanto"
    library: ClassVar[str]
    model_class: ClassVar[Any]

    _wrapped: Any

    def __init__(self, model: Any):
        if not isinstance(model, self.model_class) or not quantization_map(model):
            raise ValueError(f"The source model must be a quantized {self.library} model.")
        self._wrapped = model

    def __getattr__(self, name: str) -> Any:
        """Attributes that this class does not have are those of the wrapped model."""
        wrapped = self.__dict__.get("_wrapped")
        if wrapped is None:  # while a copy is made
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return getattr(wrapped, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrapped.forward(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrapped(*args, **kwargs)

    def __repr__(self) -> str:
        return repr(self._wrapped)

    @staticmethod
    def _qmap_name() -> str:
        return QUANTIZATION_MAP_NAME

    @classmethod
    def quantize(
        cls: type[Self],
        model: Any,
        weights: str | qtype | None = None,
        activations: str | qtype | None = None,
        optimizer: Optimizer | None = None,
        include: Patterns = None,
        exclude: Patterns = None,
    ) -> Self:
        """Quantize and freeze a model in place, and wrap it. To calibrate or train it, call the functions instead.

        Args:
            model: a model of the library.
            weights, activations, optimizer, include, exclude: as of `optimum.quanto.quantize`.

        Raises:
            ValueError: the model is not of the library, or as of `quantize` and `freeze`.
        """
        if not isinstance(model, cls.model_class):
            raise ValueError(f"The source model must be a {cls.library} model.")
        quantize(
            model, weights=weights, activations=activations, optimizer=optimizer, include=include, exclude=exclude
        )
        freeze(model)
        return cls(model)

    @classmethod
    def from_pretrained(
        cls: type[Self],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        subfolder: str = "",
        **kwargs: Any,
    ) -> Self:
        """Load a quantized model.

        Args:
            pretrained_model_name_or_path: a folder that `save_pretrained` wrote, or the id of a repository on the hub.
            subfolder: of the folder or repository.
            kwargs: those of `huggingface_hub.snapshot_download`, for a repository; the others go to the config.

        Raises:
            ValueError: the class cannot load, or the folder is no whole checkpoint; the message names what is wrong.
            RuntimeError: tensors are missing, unexpected or misshapen; the message names them.
        """
        cls._check_can_load()
        hub_names = inspect.signature(snapshot_download).parameters
        hub = {name: kwargs.pop(name) for name in list(kwargs) if name in hub_names}
        if os.path.isdir(pretrained_model_name_or_path):
            folder = Path(pretrained_model_name_or_path)
        else:
            patterns = {"allow_patterns": f"{subfolder}/*"} if subfolder else {}
            folder = Path(snapshot_download(str(pretrained_model_name_or_path), **{**patterns, **hub}))
        folder = folder / subfolder
        model = cls._load(folder, read_quantization_map(folder), **kwargs)
        model.eval()
        return cls(model)

    @classmethod
    def _check_can_load(cls) -> None:
        """Raise ValueError for a class that does not know which models to load, or lacks a library for it."""
        if not is_installed("accelerate"):
            raise ValueError(f"Reloading a quantized {cls.library} model requires the accelerate library.")

    @classmethod
    def _load(cls, folder: Path, qmap: dict[str, dict[str, str]], **kwargs: Any) -> torch.nn.Module:
        """The model in a folder. `kwargs` go to its config."""
        raise NotImplementedError

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        max_shard_size: int | str = "50GB",
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Save the model, its config and its quantization map.

        All files are written beside the folder and moved into it at the end, the config last: interrupted at any
        moment, the folder has its old checkpoint, none, or the whole new one.

        Args:
            save_directory: the folder; made if it is not there.
            max_shard_size: size of a file, in bytes or as `"5GB"`, at which another one is begun.
            config: accepted for compatibility; the config is that of the model.
            push_to_hub: upload the model afterwards, to `repo_id` or the folder's name.
            model_card_kwargs, push_to_hub_kwargs: as of `huggingface_hub.ModelHubMixin`.

        Returns:
            The address of the commit, if the model was uploaded.
        """
        folder = Path(save_directory)
        card_kwargs = model_card_kwargs or {}
        with replacing(folder) as written:
            self._save_pretrained(written, max_shard_size=max_shard_size)
            self.generate_model_card(**card_kwargs).save(written / "README.md")
        if not push_to_hub:
            return None
        return self.push_to_hub(
            repo_id=folder.name if repo_id is None else repo_id, model_card_kwargs=card_kwargs, **push_to_hub_kwargs
        )

    def _save_pretrained(self, save_directory: Path, max_shard_size: int | str = "50GB") -> None:
        """Write all files of the checkpoint into an empty folder."""
        self._save_wrapped(save_directory, max_shard_size)
        write_quantization_map(save_directory, quantization_map(self._wrapped))

    def _save_wrapped(self, save_directory: Path, max_shard_size: int | str) -> None:
        self._wrapped.save_pretrained(save_directory, max_shard_size=max_shard_size)
