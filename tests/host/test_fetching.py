"""Loaders whose files are not here: planned, asked about, fetched once, resumed, found elsewhere, bundled, offline."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import pytest
from faulty_server import FaultyServer, File
from graphs import FILES, FOLDERS, Graph, check_sentence

from cascade_studio.nodes.checkpoints import find
from cascade_studio.nodes.checkpoints.catalogue import load as load_catalogue
from cascade_studio.nodes.checkpoints.presets import Machine
from cascade_studio.nodes.host import machine as advice
from cascade_studio.nodes.host.files import fetch, names
from mini import need
from tools import small

SINGLE = {
    "prior": "LoadPrior",
    "decoder": "LoadDecoder",
    "text_encoder": "LoadTextEncoder",
    "stage_a": "LoadStageA",
    "image_encoder": "LoadImageEncoder",
    "previewer": "LoadImageEncoder",
    "clip_vision": "LoadClipVision",
    "controlnet": "LoadControlNet",
}
ALL_FOLDERS = {**FOLDERS, "controlnet": "controlnet"}
"""The folders of Load Stable Cascade's files, and of those that have a loader of their own alone."""
TITLE, TOKEN = "The small family", "hf_neverToBeSeen"


@dataclass
class Shop:
    """An installation without any model, and a server that has the small family, known by a catalogue of the user's."""

    host: Any
    models: Path
    server: FaultyServer
    catalogue: Path
    contents: dict[str, bytes]
    messages: list[tuple[str, Any]] = field(default_factory=list)

    def name(self, role: str) -> str:
        return f"small_{role}.safetensors"

    def place(self, role: str) -> Path:
        return self.models / ALL_FOLDERS[role] / "Small" / self.name(role)

    def told(self, event: str) -> list[dict[str, Any]]:
        return [message for kind, message in self.messages if kind == event]

    def graph(self, kind: str = "Load", **inputs: Any) -> Graph:
        """One loader, its files named by the catalogue unless it is told otherwise."""
        graph = Graph(self.host)
        roles = list(FOLDERS) if kind == "Load" else [role for role, single in SINGLE.items() if single == kind]
        graph.add(f"CascadeStudio_{kind}", **{**{role: self.name(role) for role in roles}, **inputs})
        return graph

    def wanted(self, *roles: str) -> int:
        return sum(len(self.contents[role]) for role in roles or FOLDERS)

    def assert_whole(self, *roles: str) -> None:
        """The files are exact, and nothing else is left."""
        assert all(self.place(role).read_bytes() == self.contents[role] for role in roles)
        left = {path.name for path in self.models.rglob("*") if path.is_file()}
        assert left == {self.name(role) for role in roles}


@pytest.fixture
def shop(host, family, tmp_path, monkeypatch) -> Iterator[Shop]:
    server, models = FaultyServer(), tmp_path / "models"
    for key, (_, suffixes) in list(host.folder_paths.folder_names_and_paths.items()):
        monkeypatch.setitem(host.folder_paths.folder_names_and_paths, key, ([str(models / key)], suffixes))
    (models / "vae").mkdir(parents=True)
    monkeypatch.setattr(host.folder_paths, "filename_list_cache", {})
    for name in ("CASCADE_STUDIO_OFFLINE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "CASCADE_STUDIO_MIRRORS", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    sources = {**FILES, "controlnet": "canny.safetensors"}
    contents = {role: (family / ALL_FOLDERS[role] / name).read_bytes() for role, name in sources.items()}
    entries = []
    for role, data in contents.items():
        server.files[role] = File(data)
        entries.append(
            {
                "key": f"small_{role}",
                "role": role,
                "name": f"small_{role}.safetensors",
                "url": server.url(role),
                "folder": ALL_FOLDERS[role],
                "subfolder": "Small",
                "licence": "mit",
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )
    own = tmp_path / "own.json"
    own.write_text(
        json.dumps(
            {
                "files": entries,
                "presets": {"small": {"title": TITLE, "inputs": {role: f"small_{role}" for role in FOLDERS}}},
            }
        ),
        encoding="utf-8",
    )
    monkeypatch.setenv(names.CATALOGUE, str(own))
    made = Shop(host, models, server, own, contents)
    monkeypatch.setattr(host.server, "send_sync", lambda event, data, sid=None: made.messages.append((event, data)))
    yield made
    server.close()


def picture(graph: Graph) -> list[Any]:
    """The output of a small picture made by node 1's models."""
    load = [["1", slot] for slot in range(6)]
    prompts = {
        name: graph.add("CLIPTextEncode", clip=load[2], text=text)[0]
        for name, text in (("positive", "a red apple"), ("negative", ""))
    }
    canvas = graph.add("CascadeStudio_Canvas", width=64, height=64)
    prior = graph.add("CascadeStudio_SamplePrior", model=load[0], latent=canvas[0], steps=2, **prompts)
    latent = graph.add("CascadeStudio_SampleDecoder", model=load[1], prior=prior[0], steps=1, **prompts)
    return graph.add("CascadeStudio_DecodeStageA", latent=latent[0], vae=load[4])[0]


def test_an_empty_installation_one_queue_one_picture(shop, caplog):
    """The plan in the node and the log, every byte once, one bar over all files; then nothing more is asked for."""
    caplog.set_level(logging.INFO)
    graph = shop.graph(preset=TITLE, prior="anything.safetensors")
    image = picture(graph)
    result = graph.execute(image)
    assert result.success, result.error
    assert result.values[tuple(image)].std() > 0.01
    shop.assert_whole(*FOLDERS)
    assert shop.server.sent == shop.wanted()
    (plan,) = shop.told(fetch.PLAN)
    assert (plan["node"], plan["state"]) == ("1", "fetches") and len(plan["plan"]["missing"]) == 7
    assert plan["plan"]["missing"][0]["target"] == str(shop.place("prior"))
    for words in ("7 files are missing", str(shop.place("decoder")), "Licence: MIT", "Free on the disk"):
        assert words in plan["text"] and words in caplog.text and words in result.ui["1"]["text"][0]
    assert f"Preset {TITLE}." in result.ui["1"]["text"][0] and "Stage C in fp32: " in result.ui["1"]["text"][0]
    assert "Stage A in fp32: as the host's flags" in result.ui["1"]["text"][0]
    moments = shop.told(fetch.PROGRESS)
    assert [m["done"] for m in moments] == sorted(m["done"] for m in moments) and moments[-1]["finished"]
    assert {(m["node"], m["total"]) for m in moments} == {("1", shop.wanted())}
    bar = [(value, total) for node, value, total in result.progress if node == "1"]
    assert bar and bar == sorted(bar) and bar[-1] == (shop.wanted(), shop.wanted())
    seen = [caplog.text, json.dumps([message for _, message in shop.messages if isinstance(message, dict)])]
    assert not [text for text in seen if TOKEN in text]
    shop.messages.clear()
    assert graph.execute(image).success and len(shop.server.requests) == 7 and not shop.told(fetch.PLAN)


@pytest.mark.parametrize("kind", sorted(set(SINGLE.values())))
def test_every_loader_fetches_its_own(shop, kind):
    roles = [role for role, single in SINGLE.items() if single == kind]
    result = shop.graph(kind).execute(["1", 0])
    assert result.success, result.error
    shop.assert_whole(*roles)
    assert "All of this was fetched:" in result.ui["1"]["text"][0]
    assert shop.server.sent == shop.wanted(*roles) and shop.graph(kind, missing_files="never").execute(["1", 0]).success


@pytest.mark.parametrize(
    "mode, state, words",
    [
        ("ask", "asks", ("set it to 'download' and queue again", "By hand: download")),
        ("never", "refuses", ("'missing_files' is set to 'never'", "By hand: download")),
    ],
)
def test_nothing_is_fetched_unasked(shop, mode, state, words):
    text = shop.graph(missing_files=mode).error(["1", 0])
    check_sentence(text, *words, "7 files are missing", str(shop.place("prior")), "Licence: MIT", "Free on the disk")
    (plan,) = shop.told(fetch.PLAN)
    assert (plan["state"], plan["text"]) == (state, text) and plan["plan"]["to_come"] == shop.wanted()
    assert shop.server.requests == [] and not list(shop.models.rglob("*.safetensors*"))


def test_more_than_a_gigabyte_is_asked_for_and_less_is_fetched(shop, monkeypatch):
    """What a new loader does; one that was saved with "download" goes on fetching."""
    monkeypatch.setattr(fetch, "LARGE", shop.wanted() - 1)
    text = shop.graph(missing_files="ask if large").error(["1", 0])
    check_sentence(text, "'missing_files' is set to 'ask if large'", "set it to 'download'", "By hand: download")
    assert shop.told(fetch.PLAN)[0]["state"] == "asks" and shop.server.requests == []
    monkeypatch.setattr(fetch, "LARGE", shop.wanted())
    assert shop.graph(missing_files="ask if large").execute(["1", 0]).success


def test_networking_can_be_switched_off(shop, monkeypatch):
    monkeypatch.setenv("CASCADE_STUDIO_OFFLINE", "1")
    text = shop.graph("LoadStageA").error(["1", 0])
    check_sentence(text, "networking is switched off", "By hand", str(shop.place("stage_a")))
    assert shop.server.requests == [] and shop.told(fetch.PLAN)[0]["state"] == "refuses"


@pytest.mark.parametrize("kind", ["Load", *sorted(set(SINGLE.values()))])
def test_an_unknown_name_gets_our_sentence(shop, kind):
    role = next(role for role, single in SINGLE.items() if kind in ("Load", single))
    text = shop.graph(kind, **{role: "nobody_knows.safetensors"}).error(["1", 0])
    check_sentence(text, "nobody_knows.safetensors", "not on this computer", "catalogue does not know it", "models/")
    assert shop.server.requests == []


def test_an_interrupt_is_quick_and_the_next_queue_goes_on(shop, monkeypatch):
    """The server falls asleep when it is pressed: whoever waited for the network would wait for minutes."""
    pressed = []

    def send(event, data, sid=None):
        if event == fetch.PROGRESS and data["done"] > 200_000 and not pressed:
            shop.server.rate = 1_000
            pressed.append(time.monotonic())
            shop.host.interrupt()

    monkeypatch.setattr(shop.host.server, "send_sync", send)
    shop.server.rate = 400_000
    graph = shop.graph("LoadTextEncoder")
    result = graph.execute(["1", 0])
    assert result.interrupted and time.monotonic() - pressed[0] < 15
    assert not shop.place("text_encoder").exists()
    shop.server.rate = None
    assert graph.execute(["1", 0]).success
    shop.assert_whole("text_encoder")
    assert shop.server.sent <= 1.05 * shop.wanted("text_encoder")


def test_two_programs_fetch_a_file_once(shop):
    """The host waits for a command line that fetches the same file into the same folder."""
    shop.server.rate = shop.wanted("text_encoder") / 2.5
    command = [
        sys.executable,
        "studio.py",
        "models",
        "get",
        "small_text_encoder",
        "--to",
        str(shop.models),
        "--catalogue",
        str(shop.catalogue),
    ]
    other = subprocess.Popen(command, cwd=harness.REPOSITORY, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not shop.server.requests and time.monotonic() < deadline:
            time.sleep(0.02)
        result = shop.graph("LoadTextEncoder").execute(["1", 0])
        assert result.success, result.error
        assert other.wait(30) == 0
    finally:
        other.kill()
    shop.assert_whole("text_encoder")
    assert shop.server.sent == shop.wanted("text_encoder") and len(shop.server.requests) == 1
    moments = shop.told(fetch.PROGRESS)
    assert any(message["note"] == "another process fetches it" for message in moments)
    assert moments[-1]["finished"] and moments[-1]["done"] == shop.wanted("text_encoder")


def test_a_file_that_lies_elsewhere_under_another_name_is_used(shop):
    place = shop.models / "checkpoints" / "deep" / "renamed.safetensors"
    place.parent.mkdir(parents=True)
    place.write_bytes(shop.contents["stage_a"])
    result = shop.graph("LoadStageA", missing_files="never").execute(["1", 0])
    assert result.success, result.error
    assert shop.server.requests == [] and shop.told(fetch.PLAN) == []


def test_a_file_of_the_users_with_that_name_stays(shop):
    """A top-level file of a published name is the user's choice; one at the target's place is never replaced."""
    mine = shop.place("stage_a")
    mine.parent.mkdir()
    mine.write_bytes(shop.contents["previewer"])
    assert shop.graph("LoadStageA").execute(["1", 0]).success
    assert mine.read_bytes() == shop.contents["previewer"] and len(shop.server.requests) == 1


def test_a_server_that_has_nothing_is_a_sentence(shop):
    shop.server.files.clear()
    text = shop.graph("LoadStageA").error(["1", 0])
    check_sentence(text, "small_stage_a.safetensors could not be fetched", "no such file (404)", "By hand: download")


def test_a_file_that_arrives_changes_the_fingerprint(shop):
    kind = shop.host.nodes.NODE_CLASS_MAPPINGS["CascadeStudio_Load"]
    given = {role: shop.name(role) for role in FOLDERS}
    before, by_preset = kind.fingerprint_inputs(**given), kind.fingerprint_inputs(preset=TITLE)
    shop.place("stage_a").parent.mkdir()
    shop.place("stage_a").write_bytes(shop.contents["stage_a"])
    assert kind.fingerprint_inputs(**given) != before and kind.fingerprint_inputs(preset=TITLE) != by_preset


def test_a_file_that_a_loader_fetched_is_not_loaded_again(shop):
    """The second queue finds what the first one loaded, and a file that is replaced later is seen."""
    executor = shop.host.executor()

    def loads() -> bool:
        result = shop.graph("LoadStageA").execute(["1", 0], executor=executor)
        assert result.success, result.error
        return "1" in result.executed

    assert loads() and not loads() and len(shop.server.requests) == 1
    os.utime(shop.place("stage_a"), ns=(1, 1))
    assert loads() and not loads()


def test_a_file_without_a_known_hash_is_called_unverified(shop):
    content = json.loads(shop.catalogue.read_text("utf-8"))
    for entry in content["files"]:
        del entry["sha256"]
    shop.catalogue.write_text(json.dumps(content), encoding="utf-8")
    result = shop.graph("LoadStageA").execute(["1", 0])
    assert result.success and "small_stage_a.safetensors is unverified" in result.ui["1"]["text"][0]


# Lists and catalogues


def options(host: Any, kind: str, name: str) -> tuple[list[str], list[str]]:
    """Choices of an input, and those of them that would be fetched."""
    found = next(entry for entry in host.nodes.NODE_CLASS_MAPPINGS[kind].define_schema().inputs if entry.id == name)
    return found.options, found.as_dict().get("published", [])


def test_lists_hold_files_here_then_published_ones(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(find, "PACK", tmp_path / "pack without Mini")
    shop.place("stage_a").parent.mkdir()
    shop.place("stage_a").write_bytes(shop.contents["stage_a"])
    listed, published = options(shop.host, "CascadeStudio_LoadStageA", "stage_a")
    listed = [name.replace("\\", "/") for name in listed]
    assert listed[:2] == ["Small/small_stage_a.safetensors", "stage_a.safetensors"]
    assert shop.name("stage_a") in listed and shop.name("stage_a") not in published
    assert "stage_a_ft_hq.safetensors" in published and set(published) < set(listed)
    presets, _ = options(shop.host, "CascadeStudio_Load", "preset")
    assert presets[:2] == ["files below", "automatic"] and TITLE in presets
    whole = {preset.title for key, preset in load_catalogue().presets.items() if key != "cascade-mini"}
    assert whole < set(presets)
    assert load_catalogue().presets["cascade-mini"].title not in presets, "its files are not in this pack"


def test_a_broken_catalogue_is_a_sentence_and_lists_go_on(shop, caplog):
    shop.catalogue.write_text("{", encoding="utf-8")
    assert TITLE not in options(shop.host, "CascadeStudio_Load", "preset")[0]
    check_sentence(shop.graph("LoadStageA", stage_a="x.safetensors").error(["1", 0]), "own.json is not valid JSON")
    (shop.models / "vae" / "mine.safetensors").write_bytes(shop.contents["stage_a"])
    mine = shop.graph("LoadStageA", stage_a="mine.safetensors").execute(["1", 0])
    assert mine.success, "what is here needs no catalogue"
    shop.catalogue.unlink()
    check_sentence(shop.graph("LoadStageA", stage_a="x.safetensors").error(["1", 0]), "own.json cannot be read")


def test_presets_go_by_title_and_by_key(shop):
    for name in ("small", TITLE):
        text = shop.graph(preset=name, missing_files="never", prior="x.safetensors").error(["1", 0])
        assert "7 files are missing" in text
    text = shop.graph(preset="big").error(["1", 0])
    check_sentence(text, "There is no preset 'big'", TITLE)


def test_automatic_takes_the_best_complete_set_here(shop, bundle, monkeypatch):
    """First those that suit the machine, then any other, then Mini; nothing is fetched."""
    monkeypatch.setattr(advice, "describe_machine", lambda: Machine("cuda", "a card", True, True, True, 80 * 10**9))

    def told() -> str:
        result = shop.graph(preset="automatic").execute(["1", 0])
        assert result.success, result.error
        return result.ui["1"]["text"][0]

    assert told().startswith("Preset Cascade Mini") and "no complete set of larger models" in told()
    for role, data in shop.contents.items():
        shop.place(role).parent.mkdir(parents=True, exist_ok=True)
        shop.place(role).write_bytes(data)
    shop.host.folder_paths.filename_list_cache.clear()
    assert told().startswith(f"Preset {TITLE}: of the complete sets here")
    monkeypatch.setattr(fetch, "rank_presets", lambda machine: (("full-bf16", "small"), "it can"))
    assert told().startswith(f"Preset {TITLE}: it can.")
    assert shop.server.requests == []


def test_fresh_nodes_begin_with_the_size_of_the_model_that_a_fresh_loader_takes(shop):
    def sides() -> list[int]:
        inputs = {"Canvas": ("width", "height"), "InpaintCrop": ("target_size",)}
        types = {kind: shop.host.nodes.NODE_CLASS_MAPPINGS[f"CascadeStudio_{kind}"].INPUT_TYPES() for kind in inputs}
        return [types[kind]["required"][name][1]["default"] for kind, names in inputs.items() for name in names]

    need()
    assert sides() == [256] * 3, "Cascade Mini, which comes with the pack"
    for role, data in shop.contents.items():
        shop.place(role).parent.mkdir(parents=True, exist_ok=True)
        shop.place(role).write_bytes(data)
    shop.host.folder_paths.filename_list_cache.clear()
    assert sides() == [1024] * 3, "the small family's file says nothing of its size, so it is the published one"
    shop.place("stage_a").unlink()
    shop.host.folder_paths.filename_list_cache.clear()
    assert sides() == [256] * 3, "that set is no longer complete"


def test_the_workflow_with_core_loaders_raises_the_hosts_own_dialog(shop):
    """The dialog wants a file name that is no choice of its widget, and its address and folder beside it."""
    workflow = json.loads(
        (harness.REPOSITORY / "workflows" / "Stable Cascade - text to image with core loaders.json").read_text("utf-8")
    )
    loaders = [node for node in workflow["nodes"] if node["type"] == "CheckpointLoaderSimple"]
    assert len(loaders) == 2
    for node in loaders:
        choices = shop.host.nodes.NODE_CLASS_MAPPINGS[node["type"]].INPUT_TYPES()["required"]["ckpt_name"][0]
        [value], [model] = node["widgets_values"], node["properties"]["models"]
        assert value not in choices and value == model["name"] and value.endswith(".safetensors")
        assert model["directory"] == "checkpoints" in shop.host.folder_paths.folder_names_and_paths
        assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(f"/{value}")


# What comes with the pack


@pytest.fixture
def bundle(shop, family, tmp_path, monkeypatch) -> Path:
    """A pack whose bundled files are the small family."""
    monkeypatch.setattr(find, "PACK", tmp_path / "pack")
    known = load_catalogue()
    named = {**FILES, "image_encoder": "stage_c_vae.safetensors"}
    for role, key in known.presets["cascade-mini"].inputs.items():
        path = find.locate_bundled(known.entries[key])
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            shutil.copy(family / FOLDERS[role] / named[role], path)
    return tmp_path / "pack"


def test_the_preset_of_mini_is_offered_where_its_files_are(shop):
    """In this very repository; mini.need says whether they have to be."""
    offered = load_catalogue().presets["cascade-mini"].title in options(shop.host, "CascadeStudio_Load", "preset")[0]
    assert offered == small.mini().covers(small.PAINTS)
    need()


def test_the_bundled_preset_needs_no_models_and_no_network(shop, bundle, monkeypatch):
    monkeypatch.setenv("CASCADE_STUDIO_OFFLINE", "1")
    folders = json.dumps({key: list(value[0]) for key, value in shop.host.folder_paths.folder_names_and_paths.items()})
    graph = shop.graph(preset="Cascade Mini (bundled, 256 px)", missing_files="never")
    image = picture(graph)
    preview = graph.add("CascadeStudio_EncodeImage", image=image, vae=["1", 5])
    shown = graph.add("CascadeStudio_DecodePreview", prior=preview[0], vae=["1", 5])
    painted, seen = graph.run(image, shown[0])
    assert painted.std() > 0.01 and seen.std() > 0.001, "one file serves as image encoder and as Previewer"
    assert str(bundle) not in folders and not list(shop.models.rglob("*.safetensors"))
    assert folders == json.dumps(
        {key: list(value[0]) for key, value in shop.host.folder_paths.folder_names_and_paths.items()}
    )


def test_bundled_files_are_listed_after_those_of_the_models_folders(shop, bundle):
    (shop.models / "diffusion_models").mkdir()
    (shop.models / "diffusion_models" / "zzz.safetensors").write_bytes(shop.contents["prior"])
    listed, published = options(shop.host, "CascadeStudio_LoadPrior", "prior")
    assert listed[:2] == ["zzz.safetensors", "cascade_mini_stage_c.safetensors"]
    assert "cascade_mini_stage_c.safetensors" not in published
    assert load_catalogue().presets["cascade-mini"].title in options(shop.host, "CascadeStudio_Load", "preset")[0]
    for role in ("image_encoder", "previewer"):
        assert "cascade_mini_stage_c_vae.safetensors" in options(shop.host, "CascadeStudio_LoadImageEncoder", role)[0]
    result = shop.graph("LoadPrior", prior="cascade_mini_stage_c.safetensors").execute(["1", 0])
    assert result.success, result.error
    more = bundle / "mini" / "loras" / "in_no_catalogue.safetensors"
    more.parent.mkdir()
    more.write_bytes(b"")
    here, published = names.Library().list_names("lora")[:1], names.Library().list_names("lora")[1:]
    assert here == [more.name] and names.find("lora", more.name) == str(more)
    assert not set(published) - {entry.name for entry in load_catalogue().entries.values()}


def test_a_bundled_file_that_is_not_there_is_a_sentence(shop, bundle):
    shutil.rmtree(bundle / "mini" / "vae")
    text = shop.graph(preset="cascade-mini").error(["1", 0])
    check_sentence(text, "comes with Cascade Studio", "cascade_mini_stage_", "Install the pack again")
    assert "cascade_mini_stage_a.safetensors" not in options(shop.host, "CascadeStudio_LoadStageA", "stage_a")[0]
