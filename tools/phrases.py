"""Messages in another language, found among templates as the page finds them (``web/js/templates.js``).

Help pages quote messages. ``tests/unit/test_quotes.py`` holds what is said here against what the page says.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

PLACE, SIDES = re.compile(r"\{(\d+)\}"), re.compile(r"^([\s,;:(]*)(.*?)([\s,;:]*)$", re.DOTALL)
JOINTS = re.compile(r"([,;:]\s+|\s*[()]\s*|[.,;:]$)")
"""What stands between several texts in one place."""
MOST_PARTS = 9
"""A text with marks in itself has so many parts, marks among them, at the most."""
ENOUGH = 10
"""Letters that a template needs to be looked for in what is not the place of another one."""


def measure(template: str) -> int:
    """How much a template says beside its places; a whole sentence is harder to mistake than a part of one."""
    return sum(map(str.isalpha, PLACE.sub("", template))) * (2 if template.endswith(".") else 1)


def compile_template(template: str) -> re.Pattern[str]:
    """What a template looks like when it is said."""
    return re.compile("(.*?)".join(map(re.escape, re.split(r"\{\d+\}", template))), re.DOTALL)


class Phrases:
    """The messages of a language, from a table of ``templates`` and ``names`` as ``web/messages`` has it."""

    def __init__(self, table: dict[str, Any]):
        self.whole: dict[str, str] = table["templates"]
        self.names: dict[str, str] = table["names"]
        open_ones = sorted((text for text in self.whole if "{0}" in text), key=measure, reverse=True)
        self.open = [(compile_template(text), text, measure(text)) for text in open_ones]

    def say(self, text: str, least: int = ENOUGH) -> str | None:
        """The words for one sentence, or None where no template knows it."""
        found = SIDES.fullmatch(text)
        begin, said, end = found.groups() if found else ("", text, "")
        if said in self.whole and measure(said) >= least:
            return begin + self.whole[said] + end
        for pattern, template, size in self.open:
            if size >= least and (match := pattern.fullmatch(said)):
                return begin + PLACE.sub(self.fill_from(match), self.whole[template]) + end
        return None

    def fill_from(self, match: re.Match[str]) -> Callable[[re.Match[str]], str]:
        """What stands in the places of a translation, given what stood in those of the template."""
        return lambda place: self.say_value(match[int(place[1]) + 1])

    def say_value(self, text: str) -> str:
        """What stands in a place: a name, a text of its own, or several with marks between."""
        said = text.rstrip(" ,;:")
        known = self.say_known(said)
        return self.say_parts(text) if known is None else known

    def say_known(self, text: str) -> str | None:
        """A name or a text of its own, or None."""
        return self.names[text] if text in self.names else self.say(text, 1)

    def say_parts(self, text: str) -> str:
        """Each text in a place that holds several; what is not known stays."""
        parts = JOINTS.split(text)
        if len(parts) == 1:
            return text
        said, at = [], 0
        while at < len(parts):
            end = self.find_end(parts, at)
            text = "".join(parts[at:end])
            known = None if at % 2 or not text else self.say_known(text)
            said.append(text if known is None else known)
            at = end
        return "".join(said)

    def find_end(self, parts: list[str], at: int) -> int:
        """Where a text that has marks in itself ends, such as "take a small one, and enlarge it"; or the next part."""
        ends = range(min(len(parts), at + MOST_PARTS), at + 1, -1)
        return next((end for end in ends if "".join(parts[at:end]) in self.whole), at + 1)
