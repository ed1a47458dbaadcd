"""Opening model files: each once, to its header and what it holds; its tensors when they are asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UnreadableFile
from .gguf import is_gguf, load_gguf, read_gguf_header
from .header import Header, load_file, read_header
from .identify import FileKind, identify
from .json_text import BadJson, parse_object
from .torch_zip import is_torch_zip

INDEX = ".index.json"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class OpenedModel:
    """A model file whose header was read. paths: the files it lies in, several for a model in shards."""

    path: Path
    paths: tuple[Path, ...]
    header: Header
    kind: FileKind

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def read_tensors(
        self, read: Callable[[Path], dict[str, Tensor]] = lambda path: load_file(path)[0]
    ) -> dict[str, Any]:
        """The tensors of all its files; ``read`` reads a safetensors file."""
        if is_gguf(self.path):
            return load_gguf(self.path)
        if is_torch_zip(self.path):
            return load_file(self.path)[0]
        found: dict[str, Any] = {}
        for path in self.paths:
            found.update(read(path))
        return found


def open_model(path: str | Path) -> OpenedModel:
    """Read the header of the model at ``path`` and recognise it.

    ``path`` is a safetensors file, one of the shards of a model or their index, a GGUF file, or an archive of PyTorch's
    that holds tensors alone. Raises
    :class:`UnreadableFile` for what cannot be opened, :class:`WrongFile` where the file contradicts itself.
    """
    path = Path(path)
    if is_gguf(path):
        header = read_gguf_header(path)
        kind, formats = identify(header.tensors, header.metadata), header.metadata["gguf.formats"]
        if formats:
            kind = replace(kind, quantisation=f"GGUF {formats}", restored=True)
        return OpenedModel(path, (path,), header, kind)
    paths = find_shards(path)
    headers = [read_header(each) for each in paths]
    tensors = {key: info for header in headers for key, info in header.tensors.items()}
    metadata = {key: text for header in headers for key, text in header.metadata.items()}
    header = Header(path, tensors, metadata, sum(header.size for header in headers))
    return OpenedModel(path, paths, header, identify(tensors, metadata))


def find_shards(path: Path) -> tuple[Path, ...]:
    """All files of the model that ``path`` is, or is a shard or the index of; raises where one is missing."""
    if path.name.endswith(INDEX) and path.is_file():
        try:
            names = set(parse_object(path.read_bytes())["weight_map"].values())
        except (BadJson, OSError, KeyError, TypeError, AttributeError):
            raise UnreadableFile(f"{path.name} is no index of a model in shards. Choose a model file.") from None
        paths = tuple(path.with_name(Path(str(name)).name) for name in sorted(map(str, names)))
    elif found := _SHARD.fullmatch(path.name):
        start, _, count = found.groups()
        paths = tuple(
            path.with_name(f"{start}-{number:05}-of-{count}.safetensors") for number in range(1, int(count) + 1)
        )
    else:
        return (path,)
    missing = [each.name for each in paths if not each.is_file()]
    if missing and path.is_file():
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UnreadableFile(
            f"{path.name} is one of {len(paths)} files of a model, and {missing[0]}{more} is not beside it. "
            "Put all of them into this folder."
        )
    return paths


class OpenedModels:
    """The model files of one run: each is opened once, however often it is asked for."""

    def __init__(self) -> None:
        self._opened: dict[str, OpenedModel] = {}

    def open(self, path: str | Path) -> OpenedModel:
        """As :func:`open_model`."""
        key = str(path)
        if key not in self._opened:
            self._opened[key] = open_model(path)
        return self._opened[key]
