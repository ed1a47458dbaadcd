"""Every sentence that a user can meet at run time is found in the sources, and the page knows it again."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from said import say
from sources import node_names
from table import each

from cascade_studio.nodes.checkpoints.addresses import check_url
from cascade_studio.nodes.checkpoints.errors import CheckpointError
from cascade_studio.stages.errors import CascadeError
from cascade_studio.stages.files.open import open_model
from cascade_studio.stages.inputs import canvas, pictures, segments
from tools import messages

REPOSITORY = Path(__file__).resolve().parents[2]

SOURCE = '''
"""A docstring with words in it."""
log = logging.getLogger(__name__)
ADVICE = "Choose a smaller picture."

def read(path, where, count):
    """Another docstring."""
    log.warning("The disk of %s is slow.", path)
    if not path:
        raise ValueError("this is for programmers only")
    kind = "a picture without detail" if count else None
    many = f"{count} files are" if count > 1 else "1 file is"
    raise WrongInput(
        f"{where} got {kind}, of shape {path!r}. It needs {many} here: "
        "wire another one. " + ADVICE + f"\\n  {'Lite' if count else 'Full'} models are smaller."
    )
'''


def test_sentences_are_found_wherever_they_are_put_together():
    """Over several lines, in constants, in places, and each way of saying something by itself."""
    assert messages.read_templates(SOURCE) == [
        "Choose a smaller picture.",
        "a picture without detail",
        "{0} files are",
        "1 file is",
        "{0} got {1}, of shape {2}.",
        "It needs {0} here: wire another one.",
        "Lite models are smaller.",
        "Full models are smaller.",
    ]


def test_every_error_of_the_pack_is_listed():
    """Each sentence in each ``raise`` of the pack's own kinds has its template."""
    found = set(messages.collect_messages()) | messages.OPTIONS | messages.KEYS
    kinds = {kind.__name__ for base in (CascadeError, CheckpointError) for kind in list_kinds(base)}
    missing = []
    for path in sorted(path for folder in messages.FOLDERS for path in (REPOSITORY / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Raise)
                and isinstance(node.exc, ast.Call)
                and getattr(node.exc.func, "id", "") in kinds
            ):
                texts = [text for argument in node.exc.args for text in messages.find_strings(argument) or []]
                sentences = [sentence for text in texts for sentence in messages.cut_sentences(text)]
                templates = map(messages.number_places, filter(messages.is_prose, sentences))
                missing += [f"{path.name}: {template}" for template in templates if template not in found]
    assert not missing


def test_messages_name_nodes_as_they_are_shown():
    """Names that node modules keep for their messages: another name would stay English on the page."""
    shown = {re.sub(r" \([^)]*\)$", "", name) for name in node_names().values()}
    kept = {}
    for path in sorted((REPOSITORY / "nodes").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign):
                values = [value.value for value in ast.walk(node.value) if isinstance(value, ast.Constant)]
                named = [value for value in values if re.fullmatch(r"[A-Z][\w-]*( [\w-]+)+", str(value))]
                kept.update(dict.fromkeys(named, path.name))
    assert len(kept) > 20
    assert {name: path for name, path in kept.items() if name not in shown} == {}


def list_kinds(kind: type) -> list[type]:
    return [kind, *(inner for each_kind in kind.__subclasses__() for inner in list_kinds(each_kind))]


def read_cut_off(folder: Path) -> None:
    path = folder / "cut off.safetensors"
    path.write_bytes((10_000).to_bytes(8, "little") + b"{")
    open_model(path)


def read_nothing(folder: Path) -> None:
    open_model(folder / "missing.safetensors")


def read_pickle(folder: Path) -> None:
    (folder / "old.safetensors").write_bytes(b"\x80\x02}q\x00." + b"." * 64)
    open_model(folder / "old.safetensors")


FAILURES: dict[str, Callable[[Path], object]] = {
    "a width": lambda _: canvas.plan_canvas(7, 128),
    "a picture": lambda _: pictures.check_pictures(torch.zeros(2, 2), "Upscale with Cascade"),
    "a hint": lambda _: pictures.check_pictures(torch.zeros(1, 2, 2, 16), "Upscale with Cascade"),
    "a mask": lambda _: pictures.check_mask(torch.full((1, 2, 2), -1.0), "Inpaint Hint"),
    "boxes": lambda _: segments.read_segments("nothing", 64, 64, "Detailer for Cascade"),
    "an address": lambda _: check_url("ftp://example.org/file"),
    "a cut file": read_cut_off,
    "no file": read_nothing,
    "a pickle": read_pickle,
}


def mark_templates() -> dict[str, dict[str, str]]:
    """A language that says every template in brackets, and no name."""
    return {"templates": {text: f"[{text}]" for text in messages.collect_messages()}, "names": {}}


def unknown_in(said: str) -> str:
    """What of a text stands in no brackets."""
    while said != (inner := re.sub(r"\[[^\[\]]*\]", "", said)):
        said = inner
    return said.strip()


@each(FAILURES)
def test_real_failures_are_known(name, tmp_path):
    """To the list, and to the page: not a word of them is left in English."""
    with pytest.raises((CascadeError, CheckpointError)) as caught:
        FAILURES[name](tmp_path)
    assert not messages.find_unknown(str(caught.value))


def test_the_page_knows_real_failures(tmp_path):
    told = []
    for fail in FAILURES.values():
        with pytest.raises((CascadeError, CheckpointError)) as caught:
            fail(tmp_path)
        told.append(str(caught.value))
    assert [unknown_in(said) for said in say(told, mark_templates())] == [""] * len(told)


def test_places_are_said_in_words_too():
    """Names, texts of their own and several of them; what is not known stays as it is."""
    table = {
        "templates": {
            "{0} got {1}, of shape {2}.": "{0}: {1} ({2}).",
            "a latent": "ein Latent",
            "peak memory {0} GiB": "{0} GiB Speicher",
            "Choose another.": "Nimm noch eins.",
            "The {0} is {1}, but {2}.": "{0} ist {1}, aber {2}.",
            "take a small one, and enlarge it": "nimm es klein und vergrößere es",
        },
        "names": {"Sample Stage C": "Stage C sampeln"},
    }
    told = {
        "Sample Stage C got a latent, of shape 3. Choose another.": "Stage C sampeln: ein Latent (3). Nimm noch eins.",
        "The file got a. b, of shape 3.\n  Choose another.": "The file: a. b (3).\n  Nimm noch eins.",
        "The file is 9, but large: take a small one, and enlarge it.": (
            "file ist 9, aber large: nimm es klein und vergrößere es."
        ),
        "Stage C: 24 cells: 2.00 s, peak memory 1.50 GiB.": "Stage C: 24 cells: 2.00 s, 1.50 GiB Speicher.",
        "Nothing that is known, a latent (or so).": "Nothing that is known, a latent (or so).",
        "": "",
    }
    assert say(list(told), table) == list(told.values())


ADVICE = "Choose a smaller picture or batch, set vae_device to cpu in the loader, or close other programs that use the "
ADVICE += "graphics card."
EVENTS = [
    ["execution_error", {"exception_message": f"Stage A, encoding a picture, ran out of memory. {ADVICE}\n"}],
    ["execution_error", {"exception_message": f"Execution Blocked: {ADVICE}"}],
    ["execution_error", {"exception_message": "CUDA error: device-side assert triggered"}],
    ["execution_error", {}],
    ["executed", {"node": "5", "output": {"text": [ADVICE]}}],
    ["executed", {"node": "6", "output": {"text": [ADVICE]}}],
    ["executed", {"node": "5", "output": None}],
    ["progress_text", {"nodeId": "5", "text": ADVICE}],
]
REFUSED = {
    "5": {"class_type": "CascadeStudio_Load", "errors": [{"details": f"missing_files - {ADVICE}"}]},
    "6": {"class_type": "LoadImage", "errors": [{"details": ADVICE}]},
}


def open_page(folder: Path, language: str) -> dict[str, Any]:
    """What listeners of the host hear, and what it keeps of a refused prompt, in a language."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not here, and the page's side is JavaScript.")
    command = [node, Path(__file__).with_name("page.mjs"), folder, REPOSITORY / "web", language]
    given = json.dumps({"events": EVENTS, "refused": REFUSED})
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_hosts_own_listeners_hear_the_users_language(tmp_path):
    """Also those that listened before; another pack's node, and what is not known, are left as they are."""
    words = json.loads((REPOSITORY / "web" / "messages" / "de.json").read_text(encoding="utf-8"))["templates"]
    advice = words[ADVICE]
    page = open_page(tmp_path, "de")
    first, blocked, foreign, empty, ours, others, nothing, told = page["heard"]
    stage = words["Stage A, encoding a picture"]
    memory = words["{0} ran out of memory."].replace("{0}", stage)
    assert first == {"exception_message": f"{memory} {advice}\n"}
    assert blocked == {"exception_message": f"Execution Blocked: {advice}"}
    assert [foreign, empty, others, nothing] == [EVENTS[index][1] for index in (2, 3, 5, 6)]
    assert ours["output"] == {"text": [advice]} and told["text"] == advice
    assert page["refused"]["5"]["errors"] == [{"details": f"missing_files - {advice}"}]
    assert page["refused"]["6"] == REFUSED["6"]


def test_nothing_is_fetched_and_changed_in_english(tmp_path):
    page = open_page(tmp_path, "en")
    assert page == {"heard": [detail for _, detail in EVENTS], "refused": REFUSED, "asked": []}
