"""The gate for JSON that others wrote: file headers, metadata, catalogues, side files of downloads."""

from __future__ import annotations

import json
import math
from typing import Any

LARGEST_NUMBER = 2**63


class BadJson(ValueError):
    """A text is no JSON that can be used. Its words end a sentence: "it is nested too deeply"."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text (UTF-8, with or without a byte order mark); raises :class:`BadJson`.

    Refused beside wrong syntax: nesting that Python cannot follow, a name twice in one object, NaN and infinity, whole
    numbers of more than 64 bits, and text that is no Unicode (lone surrogates).
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(
            text.removeprefix("\ufeff"),
            parse_constant=_refuse_constant,
            parse_int=_parse_int,
            parse_float=_parse_float,
            object_pairs_hook=_make_object,
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except BadJson:
        raise
    except RecursionError:
        raise BadJson("it is nested too deeply") from None
    except UnicodeError:
        raise BadJson("it holds text that is not Unicode") from None
    except json.JSONDecodeError as error:
        raise BadJson(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    return value


def parse_object(text: str | bytes) -> dict[str, Any]:
    """As :func:`parse_json` for a text that must be an object."""
    value = parse_json(text)
    if not isinstance(value, dict):
        raise BadJson("it is no object")
    return value


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise BadJson("a name stands twice in one object")
    return made


def _refuse_constant(word: str) -> None:
    raise BadJson(f"it holds {word}")


def _parse_int(digits: str) -> int:
    number = int(digits) if len(digits) < 25 else LARGEST_NUMBER * 4
    if not -LARGEST_NUMBER <= number < 2 * LARGEST_NUMBER:
        raise BadJson("it holds a number of more than 64 bits")
    return number


def _parse_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise BadJson("it holds a number that is too large")
    return number
