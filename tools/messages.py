"""What nodes say while they run, as templates: read out of ``nodes/`` and ``stages/`` without running them.

``python3 dev.py run -m tools.messages`` lists them. An f-string becomes a template with numbered places, text with line
breaks or several sentences one template for each: the page (``web/js/messages.js``) puts them together again, and finds
in a place what is a text of its own, such as ``a Stage C latent`` in ``{0} got {1}.`` Texts for logs and schemas, and
errors that are not of the pack's own kinds, are no messages.
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from . import locales
from .env import REPOSITORY

FOLDERS = ("nodes", "stages")
GROUPS = {
    "programs": r"stages/(nets|diffusion)/",
    "catalogue": r"nodes/checkpoints/(catalogue|addresses|settings|entries)\.py",
    "training": r"(stages|nodes/host)/training/|nodes/training",
    "lora": r"stages/lora/|nodes/host/lora/|nodes/(lora|merging)",
    "files": r"stages/files/",
    "downloads": r"nodes/checkpoints/|nodes/host/files/",
    "pictures": "",
}
"""What messages are about, the rarest first: calls of the stages from programs, a catalogue of one's own, and so on."""

OPTIONS = set(
    "ask if large|files below|extra pass|last step|as trained|middle and up|tiles, shared norms|tiles, own norms|"
    "whole picture|first part|all parts|spectral residual|without stretch|all layers|all layers, biases and norms|"
    "large set|as they are|image to image".split("|")
)
"""Choices, which menus show as they are in every language."""
KEYS = set(
    "keep {0}|fetch {0}|hub cache|can't allocate memory|No space left|activation text|latent {0} {1}|hint {0} {1} {2}|"
    "stage a {0} {1} {2}|text {0} {1}|patch {0} {1} {2}|{0}, received_type({1}) mismatch input_type({2})|official host|"
    "official page|official commit|from the checkpoint|other name|middle block|file name|{0} and {1}|and in|"
    "it holds {0}|bitsandbytes int8|bitsandbytes 4 bits|{0}    seed {1}".split("|")
)
"""Names of threads and records, and what is looked for in the errors of others."""

MAKES_SCHEMAS = r"nodes/\w+\.py|stages/training/settings\.py"
STANDARD = "nodes/host/report/parameters.py"
"""Writes into files what other programs read, in their words."""

PLACE = "\0"
FOREIGN = set(
    "ValueError TypeError KeyError LookupError AttributeError NotImplementedError RuntimeError OSError".split()
)
"""Errors for programmers, not worded for users."""
LOGS = {"debug", "info", "warning", "error", "exception", "getLogger", "import_module", "get"}
SCHEMA = {"tooltip", "description", "display_name", "search_aliases", "category", "node_id", "prog", "help"}
ENOUGH = 8
"""Letters that a template needs to be known as one of a tooltip's."""
MOST_ENDS = 4
"""Sentences, as they look, that may be one whose places hold marks: as in web/js/templates.js."""
MOST_WAYS = 4
"""A text with more ways to say it than this keeps a place for what varies."""

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n")
OPENING = re.compile(rf"(?<={PLACE}) (?=(?!(?:Stage|Stable|Cascade|Load)\b)[A-Z][a-z]* )")
"""Where a sentence begins after another one that is put in: ``{problem} Choose another file.``"""
EDGES = " ,;:("
WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
LABEL = re.compile(rf"[A-Z][a-z]+: {PLACE}")
"""What a line of a report is about."""
ADDRESS = re.compile(r"^[\w.{}\0/-]+$|[a-z]_[a-z]+\.[a-z]|\\[wdsx]|^\(\?| \| |\b__|::|^Cascade Studio/")
"""Names, patterns and annotations, which are nothing to read."""


def find_strings(node: ast.AST) -> list[str] | None:
    """The ways in which an expression is a text, places being ``PLACE``; None where it is none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        parts = [[part.value] if isinstance(part, ast.Constant) else find_ways(part.value) for part in node.values]
        return join_ways(parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = find_strings(node.left), find_strings(node.right)
        return None if left is None and right is None else join_ways([left or [PLACE], right or [PLACE]])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        found = find_strings(node.func.value)
        return found and [re.sub(r"\{\w*[^{}]*\}", PLACE, text) for text in found]
    return None


def find_ways(value: ast.expr) -> list[str]:
    """What may stand in a place: a choice between texts with words stands for itself, all else is a place."""
    if isinstance(value, ast.IfExp):
        ways = [find_strings(value.body), find_strings(value.orelse)]
        if all(ways) and any(WORD.search(text) for way in ways for text in way or []):
            return [text for way in ways for text in way or []]
    return [PLACE]


def join_ways(parts: list[list[str]]) -> list[str]:
    """All texts that the parts can give; where these are too many, varying parts are places."""
    number = 1
    for part in parts:
        number *= len(part)
    if number > MOST_WAYS:
        parts = [part if len(part) == 1 else [PLACE] for part in parts]
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def collect_strings(node: ast.AST) -> Iterator[str]:
    """Every text below ``node`` that may be shown: no docstrings, logs, schemas and errors for programmers."""
    if is_unshown(node):
        return
    found = find_strings(node)
    yield from found or []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FormattedValue):
            yield from collect_strings(child.value)
        elif found is None or find_strings(child) is None:
            yield from collect_strings(child)
        else:  # a part of this text; what stands in its places may be texts of their own
            inner = (each.value for each in ast.walk(child) if isinstance(each, ast.FormattedValue))
            yield from itertools.chain.from_iterable(map(collect_strings, inner))


def is_unshown(node: ast.AST) -> bool:
    """Whether texts below ``node`` are no messages."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.keyword):
        return node.arg in SCHEMA
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        return node.func.attr in LOGS and node.func.value.id in {"log", "logging", "re", "importlib"}
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
        return node.exc.func.id in FOREIGN
    return isinstance(node, (ast.arg, ast.Import, ast.ImportFrom))


def cut_sentences(text: str) -> Iterator[str]:
    """The sentences of a text, or the text where it is only a part of one, without what joins it to others."""
    for sentence in SENTENCE_END.split(text):
        for part in OPENING.split(sentence):
            yield part.strip().lstrip(EDGES).rstrip(" ,;:")


def is_prose(text: str) -> bool:
    """Whether somebody reads this: at least two words, one of them in small letters, and no name or pattern."""
    words = WORD.findall(text)
    small = [word for word in words if word.islower() and len(word) > 1]
    if LABEL.match(text):
        return True
    said = len(words) >= 2 or (PLACE in text and len(small) == 1 and len(small[0]) > 2)
    return bool(said and small and " " in text and not ADDRESS.search(text))


def number_places(text: str) -> str:
    """A template: its places, neighbours being one, numbered in order; brackets that open but do not close are left."""
    joined = re.sub(f"{PLACE}+", PLACE, text)
    if joined.count(")") > joined.count("("):
        joined = joined.rstrip(")")
    numbers = itertools.count()
    return re.sub(PLACE, lambda found: f"{{{next(numbers)}}}", joined)


def read_templates(source: str) -> list[str]:
    """The templates of one module, in order."""
    texts = itertools.chain.from_iterable(map(cut_sentences, collect_strings(ast.parse(source))))
    return list(dict.fromkeys(number_places(text) for text in texts if is_prose(text)))


def group_of(name: str) -> str:
    """Who meets the messages of a module."""
    return next(group for group, pattern in GROUPS.items() if re.match(pattern, name))


@cache
def collect_messages() -> dict[str, str]:
    """Every template and who meets it: painters before all others, where several do."""
    order = list(GROUPS)
    schema = locales.collect_schema_texts(locales.read_english_nodes())
    told = "\n".join(schema)
    found: dict[str, str] = {}
    for path in sorted(path for folder in FOLDERS for path in Path(REPOSITORY, folder).rglob("*.py")):
        name = path.relative_to(REPOSITORY).as_posix()
        if name == STANDARD:
            continue
        group = group_of(name)
        for template in read_templates(path.read_text(encoding="utf-8")):
            if template in schema or (re.match(MAKES_SCHEMAS, name) and is_part(template, told)):
                continue
            found[template] = max(group, found.get(template, group), key=order.index)
    return {template: group for template, group in found.items() if template not in OPTIONS | KEYS}


def is_part(template: str, told: str) -> bool:
    """Whether a tooltip has a sentence in it: it was put together there, not in a message."""
    if sum(map(str.isalpha, template)) < (ENOUGH if template.endswith(".") else 2 * ENOUGH):
        return False
    pattern = ".{1,60}".join(re.escape(part) for part in re.split(r"\{\d+\}", template))
    return re.search(pattern, told) is not None


@cache
def compile_templates() -> list[re.Pattern[str]]:
    """What each template looks like when it is said."""
    texts = [template for template in collect_messages() if template.endswith((".", "!", "?"))]
    return [re.compile("(.*?)".join(map(re.escape, re.split(r"\{\d+\}", text))), re.DOTALL) for text in texts]


def find_unknown(text: str) -> list[str]:
    """The sentences of a message that no template knows; marks inside a place may look like the end of one."""
    unknown = []
    for line in text.splitlines():
        sentences = re.split(r"(?<=[.!?])\s+", line.strip())
        while sentences:
            known = [
                count
                for count in range(1, min(MOST_ENDS, len(sentences)) + 1)
                if any(pattern.fullmatch(" ".join(sentences[:count])) for pattern in compile_templates())
            ]
            unknown += [] if known else [sentences[0]]
            sentences = sentences[known[0] if known else 1 :]
    return unknown


def main() -> int:
    """Print every template after its group."""
    for template, group in collect_messages().items():
        sys.stdout.write(f"{group}\t{template}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
