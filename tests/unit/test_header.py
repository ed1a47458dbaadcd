"""One gate for bytes: whatever header passes, the safetensors library reads; whatever does not is a sentence."""

from __future__ import annotations

import copy
import json
import random
import struct

import pytest
from safetensors import SafetensorError, safe_open

from cascade_studio.stages.errors import WrongFile
from cascade_studio.stages.files.header import read_header
from cascade_studio.stages.files.identify import identify
from cascade_studio.stages.files.json_text import BadJson, parse_json

GOOD = {
    "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    "b": {"dtype": "F16", "shape": [2, 4], "data_offsets": [16, 32]},
    "__metadata__": {"format": "pt"},
}
ODD = (
    None,
    -1,
    0,
    1,
    2**63,
    2**64,
    1e400,
    1.5,
    "",
    "F4",
    "F32",
    [],
    {},
    [[]],
    True,
    "\ud800",
    [4, -4],
    [0, 8],
    [16, 16],
)


def pack(header: object, data: bytes = bytes(32)) -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def mutate(rng: random.Random) -> bytes:
    """A header with one to three values replaced, or with some of its bytes changed."""
    header = json.loads(json.dumps(GOOD))
    for _ in range(rng.randint(1, 3)):
        key = rng.choice(list(header))
        if rng.random() < 0.2 or not isinstance(header[key], dict):
            header[key] = copy.deepcopy(rng.choice(ODD))
        else:
            field = rng.choice([*header[key], "more"])
            value = header[key].get(field)
            if isinstance(value, list) and value and rng.random() < 0.6:
                value[rng.randrange(len(value))] = copy.deepcopy(rng.choice(ODD))
            else:
                header[key][field] = copy.deepcopy(rng.choice(ODD))
    content = bytearray(pack(header, bytes(rng.choice((32, 32, 32, 16, 40)))))
    if rng.random() < 0.3:
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def test_a_thousand_headers(tmp_path):
    path, rng, accepted = tmp_path / "m.safetensors", random.Random(20261129), 0
    for number in range(1000):
        path.write_bytes(mutate(rng))
        try:
            header = read_header(path)
            identify(header.tensors, header.metadata)
        except WrongFile as error:
            assert str(error).endswith(".") and "Error" not in str(error), error
            continue
        accepted += 1
        try:
            with safe_open(path, "pt") as file:
                assert set(file.keys()) == set(header.tensors)
        except SafetensorError as error:
            pytest.fail(f"{number}: the library refuses what passed: {error}; {path.read_bytes()[8:]!r}")
    assert 5 < accepted < 900


NOTES = (
    "{",
    "[]",
    "null",
    '{"layers": 5}',
    '{"layers": {"a": 5}}',
    "[" * 5000,
    '{"layers": {"a": {"format": []}}}',
    "NaN",
)


@pytest.mark.parametrize("text", NOTES)
@pytest.mark.parametrize("entry", ["_quantization_metadata", "cascade_studio.config"])
def test_junk_in_metadata(tmp_path, text, entry):
    path = tmp_path / "m.safetensors"
    path.write_bytes(pack({**GOOD, "__metadata__": {entry: text}}))
    try:
        header = read_header(path)
        identify(header.tensors, header.metadata)
    except WrongFile as error:
        assert str(error).endswith(".")


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, '{"a": NaN}', '{"a": 1e999}', '{"a": 1, "a": 2}', '["\\ud800"]', "9" * 30]
)
def test_json_that_is_refused(text):
    for given in (text, text.encode()):
        with pytest.raises(BadJson):
            parse_json(given)


def test_json_that_is_read():
    assert parse_json(b"\xef\xbb\xbf" + '{"a": ["ä", 1.5, -3, null]}'.encode()) == {"a": ["ä", 1.5, -3, None]}
