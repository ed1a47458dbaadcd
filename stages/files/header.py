"""Checkpoint files: what they hold, and whether they can be read, told from their header alone.

The safetensors format (https://github.com/huggingface/safetensors): eight bytes with the length N of the header
(little-endian), N bytes of JSON ``{name: {dtype, shape, data_offsets}}``, then the data without holes.

The marker is the config of a network whose tensors alone do not tell it (head widths, patch sizes, switches): the JSON
text ``{"kind": ..., "config": {...}}``, kept in a file's metadata and, where metadata gets lost (ComfyUI's
CheckpointSave), as the bytes of one small tensor; both are named ``cascade_studio.config``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..errors import UnreadableFile, WrongFile
from ..nets.unet import as_tuples
from .json_text import BadJson, parse_object
from .torch_zip import is_torch_zip, load_torch_zip

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
for _name, _torch_name in (("F8_E8M0", "float8_e8m0fnu"), ("U16", "uint16"), ("U32", "uint32"), ("U64", "uint64")):
    if hasattr(torch, _torch_name):
        DTYPES[_name] = getattr(torch, _torch_name)

HEADER_LIMIT = 100_000_000
"""The largest header that the safetensors library accepts, in bytes."""

MARKER = "cascade_studio.config"
NOTE_LIMIT = 1 << 16
"""The most bytes of an entry that is read as text."""


class TensorInfo(NamedTuple):
    """Shape and dtype of a tensor, and the bytes of an entry that is text; None where only shapes are known."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None
    text: bytes | None = None


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself: its tensors, its metadata and its size in bytes."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    size: int


def is_note(key: str) -> bool:
    """Whether the tensor ``key`` is text: a marker, or how a quantiser stored a layer."""
    return key.endswith((MARKER, ".comfy_quant")) or ".quant_state." in key


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
            read = is_note(name) and not value.is_meta and value.numel() <= NOTE_LIMIT
            found[name] = TensorInfo(tuple(value.shape), value.dtype, tensor_bytes(value) if read else None)
        elif isinstance(value, (tuple, list)) and all(isinstance(n, int) for n in value):
            found[name] = TensorInfo(tuple(value))
    return found


def tensor_bytes(tensor: Tensor) -> bytes:
    """The bytes in a tensor of small whole numbers, also after a cast to a float dtype."""
    codes = tensor.detach().to("cpu", torch.float32).round().clamp(0, 255).to(torch.uint8)
    return bytes(codes.flatten().tolist())


def marker_text(kind: str, config: Any) -> str:
    """The marker's JSON text for a network of ``kind`` (``"stage_c"``, …) with ``config`` (a dataclass or dict)."""
    fields = asdict(config) if is_dataclass(config) and not isinstance(config, type) else dict(config)
    return json.dumps({"kind": kind, "config": fields}, sort_keys=True)


def marker_tensor(kind: str, config: Any) -> Tensor:
    """The marker as a uint8 tensor of UTF-8 bytes, shape (length,)."""
    return torch.frombuffer(bytearray(marker_text(kind, config).encode("utf-8")), dtype=torch.uint8)


def read_marker(
    tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> tuple[str, dict[str, Any]] | None:
    """``(kind, config fields)`` from a state dict's marker tensor or from ``metadata``; None without a marker.

    Lists become tuples. Raises :class:`WrongFile` when the marker cannot be read.
    """
    texts = (info.text for key, info in describe_tensors(tensors).items() if key.endswith(MARKER) and info.text)
    text = next(texts, None) or (metadata or {}).get(MARKER)
    if text is None:
        return None
    try:
        marker = parse_object(text)
        return str(marker["kind"]), {str(k): as_tuples(v) for k, v in marker["config"].items()}
    except (BadJson, KeyError, TypeError, AttributeError):
        raise WrongFile(
            f"The entry '{MARKER}' of this file cannot be read. It was changed after saving; "
            "take the file as it was saved."
        ) from None


def read_header(path: str | Path) -> Header:
    """The header of the safetensors file at ``path``, read without its data but for entries that are text.

    Raises :class:`UnreadableFile` for a file that is missing, empty, truncated or not in this format: whatever passes,
    the safetensors library reads. An archive of PyTorch's that holds tensors alone is described likewise.
    """
    path = Path(path)
    if path.is_dir():
        raise UnreadableFile(f"{path.name} is a folder, not a checkpoint file. Choose the .safetensors file inside it.")
    try:
        size = path.stat().st_size
        if is_torch_zip(path):
            return Header(path, describe_tensors(load_torch_zip(path)), {}, size)
        with path.open("rb") as file:
            header = _parse(path.name, size, file.read(8), file)
            tensors, metadata = _entries(path.name, header, size - file.tell(), file)
    except FileNotFoundError:
        raise UnreadableFile(
            f"There is no file {path.name} in {path.parent}. Put it there or choose another file."
        ) from None
    except OSError as error:
        raise UnreadableFile(
            f"{path.name} cannot be read ({error.strerror or error}). Check the disk and the file's permissions."
        ) from error
    return Header(path, tensors, metadata, size)


def load_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """``(state dict, metadata)`` of a safetensors file, or of an archive of PyTorch's that holds tensors alone; its
    tensors are mapped into memory, not copied.

    Raises :class:`UnreadableFile` as :func:`read_header` does.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file as load_safetensors

    header = read_header(path)
    if is_torch_zip(path):
        return load_torch_zip(path), {}
    try:
        return load_safetensors(str(path), device="cpu"), header.metadata
    except SafetensorError as error:
        raise UnreadableFile(f"{header.path.name} is damaged ({error}). Download it again.") from error


def _blame_header(name: str, what: str) -> UnreadableFile:
    return UnreadableFile(f"{name} has a damaged header: {what}. Download it again.")


def _parse(name: str, size: int, start: bytes, file: BinaryIO) -> dict[str, Any]:
    if size == 0:
        raise UnreadableFile(f"{name} is empty (0 bytes). Download it again.")
    length = int.from_bytes(start, "little")
    plausible = len(start) == 8 and 2 <= length <= HEADER_LIMIT
    text = file.read(length) if plausible and 8 + length <= size else b""
    if not text.startswith(b"{"):
        file.seek(0)
        raise UnreadableFile(_foreign_sentence(name, size, file.read(512), plausible))
    try:
        return parse_object(text)
    except BadJson as error:
        raise _blame_header(name, str(error)) from None


def _entries(
    name: str, header: dict[str, Any], room: int, file: BinaryIO
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors and metadata of a parsed header, whose data takes ``room`` bytes from the file's position on."""
    metadata, data_start, spans, tensors = header.pop("__metadata__", None), file.tell(), [], {}
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _blame_header(name, "its metadata is no list of texts")
    for key, entry in header.items():
        info, span = _entry(name, key, entry)
        tensors[key] = info
        spans.append((*span, key))
    if not tensors:
        raise UnreadableFile(f"{name} holds no tensors. Choose another file.")
    position = 0
    for start, end, key in sorted(spans):
        if start != position:
            raise _blame_header(
                name, f"the data of {key[:80]} begins at byte {start:,} where byte {position:,} is next"
            )
        position = end
    if position != room:
        raise UnreadableFile(_size_sentence(name, data_start + room, data_start + position))
    for start, end, key in spans:
        if is_note(key) and end - start <= NOTE_LIMIT:
            file.seek(data_start + start)
            data, dtype = bytearray(file.read(end - start)), tensors[key].dtype
            raw = torch.frombuffer(data, dtype=dtype) if data and dtype else None
            tensors[key] = tensors[key]._replace(text=b"" if raw is None else tensor_bytes(raw))
    return tensors, metadata


def _entry(name: str, key: str, entry: Any) -> tuple[TensorInfo, tuple[int, int]]:
    """What one entry says, checked as the library checks it."""
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise _blame_header(name, f"the entry {key[:80]} does not say where its data is") from None
    whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in (*shape, start, end))
    if not whole or set(entry) != {"dtype", "shape", "data_offsets"} or end < start:
        raise _blame_header(name, f"the entry {key[:80]} has no shape")
    if dtype not in DTYPES if isinstance(dtype, str) else True:
        raise UnreadableFile(
            f"{name} stores {key[:80]} as {str(dtype)[:20]}, a number format that cannot be read here. Take a bf16, "
            "fp16, fp32 or fp8 file."
        )
    if end - start != prod(shape) * DTYPES[dtype].itemsize:
        raise _blame_header(name, f"the data of {key[:80]} does not fit its shape")
    return TensorInfo(tuple(shape), DTYPES[dtype]), (start, end)


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
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return (
            f"{name} is a PyTorch pickle (.ckpt, .pt, .bin) of the old kind. Pickles can run code, so they are not "
            "opened here. "
            "Convert it to safetensors, or download the safetensors version."
        )
    if start.startswith(b"GGUF"):
        return (
            f"{name} is a GGUF file. Diffusion models and text encoders may be GGUF files; here a safetensors file is "
            "needed: take that version."
        )
    if text.startswith((b"{", b"[")):
        return f"{name} is a JSON text, not a model. Choose the .safetensors file next to it."
    if plausible and size < 8 + int.from_bytes(start[:8], "little") and start[8:9] == b"{":
        return f"{name} is cut off inside its header ({size:,} bytes). Download it again."
    return (
        f"{name} is not a safetensors file, or it is damaged ({size:,} bytes). Download it again, "
        "or choose another file."
    )
