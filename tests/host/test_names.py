"""Names of files: what nodes that write give and fill in, what inputs of files take, however the name is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from graphs import FILES, Graph, check_sentence
from node_inputs import make_inputs
from table import each

from cascade_studio.nodes.file_inputs import FileInputs
from cascade_studio.nodes.host.files import names
from cascade_studio.nodes.host.files.prefix import fill_prefix

WRITERS = {
    "CascadeStudio_ConvertLora": ("name", "lora", {"filename_prefix": "loras/styles/t_named"}),
    "CascadeStudio_ExtractLora": ("name", "lora", {"filename_prefix": "loras/styles/t_named"}),
    "CascadeStudio_SaveModel": ("name", "prior", {"filename_prefix": "diffusion_models/styles/t_named"}),
    "CascadeStudio_TrainLora": ("lora_name", "lora", {"name": "t_named"}),
    "CascadeStudio_Train": ("file_name", "lora", {"name": "t_named"}),
}
"""Nodes that write a file that others load: the output with its name, the role that takes it, and where it goes."""

SUB, STEM = "Some Style", "Thing of Mine"
WRITTEN = {
    "as it is listed": f"{SUB}/{STEM}.safetensors",
    "the other slash": f"{SUB}\\{STEM}.safetensors",
    "other capitals": f"{SUB}/{STEM}.safetensors".upper(),
    "another sub-folder": f"elsewhere/deeper/{STEM}.safetensors",
    "another sub-folder, the other slash": f"elsewhere\\deeper\\{STEM.lower()}.safetensors",
    "no sub-folder": f"{STEM}.safetensors",
}
"""How a workflow may name the file, from another computer or from before it was moved."""


@pytest.fixture(scope="module")
def listed(host, family) -> Iterator[Any]:
    """The host with its output folder among the places of models, as its main.py has it."""
    before = {key: (list(paths), ends) for key, (paths, ends) in host.folder_paths.folder_names_and_paths.items()}
    for folder in ("loras", "diffusion_models"):
        host.folder_paths.add_model_folder_path(folder, str(host.base / "output" / folder))
    yield host
    host.folder_paths.folder_names_and_paths.update(before)
    host.folder_paths.filename_list_cache.clear()


def file_inputs(host: Any) -> dict[str, tuple[str, ...]]:
    """The inputs of files of every node that has some."""
    nodes = host.nodes.NODE_CLASS_MAPPINGS
    return {kind: node.ROLES for kind, node in nodes.items() if kind.startswith("CascadeStudio_") and takes_files(node)}


def takes_files(node: Any) -> bool:
    return isinstance(node, type) and issubclass(node, FileInputs)


def name_outputs(host: Any) -> set[tuple[str, str]]:
    """Outputs of text that are called a name."""
    found = set()
    for kind, node in host.nodes.NODE_CLASS_MAPPINGS.items():
        if kind.startswith("CascadeStudio_"):
            outputs = node.define_schema().outputs
            found |= {(kind, out.id) for out in outputs if out.get_io_type() == "STRING" and out.id.endswith("name")}
    return found


def test_every_output_and_input_is_told_of(host):
    assert name_outputs(host) == {(kind, output) for kind, (output, *_) in WRITERS.items()}
    taken = {role for roles in file_inputs(host).values() for role in roles}
    assert taken == {*FILES, "lora", "controlnet", "ultrapixel"} and taken <= set(names.FOLDERS)


@each(WRITERS)
def test_what_a_node_wrote_is_found_by_the_name_it_gives(kind, listed, parts):
    output, role, where = WRITERS[kind]
    graph = Graph(listed)
    node = graph.add(kind, **{**make_inputs(parts)[kind], **where, **({"steps": 1} if "Train" in kind else {})})
    slot = [out.id for out in listed.nodes.NODE_CLASS_MAPPINGS[kind].define_schema().outputs].index(output)
    name = graph.run(node[slot])
    found = Path(names.find(role, name))
    assert found.is_file() and found.name.startswith("t_named"), name
    assert name in names.Library().list_names(role), f"{name} is not among the choices"


def test_a_written_lora_goes_straight_into_a_loader(listed, parts):
    """The issue's r05: the output's wire into the input of files, sub-folder and all."""
    graph = Graph(listed)
    given = {**make_inputs(parts)["CascadeStudio_ConvertLora"], "filename_prefix": "loras/styles/t_wired"}
    written = graph.add("CascadeStudio_ConvertLora", **given)
    for kind, more in (
        ("LoadLora", {"prior": parts.prior}),
        ("LoraStack", {}),
        ("LoadHookLora", {"model": parts.prior}),
    ):
        assert graph.run(graph.add(f"CascadeStudio_{kind}", lora=written[0], **more)[0]) is not None


@each(WRITTEN)
def test_a_name_is_found_however_it_is_written(way, listed, tmp_path, monkeypatch):
    for role, folders in names.FOLDERS.items():
        for folder in folders:
            _, ends = listed.folder_paths.folder_names_and_paths[folder]
            monkeypatch.setitem(listed.folder_paths.folder_names_and_paths, folder, ([str(tmp_path / folder)], ends))
        place = tmp_path / folders[0] / SUB / f"{STEM}.safetensors"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        listed.folder_paths.filename_list_cache.clear()
        assert names.find(role, WRITTEN[way]) == str(place), role
        shutil.rmtree(tmp_path / folders[0])
    listed.folder_paths.filename_list_cache.clear()


def test_text_fits_every_input_of_files_and_numbers_do_not(listed, parts):
    """The host's check of the wires; that file is not there, which a sentence says."""
    for kind, roles in file_inputs(listed).items():
        for role in roles:
            for source, fits in (("PrimitiveString", True), ("PrimitiveInt", False)):
                graph = Graph(listed)
                value = graph.add(source, value="nowhere.safetensors" if fits else 3)
                wired = {"prior": parts.prior} if kind == "CascadeStudio_LoadLora" else {}
                given = {**dict.fromkeys(roles, "none"), **wired, role: value[0]}
                node = graph.add(kind, **given, **({"missing_files": "never"} if fits else {}))
                told = graph.execute(node[0]).error
                assert ("mismatch" in told) is not fits, f"{kind}.{role}: {told}"
                if told and fits and "Required input is missing" not in told:  # a stack takes any name
                    check_sentence(told, "nowhere.safetensors")


@pytest.mark.parametrize("way", WRITTEN)
def test_a_loader_takes_a_name_however_it_is_written(listed, family, parts, way):
    """The issue's r06: the host asks the loader, and does not refuse what is not in its list."""
    place = family / "loras" / SUB / f"{STEM}.safetensors"
    place.parent.mkdir(exist_ok=True)
    shutil.copy(family / "loras" / "official.safetensors", place)
    listed.folder_paths.filename_list_cache.clear()
    graph = Graph(listed)
    told = graph.run(graph.add("CascadeStudio_LoadLora", lora=WRITTEN[way], prior=parts.prior)[3])
    assert STEM.lower() in told.lower()
    shutil.rmtree(place.parent)
    listed.folder_paths.filename_list_cache.clear()


NOW = datetime(2026, 3, 7, 9, 5, 1)
PROMPT = {
    "4": {"class_type": "CascadeStudio_Canvas", "inputs": {"width": 96, "batch_size": ["1", 0]}},
    "5:7": {"class_type": "KSampler", "inputs": {"name": "a/b:c"}, "_meta": {"title": "My sampler"}},
}
FILLED = {
    "%date:yyyy-MM-dd%/%date:hh.mm.ss%_x": "2026-03-07/09.05.01_x",
    "%date:yy M d h m s%": "26 3 7 9 5 1",
    "%CascadeStudio_Canvas.width%_%My sampler.name%": "96_a_b_c",
    "%CascadeStudio_Canvas.batch_size% %width%": "%CascadeStudio_Canvas.batch_size% %width%",
    "%Nobody.width%": "%Nobody.width%",
    "100 % of it, 5 %": "100 % of it, 5 %",
}


@each(FILLED)
def test_dates_and_values_are_filled_in_where_the_page_does_not(given):
    """A prefix on a subgraph's face, or in a prompt of a program."""
    assert fill_prefix(given, PROMPT, NOW) == FILLED[given]


@pytest.mark.parametrize("kind", ["SaveImage", "SaveModel", "ConvertLora", "ExtractLora"])
def test_every_node_that_saves_fills_its_prefix_in(kind, host, parts):
    graph = Graph(host)
    folder = {"SaveImage": "t_face", "SaveModel": "diffusion_models/t_face"}.get(kind, f"loras/t_face_{kind}")
    prefix = f"{folder}/%CascadeStudio_Canvas.width%_x"
    node = graph.add(
        f"CascadeStudio_{kind}", **{**make_inputs(parts)[f"CascadeStudio_{kind}"], "filename_prefix": prefix}
    )
    canvas = graph.add("CascadeStudio_Canvas", width=72)
    graph.run(node[0], canvas[0])
    assert {path.name[:5] for path in (host.base / "output" / folder).iterdir()} == {"72_x_"}


def test_every_node_that_saves_is_told_of(host):
    ours = {kind: node for kind, node in host.nodes.NODE_CLASS_MAPPINGS.items() if kind.startswith("CascadeStudio_")}
    kinds = {kind for kind, node in ours.items() if "filename_prefix" in node.INPUT_TYPES().get("required", {})}
    assert kinds == {f"CascadeStudio_{kind}" for kind in ("SaveImage", "SaveModel", "ConvertLora", "ExtractLora")}


def test_gguf_files_are_listed_one_level_deep(host, family):
    """The host's lists leave them out; deeper ones are nobody's."""
    root = host.models / "diffusion_models"
    places = [root / "x.gguf", root / "below" / "y.gguf", root / "below" / "deeper" / "z.gguf"]
    try:
        for place in places:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"")
        listed = [name for name in names.Library().list_local("prior") if name.endswith(".gguf")]
        assert sorted(listed) == [os.path.join("below", "y.gguf"), "x.gguf"]
        assert not [name for name in names.Library().list_local("stage_a") if name.endswith(".gguf")]
    finally:
        shutil.rmtree(root / "below", ignore_errors=True)
        places[0].unlink(missing_ok=True)
