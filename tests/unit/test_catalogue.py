"""The catalogue: complete, consistent, safe to use, and what the documentation says."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from pathlib import Path

import harness
import pytest

from cascade_studio.nodes.checkpoints.addresses import check_name, check_url, inside, redact_url
from cascade_studio.nodes.checkpoints.catalogue import FROM_CHECKPOINT, NONE, load
from cascade_studio.nodes.checkpoints.disk import in_words
from cascade_studio.nodes.checkpoints.errors import BadCatalogue
from cascade_studio.nodes.checkpoints.find import locate_bundled

INPUTS = {"prior", "decoder", "text_encoder", "stage_a", "image_encoder", "previewer", "clip_vision"}
GOOD = {
    "key": "mine",
    "role": "prior",
    "name": "mine.safetensors",
    "folder": "diffusion_models",
    "url": "https://example.org/mine.safetensors",
}


def written(path: Path, *files: dict, **more) -> Path:
    path.write_text(json.dumps({"files": files, **more}), encoding="utf-8")
    return path


# Ours


def test_every_published_piece_is_listed():
    entries = load().entries
    official = [e for e in entries.values() if e.url.startswith("https://huggingface.co/stabilityai/stable-cascade/")]
    assert Counter(e.role for e in official if e.layout != "diffusers") == {
        "prior": 6,
        "decoder": 5,
        "stage_a": 1,
        "image_encoder": 1,
        "previewer": 1,
        "text_encoder": 1,
        "controlnet": 3,
    }
    assert {"stage_c_fp16_fixed", "stage_a_ft_hq", "sotediffusion_v2_stage_c", "diffusers_prior_bf16"} <= set(entries)


def test_sizes_agree_with_the_number_of_weights():
    """A file is its weights and a small header: bf16 files are half as large as fp32 ones."""
    entries = load().entries
    for stem in ("stage_c", "stage_c_lite", "stage_b", "stage_b_lite"):
        assert entries[stem].bytes / entries[f"{stem}_bf16"].bytes == pytest.approx(2, abs=2e-4)
    for variant in ("stage_c_fp16_fixed", "sotediffusion_wr3_alpha3"):
        assert entries[variant].bytes == pytest.approx(entries["stage_c_bf16"].bytes, rel=1e-4)
    assert entries["diffusers_decoder_bf16"].bytes == pytest.approx(entries["stage_b_bf16"].bytes, rel=1e-5)


def test_entries_are_complete():
    for entry in load().entries.values():
        assert entry.licence.url.startswith("https://"), entry.key
        assert bool(entry.url) != bool(entry.bundled) and (entry.size or entry.bundled), entry.key
        assert bool(entry.sha256) == bool(entry.provenance), entry.key
        assert entry.bytes is None or not entry.about, entry.key
        assert entry.own_name != entry.name and check_name(entry.own_name)
    hashes = Counter(entry.sha256 for entry in load().entries.values() if entry.sha256)
    assert max(hashes.values()) == 1


def test_presets_fill_every_input_of_the_loader():
    known = load()
    for preset in known.presets.values():
        assert set(preset.inputs) == INPUTS
        assert all(value in known.entries or value in (NONE, FROM_CHECKPOINT) for value in preset.inputs.values())
    assert known.presets["all-in-one"].entries == ("checkpoint_stage_c", "checkpoint_stage_b")
    assert sum(entry.size for entry in known.choose(["all-in-one"])) == 9224575566 + 4552331265
    titles = Counter(name for preset in known.presets.values() for name in (preset.key, preset.title))
    assert max(titles.values()) == 1, "loaders and workflows know presets by title"


def test_presets_go_by_title_and_key():
    known = load()
    for name in ("Lite models, bf16, for little memory", "lite-bf16"):
        assert known.find_preset(name) is known.presets["lite-bf16"]
    with pytest.raises(BadCatalogue, match="There is no preset 'big'. Choose one of 'All-in-one"):
        known.find_preset("big")


def test_what_comes_with_the_pack_is_never_fetched():
    known = load()
    mini = known.choose(["cascade-mini"])
    assert len(mini) == 6 and all(entry.bundled and not entry.url and entry.for_workflow == {} for entry in mini)
    [both] = [entry for entry in mini if entry.other_roles]
    assert both.roles == ("image_encoder", "previewer")
    assert known.find_named("previewer", both.name) is known.find_named("image_encoder", both.name) is both
    for entry in mini:
        assert locate_bundled(entry) == harness.REPOSITORY / "mini" / entry.folder / entry.name


def test_the_loaders_use_the_same_words_and_folders():
    source = ast.parse((harness.REPOSITORY / "nodes" / "host" / "files" / "names.py").read_text(encoding="utf-8"))
    constants = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in source.body
        if isinstance(node, ast.Assign) and isinstance(node.value, (ast.Constant, ast.Dict))
    }
    if "NONE" in constants:
        assert (constants["NONE"], constants["FROM_CHECKPOINT"]) == (NONE, FROM_CHECKPOINT)
    for entry in load().entries.values():
        assert entry.folder in (*constants["FOLDERS"].get(entry.role, ()), "controlnet")


def test_names_and_presets_are_found():
    known = load()
    assert known.find_named("prior", "Stable-Cascade\\stage_c_bf16.safetensors").key == "stage_c_bf16"
    assert known.find_named("stage_a", "STAGE_A.safetensors").key == "stage_a"
    assert known.find_named("decoder", "stage_a.safetensors") is None
    assert [e.key for e in known.choose(["stage_a", "stage_a.safetensors", "lite-bf16"])][0] == "stage_a"
    with pytest.raises(BadCatalogue, match="no preset and no file 'big'. The presets are all-in-one,"):
        known.choose(["big"])


def test_an_entry_tells_what_a_workflow_embeds():
    known = load().entries
    assert known["checkpoint_stage_c"].for_workflow == {
        "name": "stable_cascade_stage_c.safetensors",
        "directory": "checkpoints",
        "hash_type": "SHA256",
        "hash": known["checkpoint_stage_c"].sha256,
        "url": known["checkpoint_stage_c"].url,
    }
    assert "hash" not in known["text_encoder"].for_workflow


# The documentation


def test_the_documentation_lists_what_the_catalogue_has():
    text = (harness.REPOSITORY / "web" / "docs" / "files.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(.+?)\]\((.+?)\) \| (.+?) \| (.+?) \| (.+?) \|$", text, re.M)
    expected = [
        (
            e.name,
            e.url,
            ("" if e.bytes else "about ") + in_words(e.size),
            "/".join(filter(None, (e.folder, e.subfolder))),
        )
        for e in load().entries.values()
        if e.url
    ]
    assert sorted(row[:4] for row in rows) == sorted(expected)
    bundled = re.findall(r"^\| `(.+?)` \| `(.+?)` \| (.+?) \|$", text, re.M)
    assert bundled == [(e.name, f"{e.bundled}/{e.folder}", "GPL") for e in load().entries.values() if e.bundled]
    licences = {e.name: e.licence for e in load().entries.values()}
    short = {row[4]: licences[row[0]].name for row in rows}
    assert len(short) + 1 == len({licence.name for licence in licences.values()})
    presets = dict(re.findall(r"^\| `(.+?)` \| (.+?) \| ", text.split("## Where")[0], re.M))
    known = load()
    sums = {key: sum(e.size or 0 for e in known.choose([key])) for key in known.presets}
    assert presets == {key: in_words(size) if size else "nothing" for key, size in sums.items()}
    for variable in (
        "CASCADE_STUDIO_CATALOGUE",
        "CASCADE_STUDIO_OFFLINE",
        "CASCADE_STUDIO_MIRRORS",
        "HF_ENDPOINT",
        "HF_TOKEN",
        "HF_HUB_CACHE",
    ):
        assert f"`{variable}`" in text


# A user's own


def test_a_user_adds_files_and_presets(tmp_path):
    file = written(
        tmp_path / "own.json",
        {**GOOD, "licence": "mine alone", "bytes": 5, "sha256": "AB" * 32},
        presets={"own": {"title": "Mine", "inputs": {"prior": "mine", "decoder": "stage_b_bf16"}}},
    )
    known = load(file)
    assert known.entries["mine"].licence.describe() == "mine alone"
    assert (known.entries["mine"].sha256, known.entries["mine"].provenance) == ("ab" * 32, "copy")
    assert [entry.key for entry in known.choose(["own"])] == ["mine", "stage_b_bf16"]
    assert load(written(tmp_path / "two.json", {**GOOD, "licence": "mit"})).entries["mine"].licence.name == "MIT"
    assert "mine" not in load().entries


@pytest.mark.parametrize(
    "change, words",
    (
        ({"name": "../mine.safetensors"}, "cannot be used: it begins with a dot"),
        ({"name": "a/mine.safetensors"}, "leads to another folder"),
        ({"name": "C:mine.safetensors"}, "a character that a file name cannot have"),
        ({"name": "mine\x00.safetensors"}, "its name is"),
        ({"name": "NUL.safetensors"}, "a device on Windows"),
        ({"name": "mine.safetensors."}, "ends with a dot"),
        ({"name": "x" * 200 + ".safetensors"}, "more than 180 characters"),
        ({"name": "mine.ckpt"}, "only .safetensors and .json files are fetched"),
        ({"name": "mine.safetensors.exe"}, "only .safetensors and .json files are fetched"),
        ({"name": 5}, "its name is '5'; it must be a text"),
        ({"subfolder": "../.."}, "it begins with a dot"),
        ({"subfolder": "/etc"}, "it is empty"),
        ({"subfolder": "a\\b"}, "leads to another folder"),
        ({"subfolder": "a/b/c/d/e"}, "nested too deeply"),
        ({"folder": "../vae"}, "one of ComfyUI's folder keys"),
        ({"url": "http://example.org/mine.safetensors"}, "neither https nor http on this computer"),
        ({"url": "ftp://example.org/x"}, "neither https"),
        ({"url": "file:///etc/passwd"}, "not a web address"),
        ({"url": "https://user:secret@example.org/x"}, "carries a user name or password"),
        ({"url": "https://exa mple.org/x"}, "not a web address"),
        ({"url": "https://[::1/x"}, "not a web address"),
        ({"url": 7}, "its url is '7'; it must be a text"),
        ({"mirrors": ["http://example.org/x"]}, "neither https"),
        ({"bytes": "5"}, "must be a whole number of bytes"),
        ({"bytes": -1}, "must be a whole number of bytes"),
        ({"sha256": "abc"}, "64 hexadecimal digits"),
        ({"sha256": "a" * 64, "provenance": "a friend"}, "must be one of official page, official commit, copy"),
        ({"role": "painter"}, "its role is 'painter'; it must be one of prior, decoder"),
        ({"layout": "gguf"}, "its layout is 'gguf'"),
        ({"other_names": ["../x.safetensors"]}, "The other name"),
        ({"url": None}, "it lacks url"),
        ({"bundled": "mini"}, "it is bundled and has an address, too"),
        ({"bundled": "../mini"}, "it begins with a dot"),
        ({"other_roles": ["painter"]}, "its other roles hold 'painter'"),
        ({"key": "a b"}, "A key is made of letters"),
        ({"colour": "red"}, "unknown fields: colour"),
        ({"key": "stage_a"}, "The key 'stage_a' is taken"),
        ({"name": "Stage_C.safetensors", "subfolder": "Stable-Cascade"}, "would both be"),
    ),
)
def test_what_cannot_be_used_is_named(tmp_path, change, words):
    with pytest.raises(BadCatalogue, match=re.escape(words)) as error:
        load(written(tmp_path / "own.json", {**GOOD, **change}))
    assert str(error.value).startswith("own.json: ") and "secret" not in str(error.value)


@pytest.mark.parametrize(
    "text, words",
    (
        ("", "not valid JSON"),
        ("[]", "it is no object"),
        ('{"files": {}}', "'files' must be a list of objects"),
        ('{"presets": []}', "'presets' must be an object of objects"),
        ('{"presets": {"x": {}}}', "needs 'inputs'"),
        ('{"presets": {"x": {"inputs": {"prior": "no"}}}}', "names the file 'no' for 'prior'"),
        ('{"presets": {"x": {"inputs": {"prior": "stage_a"}}}}', "but it is for 'stage_a'"),
        ('{"presets": {"fp16": {"inputs": {"prior": "stage_c"}}}}', "The preset key 'fp16' is taken"),
        ('{"licences": {"x": {"nom": "y"}}}', "The licence 'x' must have"),
    ),
)
def test_a_broken_file_is_a_sentence(tmp_path, text, words):
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(BadCatalogue, match=words):
        load(tmp_path / "own.json")


def test_a_file_comes_from_somewhere(tmp_path):
    with pytest.raises(BadCatalogue, match="In the file 'mine': it lacks url."):
        load(written(tmp_path / "own.json", {key: value for key, value in GOOD.items() if key != "url"}))


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(BadCatalogue, match="none.json cannot be read"):
        load(tmp_path / "none.json")


# Names and addresses


def test_loopback_may_do_without_https():
    for url in ("http://127.0.0.1:80/x", "http://localhost/x", "http://[::1]:5/x", "https://example.org/x"):
        assert check_url(url) == url
    for url in ("http://127.0.0.1.example.org/x", "http://10.0.0.1/x", "http://localhost.example.org/x"):
        with pytest.raises(BadCatalogue):
            check_url(url)


def test_secrets_are_cut_off_addresses():
    assert redact_url("https://me:pw@example.org:5/a/b?token=1#x") == "https://example.org:5/a/b"
    assert redact_url("http://[::1]:5/a") == "http://[::1]:5/a"


@pytest.mark.parametrize("parts", (("..", "x"), ("a", "../../x"), ("/etc/x",), ("",), (".",)))
def test_a_path_never_leaves_its_folder(tmp_path, parts):
    with pytest.raises(BadCatalogue, match="leads out of the folder"):
        inside(tmp_path / "models", *parts)
