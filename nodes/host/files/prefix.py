"""What stands between percent signs in a file name: dates, and the values of other nodes.

The page fills them in where the name is a widget of its own node, as it does for core's save nodes. It leaves them
where the widget stands on a subgraph's face, and a program that sends prompts has no page: so it is done here, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

_DATE = re.compile(r"%date:([^%]*)%")
_VALUE = re.compile(r"%([^%./\\]+)\.([^%./\\]+)%")
_PART = re.compile(r"yyyy|yy|MM?|dd?|hh?|mm?|ss?")
_NOT_IN_NAMES = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')


def fill_prefix(prefix: str, prompt: Mapping[str, Any] | None, now: datetime | None = None) -> str:
    """``prefix`` with its dates and values; what no node of ``prompt`` answers to stays as it is.

    ``%date:yyyy-MM-dd hh-mm-ss%`` is the time, ``%Node.widget%`` the value of the first node of that kind or title.
    """
    now = now or datetime.now()
    dated = _DATE.sub(lambda found: _PART.sub(lambda part: _format(part[0], now), found[1]), prefix)
    return _VALUE.sub(lambda found: _find_value(found[1], found[2], prompt or {}, found[0]), dated)


def has_open_values(prefix: str) -> bool:
    """Whether values of nodes still stand in ``prefix``."""
    return _VALUE.search(prefix) is not None


def _format(part: str, now: datetime) -> str:
    if part[0] == "y":
        return f"{now.year:04}"[-len(part) :]
    value = {"M": now.month, "d": now.day, "h": now.hour, "m": now.minute, "s": now.second}[part[0]]
    return f"{value:0{len(part)}}"


def _find_value(name: str, widget: str, prompt: Mapping[str, Any], otherwise: str) -> str:
    kinds = [node for node in prompt.values() if node.get("class_type") == name]
    titled = [node for node in prompt.values() if node.get("_meta", {}).get("title") == name]
    for node in [*kinds, *titled]:
        value = node.get("inputs", {}).get(widget)
        if value is not None and not isinstance(value, (list, dict)):
            return _NOT_IN_NAMES.sub("_", str(value))
    return otherwise
