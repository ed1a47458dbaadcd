"""Finding: every root, any sub-folder, known names and unknown ones, hub caches; nothing is changed by looking."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save
from tiny import tiny_weights

from cascade_studio import stages
from cascade_studio.nodes.checkpoints import hashes
from cascade_studio.nodes.checkpoints.catalogue import Entry
from cascade_studio.nodes.checkpoints.find import Finder, hub_folders, layout_fits, models_roots
from cascade_studio.nodes.checkpoints.hashes import HashCache, InOrderHash
from cascade_studio.stages.files.durable import hash_file

HUB = "https://huggingface.co/org/repo/resolve/main/folder/x.safetensors"


@pytest.fixture(scope="module")
def stage_a() -> bytes:
    net = stages.StageA(stages.StageAConfig(bottleneck_blocks=1, c_hidden=16, codebook_size=32))
    return save({key: value.contiguous() for key, value in net.state_dict().items()})


@pytest.fixture
def entry(stage_a) -> Entry:
    return Entry(
        "x",
        "stage_a",
        "x.safetensors",
        "vae",
        HUB,
        subfolder="Stable-Cascade",
        bytes=len(stage_a),
        sha256=hashlib.sha256(stage_a).hexdigest(),
        provenance="copy",
        other_names=("Other.safetensors",),
    )


@pytest.fixture
def roots(tmp_path) -> dict[str, list[Path]]:
    made = models_roots(tmp_path / "models")
    made["vae"].append(tmp_path / "elsewhere")
    return made


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "place, how",
    (
        ("models/vae/x.safetensors", "name"),
        ("models/vae/Stable-Cascade/deep/er/X.SafeTensors", "name"),
        ("elsewhere/other.safetensors", "other name"),
        ("models/checkpoints/x.safetensors", "name"),
        ("models/vae/renamed.safetensors", "contents"),
    ),
)
def test_a_file_is_found_wherever_it_is(tmp_path, roots, entry, stage_a, place, how):
    path = put(tmp_path / place, stage_a)
    found = Finder(roots).find(entry)
    assert (found.path, found.how, found.verified) == (path, how, how == "contents")


def test_the_usual_name_in_the_usual_folder_comes_first(tmp_path, roots, entry, stage_a):
    for place in ("elsewhere/any.safetensors", "models/checkpoints/x.safetensors", "models/vae/other.safetensors"):
        put(tmp_path / place, stage_a)
    best = put(tmp_path / "models/vae/x.safetensors", stage_a)
    assert Finder(roots).find(entry).path == best


def test_looking_changes_nothing(tmp_path, roots, entry, stage_a):
    for place in ("elsewhere/any.safetensors", "models/vae/other.safetensors", "models/vae/x.safetensors.part"):
        put(tmp_path / place, stage_a)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    Finder(roots).find(entry, exact=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    "spoil",
    (
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"\xff" * len(data),
        lambda data: b"version https://git-lfs.github.com/spec/v1\n",
        lambda data: b"",
    ),
)
def test_a_broken_file_does_not_count(tmp_path, roots, entry, stage_a, spoil):
    put(tmp_path / "models/vae/x.safetensors", spoil(stage_a))
    assert Finder(roots).find(entry) is None


def test_another_file_of_the_same_size_does_not_count(tmp_path, roots, entry, stage_a):
    other = stage_a[:-1] + bytes([stage_a[-1] ^ 1])
    put(tmp_path / "models/vae/renamed.safetensors", other)
    assert Finder(roots).find(entry) is None
    put(tmp_path / "models/vae/x.safetensors", other)
    assert Finder(roots).find(entry).how == "name"
    assert Finder(roots).find(entry, exact=True) is None


def test_without_a_hash_only_known_names_count(tmp_path, roots, entry, stage_a):
    entry = replace(entry, sha256=None, bytes=None, about=round(len(stage_a) * 1.005))
    put(tmp_path / "models/vae/renamed.safetensors", stage_a)
    assert Finder(roots).find(entry) is None
    put(tmp_path / "models/vae/other.safetensors", stage_a)
    assert Finder(roots).find(entry, exact=True).how == "other name"
    assert Finder(roots).find(replace(entry, about=len(stage_a) * 2)) is None
    assert Finder(roots).find(replace(entry, dtype="bf16")) is None
    assert Finder(roots).find(replace(entry, role="previewer")) is None


def test_contents_that_nobody_knows_count_by_their_hash(tmp_path, roots, entry):
    """An entry of a user's own may be of a kind that is not recognised; it must not be fetched again and again."""
    data = save({"odd": stages.StageA(stages.StageAConfig(1, 1, 8, 4, 8)).vquantizer.codebook.weight.detach()})
    put(tmp_path / "models/vae/x.safetensors", data)
    entry = replace(entry, bytes=len(data))
    assert Finder(roots).find(entry) is None
    assert Finder(roots).find(replace(entry, sha256=hashlib.sha256(data).hexdigest())).verified


def test_the_hub_cache_is_used(tmp_path, roots, entry, stage_a):
    blob = put(tmp_path / "hub/models--org--repo/blobs/abc", stage_a)
    link = tmp_path / "hub/models--org--repo/snapshots/123/folder/x.safetensors"
    link.parent.mkdir(parents=True)
    try:
        link.symlink_to(blob)
    except OSError:
        link.write_bytes(stage_a)
    found = Finder(roots, hub_folders=[tmp_path / "none", tmp_path / "hub"]).find(entry)
    assert (found.path, found.how) == (link, "hub cache")
    assert Finder(roots, hub_folders=[tmp_path / "hub"]).find(replace(entry, url="https://example.org/x")) is None
    put(tmp_path / "models/vae/x.safetensors", stage_a)
    assert Finder(roots, hub_folders=[tmp_path / "hub"]).find(entry).how == "name"


def test_where_the_hub_cache_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    default = Path(os.path.expanduser("~"), ".cache", "huggingface", "hub")
    assert hub_folders({}) == [default]
    assert hub_folders({"HF_HOME": "/a", "HF_HUB_CACHE": "/b"}) == [Path("/b"), Path("/a/hub")]
    assert hub_folders({"XDG_CACHE_HOME": "/c"}) == [Path("/c/huggingface/hub")]


def test_circles_of_links_end(tmp_path, roots, entry, stage_a):
    path = put(tmp_path / "elsewhere/sub/x.safetensors", stage_a)
    try:
        (tmp_path / "elsewhere/sub/circle").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "elsewhere/broken.safetensors").symlink_to(tmp_path / "nowhere")
    except OSError:
        pytest.skip("this system makes no links")
    assert Finder(roots).find(entry).path == path


def test_an_all_in_one_file_is_told_from_its_parts(tmp_path, entry, stage_a):
    decoder = tiny_weights("stage_b_tiny")
    net = stages.StageA(stages.StageAConfig(bottleneck_blocks=1, c_hidden=16, codebook_size=32)).state_dict()
    whole = {f"model.diffusion_model.{key}": value.contiguous() for key, value in decoder.items()}
    whole.update({f"vae.{key}": value.contiguous() for key, value in net.items()})
    path = put(tmp_path / "whole.safetensors", save(whole))
    assert layout_fits(replace(entry, role="decoder", layout="all-in-one"), path)
    assert not layout_fits(replace(entry, role="prior", layout="all-in-one"), path)
    assert not layout_fits(replace(entry, role="decoder", layout="official"), path)
    part = put(tmp_path / "part.safetensors", save({key: value.contiguous() for key, value in decoder.items()}))
    assert layout_fits(replace(entry, role="decoder", layout="official"), part)
    assert not layout_fits(replace(entry, role="decoder", layout="all-in-one"), part)


def test_an_interrupt_stops_the_search(tmp_path, roots, entry, stage_a):
    put(tmp_path / "models/vae/x.safetensors", stage_a)

    def tick():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Finder(roots, tick=tick).find(entry)


# Hashes


def test_a_file_is_hashed_once(tmp_path, monkeypatch):
    path, place = put(tmp_path / "x", b"abc"), tmp_path / "cache" / "hashes.json"
    counted = []
    monkeypatch.setattr(hashes, "hash_file", lambda *arguments: counted.append(arguments[0]) or hash_file(*arguments))
    digest = hashlib.sha256(b"abc").hexdigest()
    assert [HashCache(place).sha256(path) for _ in range(3)] == [digest] * 3 and len(counted) == 1
    put(path, b"abd")
    os.utime(path, ns=(1, 1))
    assert HashCache(place).sha256(path) == hashlib.sha256(b"abd").hexdigest() and len(counted) == 2
    HashCache(place).remember(path, "0" * 64)
    assert HashCache(place).sha256(path) == "0" * 64
    assert [file.name for file in place.parent.iterdir()] == ["hashes.json"]


@pytest.mark.parametrize("content", (b"", b"{", b"[]", b'{"a": 1}', b"\xff\xfe", b'{"/x": [1, 2, 3]}'))
def test_a_broken_list_of_hashes_only_costs_time(tmp_path, content):
    path, place = put(tmp_path / "x", b"abc"), put(tmp_path / "hashes.json", content)
    assert HashCache(place).sha256(path) == hashlib.sha256(b"abc").hexdigest()
    assert len(json.loads(place.read_text())) == 1


def test_a_list_that_cannot_be_written_only_costs_time(tmp_path):
    put(tmp_path / "file", b"")
    cache = HashCache(tmp_path / "file" / "hashes.json")
    assert cache.sha256(put(tmp_path / "x", b"abc")) == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("beside", [False, True])
def test_hashes_of_an_earlier_version_are_taken_over(tmp_path, beside):
    """Its file goes, and its folder with it unless something else is there."""
    path, older = put(tmp_path / "x", b"abc"), tmp_path / "cascade_studio" / "hashes.json"
    HashCache(older).remember(path, "0" * 64)
    if beside:
        put(older.parent / "mine", b"")
    place = tmp_path / "cascade-studio" / "hashes.json"
    assert HashCache(place, older).sha256(path) == "0" * 64 and HashCache(place).sha256(path) == "0" * 64
    assert not older.exists() and older.parent.exists() is beside


def test_a_growing_file_is_hashed_in_order(tmp_path):
    path, data = tmp_path / "x", os.urandom(100_000)
    path.write_bytes(data)
    hashing = InOrderHash(path)
    assert not hashing.advance(60_000, most=1000) and hashing.position == 1000
    assert hashing.advance(60_000) and hashing.advance(100_000)
    assert hashing.hexdigest() == hashlib.sha256(data).hexdigest()
    hashing.restart()
    hashing.advance(5)
    assert hashing.hexdigest() == hashlib.sha256(data[:5]).hexdigest()
