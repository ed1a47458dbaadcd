"""The page's side: plain modules without a build step, that change nothing of the host's and stay small."""

from __future__ import annotations

import json
import re
from pathlib import Path

from table import each

WEB = Path(__file__).resolve().parents[2] / "web"
MODULES = sorted((WEB / "js").glob("*.js"))
HOST = ("../../../scripts/app.js", "../../../scripts/api.js")
NEVER = {
    "a change of a class of the host's": r"\.prototype\b|Object\.(assign|defineProperty)\((app|api|window|LiteGraph)\b",
    "an assignment to the host's objects": r"^\s*(app|api|window|globalThis|document|LiteGraph)\.[\w.]+\s*=[^=]",
    "markup from text": r"innerHTML|outerHTML|insertAdjacentHTML|document\.write",
    "code from text": r"\beval\(|new Function\(",
    "talk in the console": r"console\.(log|debug|info)",
    "a request to elsewhere": r"https?://(?!www\.w3\.org/)",
}

every_module = each(MODULES, lambda path: path.stem)


def test_there_are_modules():
    assert {"main", "text", "canvas"} <= {path.stem for path in MODULES}


@every_module
def test_modules_import_each_other_and_the_host_alone(path):
    for name in re.findall(r"""(?:from|import)\s+["']([^"']+)["']""", path.read_text(encoding="utf-8")):
        assert name in HOST or (name.startswith("./") and (path.parent / name).is_file()), name


@every_module
def test_modules_change_nothing_of_the_host(path):
    text = path.read_text(encoding="utf-8")
    for what, pattern in NEVER.items():
        found = re.search(pattern, text, re.MULTILINE)
        assert not found, f"{what}: {found.group(0)}"


@every_module
def test_modules_stay_small_and_say_what_they_are(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 350 and max(map(len, lines)) <= 120
    assert lines[0].startswith("// ") and lines[0][3].isupper()


def english() -> dict[str, str]:
    """The words of web/js/text.js by id; they are kept as JSON in it."""
    source = (WEB / "js" / "text.js").read_text(encoding="utf-8")
    return json.loads(source.split("export const ENGLISH = ", 1)[1].split(";\n", 1)[0])


def read_module(name: str) -> str:
    return (WEB / "js" / f"{name}.js").read_text(encoding="utf-8")


def test_every_text_is_used_and_every_used_text_is_there():
    texts = english()
    code = "".join(path.read_text(encoding="utf-8") for path in MODULES if path.stem != "text")
    used = set(re.findall(r""""((?:canvas|stages|download|board|compare|text|advanced|repair)\.\w+)\"""", code))
    made = {
        "stages.stopped",
        "stages.failed",
        "download.about",
        *(f"download.{kind}{one}" for kind in ("missing", "running", "first", "asks") for one in ("", "_one")),
        *(
            f"repair.{role}"
            for role in re.findall(r'"((?:stage|prior|latent)[\w ]*)"', read_module("repair"))
            if f"repair.{role}" in texts
        ),
    }
    assert used | made == set(texts)


def test_texts_are_plain_sentences_and_names():
    for name, text in english().items():
        assert text and text == text.strip() and not re.search("[<>\u2600-\u27bf\U0001f000-\U0010ffff]", text), name


def test_words_of_the_extension_stand_in_no_other_module():
    """What a person reads goes through text(): no module sets words of its own."""
    for path in MODULES:
        if path.stem != "text":
            words = re.findall(r"""textContent(?: =|:)\s*["']([^"']*)["']""", path.read_text(encoding="utf-8"))
            assert not [word for word in words if re.search("[A-Za-z]{2}", word)], path.name
