"""Numbers in help pages: nodes take what is suggested, limits are theirs, and what is said of their defaults holds.

In an item about an input ``from 1 to 4`` is what the node takes, ``1 to 4 is usual`` advice. ``a new node has 0.5`` is
the default; so is what is official, unless the item tells the default as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from harness import REPOSITORY
from sources import node_classes

from tools import blocks

PAGES = REPOSITORY / "web" / "docs"
NUMBER = r"(-?\d+(?:\.\d+)?)(?![\w×]|\.\d| [x×] \d)"
ITEM = re.compile(r"^- ((?:\*\*[\w, ]+\*\*(?:,? and |, )?)+)(?: \([^)]*\))?: (.*)$")
OFFICIAL = re.compile(r"^([^.;:]*?\d[^;:]*?) (?:officially|is official|are official|in training|is the published)\b")
NEW = re.compile(rf"a new (?:node|loader) has \*?({NUMBER}|\w+)")
CHOICE = re.compile(r"\*{1,2}([^*]+)\*{1,2}(?:,? (?:which|what) a new (?:node|loader) has| \(default\))")

Numbers = dict[str, dict[str, Any]]


def read_inputs(host: Any, kind: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, type and options of each input."""
    declared = host.nodes.NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()
    for group in ("required", "optional"):
        for name, (kind_of, *options) in declared.get(group, {}).items():
            yield name, kind_of, {**(options[0] if options else {})}


def read_numbers(host: Any, kind: str) -> Numbers:
    return {name: given for name, kind_of, given in read_inputs(host, kind) if kind_of in ("INT", "FLOAT")}


def takes(given: dict[str, Any], number: float) -> bool:
    """Whether a number lies within the limits of an input."""
    return given["min"] <= number <= given["max"]


def read_items(page: str) -> Iterator[tuple[list[str], str]]:
    """The inputs of each item about inputs, and what it says of them."""
    for block in blocks.cut(page):
        if found := ITEM.match(block):
            yield re.findall(r"\w+", found[1].replace(" and ", " ")), found[2]


def find_untaken(page: str, own: Numbers, every: dict[str, list[dict[str, Any]]]) -> list[str]:
    """``name 3`` and ``**name**: 3`` where neither the node nor, if it lacks the input, any other one takes 3."""
    text = re.sub(r"```.*?```|\([^()]*\)", "", page, flags=re.DOTALL)
    wrong = []
    for name, others in every.items():
        takers = [own[name]] if name in own else others
        pattern = rf"(?:(?<![\w*/.])\*?{name}\*?|\*\*{name}\*\*:) {NUMBER}(?: to {NUMBER})?"
        for found in re.finditer(pattern, text):
            for number in filter(None, found.groups()):
                if not any(takes(given, float(number)) for given in takers):
                    wrong.append(f"{found[0]!r}: no {name} takes {number}")
    return wrong


def find_wrong_limits(page: str, own: Numbers) -> list[str]:
    """``from A to B`` that is not what the inputs of the item take, and ``A to B`` that might be limits or advice."""
    wrong = []
    for names, said in read_items(page):
        limits = [{float(own[name]["min"]), float(own[name]["max"])} for name in names if name in own]
        if not limits:
            continue
        told = re.match(rf"[Ff]rom {NUMBER} to {NUMBER}(?![^.;]*usual)", said)
        if told and any({float(told[1]), float(told[2])} != limit for limit in limits):
            wrong.append(f"{names}: {told[0]}, but the limits are {limits}")
        if re.match(rf"{NUMBER} to {NUMBER}[.;,]", said):
            wrong.append(f"{names}: {said[:30]!r} may be limits (from A to B) or advice (A to B is usual)")
    return wrong


def find_wrong_defaults(page: str, own: Numbers, choices: dict[str, Any]) -> list[str]:
    """What a page calls official or default, and is not what a new node has."""
    wrong = []
    for names, said in read_items(page):
        defaults = [float(own[name]["default"]) for name in names if name in own]
        told = NEW.search(said)
        if told and told[1] not in (f"{default:g}" for default in [*defaults]) and told[1] not in choices.values():
            wrong.append(f"{names}: {told[0]}, but it has {defaults}")
        official = OFFICIAL.match(said)
        if official and defaults and not told:
            numbers = [float(number) for number in re.findall(NUMBER, official[1])]
            if not all(default in numbers for default in defaults):
                wrong.append(f"{names}: {official[0]!r}, but a new node has {defaults}")
    for choice in CHOICE.findall(page):
        if choice not in choices.values():
            wrong.append(f"{choice!r} is no default: {choices}")
    return wrong


def find_unnamed_defaults(page: str, options: dict[str, list[str]], choices: dict[str, Any]) -> list[str]:
    """Choices of an input that an item tells, where the page tells all but the one that a new node has."""
    wrong = []
    for names, said in read_items(page):
        for name in set(names) & set(options):
            told = set(re.findall(r"\*([^*]+)\*", said)) & set(options[name])
            if len(told) > 1 and choices[name] and f"*{choices[name]}*" not in page:
                wrong.append(f"{name}: tells {sorted(told)}, but not its default, {choices[name]!r}")
    return wrong


def list_faults(host: Any) -> list[str]:
    """Each number that does not fit, after its node."""
    every: dict[str, list[dict[str, Any]]] = {}
    for kind in sorted(node_classes()):
        for name, given in read_numbers(host, kind).items():
            every.setdefault(name, []).append(given)
    found: list[str] = []
    for kind in sorted(node_classes()):
        page = (PAGES / f"{kind}.md").read_text(encoding="utf-8")
        page = re.sub(r"\n +(?=\S)", " ", page)
        own = read_numbers(host, kind)
        choices = {name: given.get("default") for name, _, given in read_inputs(host, kind)}
        options = {
            name: given["options"] if "options" in given else kind_of
            for name, kind_of, given in read_inputs(host, kind)
            if isinstance(kind_of, list) or "options" in given
        }
        faults = find_untaken(page, own, every) + find_wrong_limits(page, own)
        faults += find_unnamed_defaults(page, options, choices)
        found += [f"{kind}: {fault}" for fault in faults + find_wrong_defaults(page, own, choices)]
    return found


def test_help_pages_state_the_nodes_own_numbers(host):
    assert not list_faults(host)


SCALE = {"scale": {"min": 1.0, "max": 4.0, "default": 2.0}}


def test_wrong_numbers_are_seen():
    """Each kind of fault, in a page that has it."""
    every = {"scale": [SCALE["scale"]], "steps": [{"min": 1, "max": 100, "default": 20}]}
    assert find_untaken("- **scale**: 2 is enough, scale 4 and *scale* 1 to 3, steps 100.", SCALE, every) == []
    for said in ("- **scale**: 5", "take scale 0.5", "*scale* 1 to 8", "steps 200"):
        assert len(find_untaken(said, SCALE, every)) == 1, said
    assert find_wrong_limits("- **scale**: from 1 to 4; larger ones later.", SCALE) == []
    assert find_wrong_limits("- **scale**: 1.5 to 3 is usual.", SCALE) == []
    for said in ("- **scale**: from 1.5 to 4.", "- **scale**: 1.5 to 4; more."):
        assert len(find_wrong_limits(said, SCALE)) == 1, said
    choices = {"scale": 2.0, "method": "plain"}
    for said in ("2 officially.", "a new node has 2; the paper 3.", "3 officially; a new node has 2.", "1 is small."):
        assert find_wrong_defaults(f"- **scale**: {said}", SCALE, choices) == [], said
    assert find_wrong_defaults("*plain*, which a new node has, and *odd*. **plain** (default)", SCALE, choices) == []
    for said in ("- **scale**: 3 officially.", "- **scale**: a new node has 3.", "**odd** (default)"):
        assert len(find_wrong_defaults(said, SCALE, choices)) == 1, said
    options = {"method": ["plain", "odd", "other"]}
    assert find_unnamed_defaults("- **method**: *plain* or *odd*.", options, choices) == []
    assert len(find_unnamed_defaults("- **method**: *other* or *odd*.", options, choices)) == 1
