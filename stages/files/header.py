"""Checkpoint files: what they hold, and whether they can be read, told from their header alone.

The safetensors format (https://github.com/huggingface/safetensors): eight bytes with the length N of the header
(little-endian), N bytes of JSON ``{name: {dtype, shape, data_offsets}}``, then the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import WrongFile
from .marker import MARKER, decode_marker

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
if hasattr(torch, "float8_e8m0fnu"):
    DTYPES["F8_E8M0"] = torch.float8_e8m0fnu

HEADER_LIMIT = 100_000_000
"""The largest header that the safetensors library accepts, in bytes."""


class TensorInfo(NamedTuple):
    """Shape and dtype of a tensor; the dtype is None where only shapes are known."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself: its tensors, its metadata and its size in bytes."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    size: int


def describe_tensors(tensors: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """``tensors`` (tensors, :class:`TensorInfo` or bare shapes by name) as ``{name: TensorInfo}``.

    Entries that are none of these (a trainer's counters, say) are left out.
    """
    found = {}
    for name, value in tensors.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, TensorInfo):
            found[name] = value
        elif isinstance(value, Tensor):
            found[name] = TensorInfo(tuple(value.shape), value.dtype)
        elif isinstance(value, (tuple, list)) and all(isinstance(n, int) for n in value):
            found[name] = TensorInfo(tuple(value))
    return found


def read_header(path: str | Path) -> Header:
    """The header of the safetensors file at ``path``, read without its data.

    A marker tensor (see :mod:`stages.files.marker`) is handed out as metadata. Raises :class:`WrongFile` for a file that
    is missing, empty, truncated or not in this format.
    """
    path = Path(path)
    if path.is_dir():
        raise WrongFile(f"{path.name} is a folder, not a checkpoint file. Choose the .safetensors file inside it.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = _parse(path.name, size, file.read(8), file)
            data_start = file.tell()
            tensors, metadata, end = _entries(path.name, header)
            if data_start + end != size:
                raise WrongFile(_size_sentence(path.name, size, data_start + end))
            _add_marker(metadata, header, file, data_start)
    except FileNotFoundError:
        raise WrongFile(
            f"There is no file {path.name} in {path.parent}. Put it there or choose another file."
        ) from None
    except OSError as error:
        raise WrongFile(
            f"{path.name} cannot be read ({error.strerror or error}). Check the disk and the file's permissions."
        ) from error
    return Header(path, tensors, metadata, size)


def load_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """``(state dict, metadata)`` of a safetensors file; its tensors are mapped into memory, not copied.

    Raises :class:`WrongFile` as :func:`read_header` does.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file as load_safetensors

    header = read_header(path)
    try:
        return load_safetensors(str(path), device="cpu"), header.metadata
    except SafetensorError as error:
        raise WrongFile(f"{header.path.name} is damaged ({error}). Download it again.") from error


def _parse(name: str, size: int, start: bytes, file) -> dict[str, Any]:
    if size == 0:
        raise WrongFile(f"{name} is empty (0 bytes). Download it again.")
    length = int.from_bytes(start, "little")
    plausible = len(start) == 8 and 2 <= length <= HEADER_LIMIT
    text = file.read(length) if plausible and 8 + length <= size else b""
    if not text.startswith(b"{"):
        file.seek(0)
        raise WrongFile(_foreign_sentence(name, size, file.read(512), plausible))
    try:
        header = json.loads(text)
    except ValueError:
        raise WrongFile(f"{name} has a damaged header. Download it again.") from None
    if not isinstance(header, dict):
        raise WrongFile(f"{name} has a damaged header. Download it again.")
    return header


def _entries(name: str, header: dict[str, Any]) -> tuple[dict[str, TensorInfo], dict[str, str], int]:
    metadata = header.get("__metadata__") or {}
    tensors, end = {}, 0
    try:
        for key, entry in header.items():
            if key != "__metadata__":
                tensors[key] = TensorInfo(tuple(map(int, entry["shape"])), DTYPES.get(entry["dtype"]))
                end = max(end, int(entry["data_offsets"][1]))
        metadata = {str(k): str(v) for k, v in metadata.items()}
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        raise WrongFile(f"{name} has a damaged header. Download it again.") from None
    if not tensors:
        raise WrongFile(f"{name} holds no tensors. Choose another file.")
    return tensors, metadata, end


def _add_marker(metadata: dict[str, str], header: dict[str, Any], file, data_start: int) -> None:
    for key, entry in header.items():
        if key == MARKER or key.endswith("." + MARKER):
            start, end = entry["data_offsets"]
            file.seek(data_start + start)
            dtype = DTYPES.get(entry["dtype"], torch.uint8)
            text = decode_marker(torch.frombuffer(bytearray(file.read(end - start)), dtype=dtype))
            metadata.setdefault(MARKER, text)


def _size_sentence(name: str, size: int, expected: int) -> str:
    if size < expected:
        return (
            f"{name} is cut off: it has {size:,} bytes where its header announces {expected:,}. "
            "The download or copy did not finish; download it again."
        )
    return f"{name} is damaged: it has {size:,} bytes where its header announces {expected:,}. Download it again."


def _foreign_sentence(name: str, size: int, start: bytes, plausible: bool) -> str:
    """What a file is that does not begin as a safetensors file does."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"version https://git-lfs"):
        return (
            f"{name} is a Git LFS pointer ({size:,} bytes), not the model itself. Fetch the real file, "
            "with 'git lfs pull' or from the model's web page."
        )
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return (
            f"{name} is a web page saved under a model's name. Download the file itself; it may need "
            "a login or an accepted licence on the model's page."
        )
    if start.startswith(b"PK\x03\x04") or start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return (
            f"{name} is a PyTorch pickle (.ckpt, .pt, .bin). Pickles can run code, so they are not opened here. "
            "Convert it to safetensors, or download the safetensors version."
        )
    if start.startswith(b"GGUF"):
        return (
            f"{name} is a GGUF file. This loader needs a safetensors file; download that version, or load this "
            "one with a GGUF loader."
        )
    if text.startswith((b"{", b"[")):
        return f"{name} is a JSON text, not a model. Choose the .safetensors file next to it."
    if plausible and size < 8 + int.from_bytes(start[:8], "little") and start[8:9] == b"{":
        return f"{name} is cut off inside its header ({size:,} bytes). Download it again."
    return (
        f"{name} is not a safetensors file, or it is damaged ({size:,} bytes). Download it again, "
        "or choose another file."
    )
