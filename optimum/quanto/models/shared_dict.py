"""State dicts that lie in several files."""

from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checkpoint import file_in_folder


__all__ = ["ShardedStateDict"]


class ShardedStateDict(Mapping[str, Tensor]):
    """The tensors of several safetensors files of a folder; each is read when it is asked for.

    Args:
        base_dir: the folder.
        tensor_index: the name of the file that holds each tensor.

    Raises:
        ValueError: reading a tensor, if its file is not in the folder, or not a whole safetensors file with it.
    """

    def __init__(self, base_dir: str | PathLike[str], tensor_index: Mapping[str, str]):
        self._folder = Path(base_dir)
        self._index = dict(tensor_index)
        self._files: dict[str, Any] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, key: str) -> Tensor:
        name = self._index[key]
        try:
            if name not in self._files:
                self._files[name] = safe_open(file_in_folder(self._folder, name), "pt", backend="pread")
            return self._files[name].get_tensor(key)
        except SafetensorError as error:
            raise ValueError(f"[from_pretrained] {self._folder / name}: {error}") from error
