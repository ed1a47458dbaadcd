"""GGUF files: their table of contents, and their weights as plain tensors.

The container: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The block formats are those of ggml's
``quantize_row_*`` functions; every block holds 32 or 256 values of a row.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..errors import UnreadableFile
from .header import Header, TensorInfo

MAGIC = b"GGUF"
_MOST = 1 << 24
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9


class Format(NamedTuple):
    """A number format: values and bytes of a block, and the values (blocks, n) of raw blocks (blocks, bytes)."""

    name: str
    values: int
    size: int
    restore: Callable[[Tensor], Tensor]


class TensorPlace(NamedTuple):
    """Where a tensor lies in the file."""

    shape: tuple[int, ...]
    format: Format
    start: int

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) // self.format.values * self.format.size


def _half(raw: Tensor) -> Tensor:
    return raw.contiguous().view(torch.float16).float()


def _plain(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda raw: raw.contiguous().view(dtype).float()


def _nibbles(raw: Tensor) -> Tensor:
    """(blocks, n) bytes to (blocks, 2 n) numbers: all lower halves, then all upper ones."""
    return torch.cat((raw & 15, raw >> 4), dim=1)


def _fifth_bits(raw: Tensor) -> Tensor:
    """Four bytes of a block to its 32 fifth bits, each worth 16."""
    bits = (raw[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten(1) * 16


def _q4_0(raw: Tensor) -> Tensor:
    return _half(raw[:, :2]) * (_nibbles(raw[:, 2:]).float() - 8)


def _q4_1(raw: Tensor) -> Tensor:
    return _half(raw[:, :2]) * _nibbles(raw[:, 4:]).float() + _half(raw[:, 2:4])


def _q5_0(raw: Tensor) -> Tensor:
    return _half(raw[:, :2]) * ((_nibbles(raw[:, 6:]) + _fifth_bits(raw[:, 2:6])).float() - 16)


def _q5_1(raw: Tensor) -> Tensor:
    return _half(raw[:, :2]) * (_nibbles(raw[:, 8:]) + _fifth_bits(raw[:, 4:8])).float() + _half(raw[:, 2:4])


def _q8_0(raw: Tensor) -> Tensor:
    return _half(raw[:, :2]) * raw[:, 2:].contiguous().view(torch.int8).float()


def _k_scales(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Six-bit scales and minima (blocks, 8) of eight groups, out of twelve bytes."""
    low, middle, high = raw[:, :4], raw[:, 4:8], raw[:, 8:12]
    scales = torch.cat((low & 63, (high & 15) | ((low >> 6) << 4)), dim=1)
    minima = torch.cat((middle & 63, (high >> 4) | ((middle >> 6) << 4)), dim=1)
    return scales.float(), minima.float()


def _scale_groups(raw: Tensor, numbers: Tensor) -> Tensor:
    """Numbers (blocks, 8, 32) times the scales of their groups, less their minima."""
    scales, minima = _k_scales(raw[:, 4:16])
    scales, minima = _half(raw[:, :2]) * scales, _half(raw[:, 2:4]) * minima
    return (numbers.float() * scales[:, :, None] - minima[:, :, None]).flatten(1)


def _pairs(raw: Tensor) -> Tensor:
    """128 bytes of a block to (blocks, 8, 32) half bytes: each 32 bytes hold two groups."""
    groups = raw.reshape(len(raw), 4, 1, 32)
    return torch.cat((groups & 15, groups >> 4), dim=2).reshape(len(raw), 8, 32)


def _q4_k(raw: Tensor) -> Tensor:
    return _scale_groups(raw, _pairs(raw[:, 16:]))


def _q5_k(raw: Tensor) -> Tensor:
    high = (raw[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None]) & 1
    return _scale_groups(raw, _pairs(raw[:, 48:]) + high * 16)


def _q6_k(raw: Tensor) -> Tensor:
    low, high = raw[:, :128].reshape(-1, 2, 1, 64), raw[:, 128:192].reshape(-1, 2, 1, 32)
    low = torch.cat((low & 15, low >> 4), dim=2).reshape(-1, 2, 4, 32)
    high = (high >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]) & 3
    numbers = (low | (high << 4)).float() - 32
    scales = _half(raw[:, 208:210]) * raw[:, 192:208].contiguous().view(torch.int8).float()
    return (numbers.reshape(-1, 16, 16) * scales[:, :, None]).flatten(1)


FORMATS = {
    0: Format("F32", 1, 4, _plain(torch.float32)),
    1: Format("F16", 1, 2, _plain(torch.float16)),
    2: Format("Q4_0", 32, 18, _q4_0),
    3: Format("Q4_1", 32, 20, _q4_1),
    6: Format("Q5_0", 32, 22, _q5_0),
    7: Format("Q5_1", 32, 24, _q5_1),
    8: Format("Q8_0", 32, 34, _q8_0),
    12: Format("Q4_K", 256, 144, _q4_k),
    13: Format("Q5_K", 256, 176, _q5_k),
    14: Format("Q6_K", 256, 210, _q6_k),
    30: Format("BF16", 1, 2, _plain(torch.bfloat16)),
}
"""By ggml's number."""


def is_gguf(path: str | Path) -> bool:
    """Whether the file at ``path`` begins as GGUF files do."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_gguf_header(path: str | Path) -> Header:
    """The header of a GGUF file, its weights told as the bf16 ones that :func:`load_gguf` makes of them."""
    entries, metadata, size = _open(Path(path))
    tensors = {key: TensorInfo(entry.shape, _dtype_of(entry.format)) for key, entry in entries.items()}
    formats = sorted({entry.format.name for entry in entries.values() if entry.format.values > 1})
    return Header(Path(path), tensors, {**metadata, "gguf.formats": "/".join(formats)}, size)


def load_gguf(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a GGUF file: plain ones as they are, the others in bf16."""
    entries, _, _ = _open(Path(path))
    found = {}
    with open(path, "rb") as file:
        for key, entry in entries.items():
            file.seek(entry.start)
            raw = torch.frombuffer(bytearray(file.read(entry.size)), dtype=torch.uint8)
            values = entry.format.restore(raw.reshape(-1, entry.format.size))
            found[key] = values.to(_dtype_of(entry.format)).reshape(entry.shape)
    return found


def _dtype_of(form: Format) -> torch.dtype:
    return {"F32": torch.float32, "F16": torch.float16}.get(form.name, torch.bfloat16)


def _open(path: Path) -> tuple[dict[str, TensorPlace], dict[str, str], int]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return (*_contents(path.name, file, size), size)
    except UnreadableFile:
        raise
    except (struct.error, UnicodeError, ValueError, OverflowError, MemoryError):
        raise UnreadableFile(f"{path.name} is a GGUF file with a damaged header. Download it again.") from None
    except OSError as error:
        raise UnreadableFile(
            f"{path.name} cannot be read ({error.strerror or error}). Check the disk and the file's permissions."
        ) from error


def _contents(name: str, file: BinaryIO, size: int) -> tuple[dict[str, TensorPlace], dict[str, str]]:
    magic, version, count, pairs = struct.unpack("<4sIQQ", file.read(24))
    if magic != MAGIC or version not in (2, 3) or max(count, pairs) > _MOST:
        raise ValueError("no GGUF of a known version")
    values = {_text(file): _value(file, *struct.unpack("<I", file.read(4))) for _ in range(pairs)}
    placed = [(_text(file), _shape(file), *struct.unpack("<IQ", file.read(12))) for _ in range(count)]
    align = values.get("general.alignment", 32)
    if type(align) is not int or not 0 < align <= 1 << 20:
        raise ValueError("no alignment")
    base = -(-file.tell() // align) * align
    entries = {}
    for key, shape, number, offset in placed:
        if number not in FORMATS:
            raise UnreadableFile(
                f"{name} holds weights in ggml's format number {number}, which is not read here. Take a GGUF file in "
                f"{', '.join(form.name for form in FORMATS.values())}, or a bf16 or fp8_scaled safetensors file."
            )
        entry = TensorPlace(_original_shape(values, key, shape), FORMATS[number], base + offset)
        if prod(shape) % entry.format.values or prod(entry.shape) != prod(shape):
            raise ValueError("no whole blocks")
        if entry.start + entry.size > size:
            raise UnreadableFile(f"{name} is cut off: {key[:80]} lies behind its end. Download it again.")
        entries[key] = entry
    if not entries:
        raise UnreadableFile(f"{name} is a GGUF file that holds no tensors. Choose another file.")
    return entries, {key: value for key, value in values.items() if isinstance(value, str)}


def _original_shape(values: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """GGUF tells the fastest dimension first; what converters had to reshape says so in the metadata."""
    kept = values.get(f"comfy.gguf.orig_shape.{key}")
    if isinstance(kept, list) and kept and all(type(n) is int and n > 0 for n in kept):
        return tuple(kept)
    return tuple(reversed(shape))


def _text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _MOST:
        raise ValueError("a text that is too long")
    return file.read(length).decode("utf-8")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _TEXT:
        return _text(file)
    if kind == _ARRAY:
        inner, count = struct.unpack("<IQ", file.read(12))
        if count > _MOST or inner == _ARRAY:
            raise ValueError("a list that is too long")
        return [_value(file, inner) for _ in range(count)]
    if kind not in _SCALARS:
        raise ValueError("a value of an unknown kind")
    form = "<" + _SCALARS[kind]
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def _shape(file: BinaryIO) -> tuple[int, ...]:
    (count,) = struct.unpack("<I", file.read(4))
    if not 0 < count <= 8:
        raise ValueError("no shape")
    return struct.unpack(f"<{count}Q", file.read(8 * count))
