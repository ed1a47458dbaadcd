"""Wrong, damaged and missing files in every file input: a sentence, no file changed, and the next file loads."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import FILES, FOLDERS, Graph, check_sentence
from safetensors.torch import load_file, save_file

TITLES = {
    "prior": "'prior' input",
    "decoder": "'decoder' input",
    "text_encoder": "'text encoder' input",
    "stage_a": "'Stage A VAE' input",
    "image_encoder": "'image encoder' input",
    "previewer": "'Previewer' input",
    "clip_vision": "'CLIP vision' input",
}
SINGLE = {
    "prior": "CascadeStudio_LoadPrior",
    "decoder": "CascadeStudio_LoadDecoder",
    "text_encoder": "CascadeStudio_LoadTextEncoder",
    "stage_a": "CascadeStudio_LoadStageA",
    "image_encoder": "CascadeStudio_LoadImageEncoder",
    "previewer": "CascadeStudio_LoadImageEncoder",
    "clip_vision": "CascadeStudio_LoadClipVision",
}
INPUTS = [(node, role) for role, single in SINGLE.items() for node in ("CascadeStudio_Load", single)]
EVERY_INPUT = pytest.mark.parametrize("node, role", INPUTS, ids=[f"{node[14:]}-{role}" for node, role in INPUTS])
EVERY_ROLE = pytest.mark.parametrize("role", FOLDERS)
TRAP = "opened-a-pickle"


def load(host: Any, node: str, role: str, name: str) -> Graph:
    """A loader that has good files in every input but ``role``."""
    graph = Graph(host)
    others = {
        "CascadeStudio_Load": FILES,
        "CascadeStudio_LoadImageEncoder": {"image_encoder": "none", "previewer": "none"},
    }.get(node, {})
    graph.add(node, **{**others, role: name})
    return graph


def error_of(host: Any, node: str, role: str, name: str) -> str:
    return load(host, node, role, name).error(["1", 0])


@pytest.fixture
def place(family: Path) -> Iterator[Any]:
    """``place(role, name, bytes or a path)`` puts a file where ``role`` is looked for; no run may change it."""
    placed: dict[Path, str] = {}

    def put(role: str, name: str, content: bytes | Path) -> str:
        path = family / FOLDERS[role] / "bad" / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, path)
        else:
            path.write_bytes(content)
        placed[path] = digest(path)
        return f"bad/{name}"

    yield put
    try:
        for path, before in placed.items():
            assert digest(path) == before, f"{path.name} was changed"
            assert {each.name for each in path.parent.iterdir()} == {
                each.name for each in placed if each.parent == path.parent
            }
    finally:
        for folder in {path.parent for path in placed}:
            shutil.rmtree(folder)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# No model at all


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return Path.touch, (self.folder / TRAP,)


def zip_pickle(family: Path, role: str) -> bytes:
    path = family / "pickle"
    torch.save({"weight": Trap(family)}, path)
    content = path.read_bytes()
    path.unlink()
    return content


def good(family: Path, role: str) -> bytes:
    return (family / FOLDERS[role] / FILES[role]).read_bytes()


def header(family: Path, role: str) -> bytes:
    """Eight bytes and the JSON behind them."""
    content = good(family, role)
    return content[: 8 + int.from_bytes(content[:8], "little")]


DAMAGES = {
    "empty.safetensors": (lambda family, role: b"", ("empty (0 bytes)", "Download it again")),
    "cut.safetensors": (lambda family, role: good(family, role)[:-100], ("cut off", "bytes", "ownload it again")),
    "half.safetensors": (lambda family, role: header(family, role)[:-40], ("cut off inside its header", "Download it")),
    "tiny.safetensors": (lambda family, role: good(family, role)[:5], ("not a safetensors file", "Download it again")),
    "longer.safetensors": (lambda family, role: good(family, role) + bytes(10), ("is damaged", "Download it again")),
    "garbled.safetensors": (
        lambda family, role: header(family, role)[:-9] + b"!!!!!!!!}" + bytes(64),
        ("damaged header", "Download it again"),
    ),
    "noise.safetensors": (lambda family, role: bytes(range(256)) * 4, ("not a safetensors file", "Download it again")),
    "page.safetensors": (lambda family, role: b"<!DOCTYPE html><html>Log in</html>", ("web page", "login", "Download")),
    "pointer.safetensors": (
        lambda family, role: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        ("Git LFS pointer", "Fetch"),
    ),
    "settings.safetensors": (lambda family, role: json.dumps({"c_in": 16}).encode(), ("JSON", "Choose")),
    "packed.safetensors": (lambda family, role: b"GGUF" + bytes(100), ("GGUF", "safetensors")),
    "old.ckpt": (lambda family, role: pickle.dumps(Trap(family), protocol=2), ("pickle", "not opened", "Convert")),
    "new.ckpt": (zip_pickle, ("pickle", "not opened", "Convert")),
}


@EVERY_ROLE
@pytest.mark.parametrize("name", DAMAGES)
def test_file_that_is_no_model(host, family, parts, place, role, name):
    make, words = DAMAGES[name]
    text = error_of(host, SINGLE[role], role, place(role, name, make(family, role)))
    check_sentence(text, name, TITLES[role], *words)
    assert not (family / TRAP).exists(), "a pickle was opened"


@EVERY_INPUT
@pytest.mark.parametrize(
    "name, words",
    [("absent.safetensors", ("absent.safetensors", "not on this computer")), ("", ("No file is chosen",))],
    ids=["absent", "none chosen"],
)
def test_missing_file(host, parts, node, role, name, words):
    text = error_of(host, node, role, name)
    check_sentence(text, role.replace("_", " "), f"models/{FOLDERS[role]}", "choose", *words)


@EVERY_ROLE
def test_folder_instead_of_a_file(host, family, parts, role):
    folder = family / FOLDERS[role] / "folder.safetensors"
    folder.mkdir()
    try:
        check_sentence(error_of(host, SINGLE[role], role, folder.name), "folder.safetensors", "choose")
    finally:
        folder.rmdir()


@EVERY_ROLE
def test_good_file_after_a_bad_one(host, family, parts, place, role):
    """Replacing the file under its name is enough, in the same session of the host."""
    executor = host.executor()
    graph = load(host, SINGLE[role], role, place(role, "mended.safetensors", good(family, role)[:-100]))
    assert "cut off" in graph.error(["1", 0], executor=executor)
    place(role, "mended.safetensors", good(family, role))
    assert graph.run(["1", 0], executor=executor) is not None


# Models of another kind

BELONGS = {
    "diffusion_models/stage_c": ("Stage C prior", "as the prior"),
    "diffusion_models/stage_b": ("Stage B decoder", "as the decoder"),
    "text_encoders/clip_g": ("text encoder", "as the text encoder"),
    "vae/stage_a": ("Stage A VAE", "as the Stage A VAE"),
    "vae/effnet_encoder": ("image encoder", "as the image encoder"),
    "vae/previewer": ("Previewer", "as the Previewer"),
    "clip_vision/clip_l_vision": ("CLIP vision tower", "as the CLIP vision model"),
    "controlnet/canny": ("ControlNet", "as the ControlNet"),
    "loras/official": ("LoRA", "in a LoRA loader"),
    "loras/kohya": ("LoRA", "in a LoRA loader"),
}
OWN = {role: f"{folder}/{Path(FILES[role]).stem}" for role, folder in FOLDERS.items()}
FOREIGN = {
    "an SD or SDXL VAE": {"decoder.conv_in.weight": (8, 4, 3, 3), "encoder.conv_in.weight": (8, 3, 3, 3)},
    "an SDXL diffusion model": {"input_blocks.0.0.weight": (8, 4, 3, 3), "label_emb.0.0.weight": (8, 8)},
    "a Flux diffusion model": {"double_blocks.0.img_attn.qkv.weight": (8, 8)},
    "an unknown file": {"layer.weight": (4, 4)},
}


@EVERY_ROLE
@pytest.mark.parametrize("file", BELONGS)
def test_file_of_another_input(host, family, parts, place, role, file):
    if file == OWN[role]:
        load(host, SINGLE[role], role, place(role, "own.safetensors", family / f"{file}.safetensors")).run(["1", 0])
        return
    given, belongs = BELONGS[file]
    text = error_of(host, SINGLE[role], role, place(role, "other.safetensors", family / f"{file}.safetensors"))
    check_sentence(text, "other.safetensors", given, TITLES[role], "needs", belongs)


@EVERY_ROLE
@pytest.mark.parametrize("title", FOREIGN)
def test_file_of_another_model(host, family, parts, place, tmp_path, role, title):
    save_file({key: torch.zeros(shape) for key, shape in FOREIGN[title].items()}, tmp_path / "foreign")
    text = error_of(host, SINGLE[role], role, place(role, "foreign.safetensors", tmp_path / "foreign"))
    check_sentence(text, f"foreign.safetensors is {title}", TITLES[role], "needs", "Stable Cascade")


@pytest.mark.parametrize(
    "role, file",
    [
        ("prior", "stage_b"),
        ("decoder", "stage_c"),
        ("image_encoder", "stage_b"),
        ("previewer", "stage_b"),
        ("clip_vision", "stage_b"),
        ("stage_a", "stage_c"),
    ],
)
def test_checkpoint_without_the_part(host, family, parts, place, role, file):
    path = family / "checkpoints" / f"stable_cascade_{file}.safetensors"
    text = error_of(host, SINGLE[role], role, place(role, "all.safetensors", path))
    check_sentence(text, "all.safetensors", "all-in-one", TITLES[role], "Choose a file that holds it")


@pytest.mark.parametrize("role", [role for role in FOLDERS if role not in ("prior", "decoder")])
def test_part_from_files_that_do_not_hold_it(host, parts, role):
    text = error_of(host, "CascadeStudio_Load", role, "from the checkpoint")
    check_sentence(text, f"'{role}'", "from the checkpoint", "stage_c.safetensors", "stage_b.safetensors", "Choose")


def test_neither_half_of_the_stage_c_vae(host, parts):
    text = error_of(host, "CascadeStudio_LoadImageEncoder", "previewer", "none")
    check_sentence(text.strip(), "image encoder", "previewer", "Choose at least one")


# Incomplete and edited models

EDITED = {
    "prior": ("down_blocks.1.1.mapper.weight", "clf.1.bias"),
    "decoder": ("up_blocks.0.2.kv_mapper.1.bias", "clf.1.weight"),
    "text_encoder": ("text_model.encoder.layers.1.mlp.fc2.weight", "text_model.final_layer_norm.bias"),
    "stage_a": ("up_blocks.2.channelwise.2.weight", "out_block.0.bias"),
    "image_encoder": ("backbone.4.0.block.1.1.bias", "backbone.3.0.block.1.1.weight"),
    "previewer": ("blocks.9.weight", "blocks.24.bias"),
    "clip_vision": ("vision_model.encoder.layers.1.mlp.fc2.weight", "vision_model.post_layernorm.bias"),
}
EACH_EDIT = pytest.mark.parametrize("role, key", [(role, key) for role, keys in EDITED.items() for key in keys])


@EACH_EDIT
def test_file_without_a_tensor(host, family, parts, place, tmp_path, role, key):
    tensors = load_file(family / FOLDERS[role] / FILES[role])
    del tensors[key]
    save_file(tensors, tmp_path / "edited")
    text = error_of(host, SINGLE[role], role, place(role, "edited.safetensors", tmp_path / "edited"))
    check_sentence(text, "edited.safetensors", key, "Take a complete file")


@EACH_EDIT
def test_file_with_a_tensor_of_another_shape(host, family, parts, place, tmp_path, role, key):
    tensors = load_file(family / FOLDERS[role] / FILES[role])
    shape = "×".join(map(str, tensors[key].shape))
    tensors[key] = torch.zeros([size + 1 for size in tensors[key].shape])
    wrong = "×".join(map(str, tensors[key].shape))
    save_file(tensors, tmp_path / "edited")
    text = error_of(host, SINGLE[role], role, place(role, "edited.safetensors", tmp_path / "edited"))
    check_sentence(text, "edited.safetensors", f"{key} is {wrong} instead of {shape}", "Take a complete file")
