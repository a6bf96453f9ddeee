"""Checkpoint folders: safetensors files, maybe an index of them, a quantization map and a config.

What comes in is checked before it is used: shard names are names of files in the folder, each tensor is where the
index says, pickles are refused. What goes out is complete or not there: it is written beside the folder first.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import Module

from ..nn.observed import observer_tensors
from ..quantization import quantization_map


QUANTIZATION_MAP_NAME = "quanto_qmap.json"
CONFIG_NAME = "config.json"
# Where a config of transformers has the quantization map.
CONFIG_KEY = "quanto"
_MODEL_CARD_NAME = "README.md"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"[from_pretrained] {path}: got no JSON ({error}), expected an object") from error
    if not isinstance(value, dict):
        raise ValueError(f"[from_pretrained] {path}: got a {type(value).__name__}, expected an object")
    return value


def read_quantization_map(folder: Path) -> dict[str, dict[str, str]]:
    """The quantization map of a checkpoint: a file, or in the config if a class of transformers saved it.

    Raises:
        ValueError: there is none, or it is not a map of maps of strings.
    """
    path = folder / QUANTIZATION_MAP_NAME
    found = read_json(path) if path.is_file() else _map_in_config(folder / CONFIG_NAME)
    if not found:
        raise ValueError(f"[from_pretrained] No quantization map found in {folder}: is this a quantized model ?")
    for name, entry in found.items():
        if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
            raise ValueError(f"[from_pretrained] {path}: got {entry!r} for {name!r}, expected qtype names")
    return found


def described(model: Module) -> dict[str, Any]:
    """What the config of a saved model says of its quantization, under `CONFIG_KEY`."""
    observers = observer_tensors(model)
    return {"quantization_map": quantization_map(model), **({"observers": observers} if observers else {})}


def _map_in_config(path: Path) -> dict[str, Any]:
    described = read_json(path).get(CONFIG_KEY) if path.is_file() else None
    found = described.get("quantization_map") if isinstance(described, dict) else None
    return found if isinstance(found, dict) else {}


def read_tensors(folder: Path, weights_name: str, index_name: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint, read with ordinary reads: a file that is cut while it is read is an error.

    Args:
        folder: of the checkpoint.
        weights_name: the file that holds all tensors if there is no index.
        index_name: the file whose `weight_map` names the file of each tensor.

    Raises:
        ValueError: there are no safetensors files, a name leads out of the folder, or index and files differ.
    """
    if not (folder / index_name).is_file():
        if not (folder / weights_name).is_file():
            raise ValueError(f"[from_pretrained] No safetensor weights found in {folder}.{_pickles(folder)}")
        return _read_file(file_in_folder(folder, weights_name))
    weight_map = _weight_map(folder / index_name)
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        found = _read_file(file_in_folder(folder, shard))
        indexed = {name for name, file in weight_map.items() if file == shard}
        for what, names in (("lacks", indexed - found.keys()), ("has, unlike the index,", found.keys() - indexed)):
            if names:
                raise ValueError(f"[from_pretrained] {folder / shard}: {what} {', '.join(sorted(names))}")
        tensors.update(found)
    return tensors


def _pickles(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLE_SUFFIXES)
    return f" Pickles are not loaded: {', '.join(names)}." if names else ""


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"[from_pretrained] {path}: weight_map: got {weight_map!s:.80}, expected names of files")
    return weight_map


def file_in_folder(folder: Path, name: str) -> Path:
    """The path of a file in a folder; a link may lead only to the blobs of a download cache that the folder is in."""
    if name in ("", ".", "..") or any(character in name for character in ("/", "\\", "\0")):
        raise ValueError(f"[from_pretrained] shard: got {name!r}, expected the name of a file in {folder}")
    if not name.endswith(".safetensors"):
        raise ValueError(f"[from_pretrained] shard: got {name!r}, expected a .safetensors file")
    path, allowed = folder / name, [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        allowed.append(folder.resolve().parent.parent / "blobs")
    if path.resolve().parent not in allowed:
        raise ValueError(f"[from_pretrained] {path}: got a link to {path.resolve()}, expected a file in the folder")
    if not path.is_file():
        raise ValueError(f"[from_pretrained] {path}: got no file, expected one")
    return path


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt", backend="pread") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"[from_pretrained] {path}: {error}") from error


def write_quantization_map(folder: Path, quantization_map: Mapping[str, Any]) -> None:
    """Write the quantization map of a checkpoint."""
    (folder / QUANTIZATION_MAP_NAME).write_text(json.dumps(quantization_map, indent=4), encoding="utf-8")


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write a checkpoint into, that takes the place of `folder` when the block ends without an error.

    Killed at any moment, `folder` has no checkpoint, its old one or the whole new one. Files in it that are no part of
    a checkpoint stay; so does a model card.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"[save_pretrained] save_directory: got the file {folder}, expected a folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    written = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
    written.mkdir()
    try:
        yield written
        _make_durable(written)
        if folder.exists():
            _replace_files(written, folder)
            written.rmdir()
        else:
            written.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(written, ignore_errors=True)
        raise


def save_replacing(
    model: Any,
    save: Callable[..., None],
    save_directory: str | os.PathLike[str],
    *args: Any,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    commit_message: str | None = None,
    **kwargs: Any,
) -> None:
    """What transformers' `save_pretrained` does, into a folder that takes the place of `save_directory` at the end.

    transformers writes the config first and then one file after the other: interrupted, the folder would hold parts of
    two checkpoints and load.

    Args:
        model: the model to push.
        save: called with the folder to write into, True (the main process does this) and the other arguments.
        save_directory, push_to_hub, repo_id, commit_message: as of `save_pretrained`.
    """
    folder = Path(save_directory)
    with replacing(folder) as written:
        save(written, True, *args, **kwargs)
    if push_to_hub:
        token = {"token": kwargs["token"]} if "token" in kwargs else {}
        model.push_to_hub(repo_id or folder.name, commit_message=commit_message, **token)


def _make_durable(folder: Path) -> None:
    """Give all files the permissions that the umask allows, and bring them to the disk."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.iterdir():
        path.chmod(mode)
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_index(name: str) -> bool:
    return name.endswith(".safetensors.index.json")


def _replace_files(source: Path, target: Path) -> None:
    """Move all files over. Without a config there is no checkpoint, so it goes first and comes last."""
    old = sorted(path.name for path in target.iterdir())
    for name in (CONFIG_NAME, QUANTIZATION_MAP_NAME, *filter(_is_index, old)):
        (target / name).unlink(missing_ok=True)
    _sync(target)
    for name in old:
        if name.endswith(".safetensors") and not (source / name).exists():
            (target / name).unlink()
    for path in sorted(source.iterdir(), key=lambda path: _order(path.name)):
        if path.name == _MODEL_CARD_NAME and (target / path.name).exists():
            path.unlink()
        else:
            path.rename(target / path.name)
    _sync(target)


def _order(name: str) -> tuple[bool, bool, bool, str]:
    return name == CONFIG_NAME, name == QUANTIZATION_MAP_NAME, _is_index(name), name
