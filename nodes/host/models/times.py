"""The parts of a run in which the entries of a conditioning are heard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

Span = TypeVar("Span", bound=Sequence)
"""Anything whose first two members are the start and the end, as percentages of the host, 0 to 1."""


def time_of(extra: dict[str, Any]) -> tuple[float, float]:
    """The part of the run in which an entry of a conditioning is heard."""
    return extra.get("start_percent", 0.0), extra.get("end_percent", 1.0)


def in_time(extra: dict[str, Any], spans: Sequence[Span]) -> Iterator[tuple[dict[str, Any], Span | None]]:
    """An entry of a conditioning cut where ``spans`` begin and end, each piece with the span that covers it, or None."""
    first, last = time_of(extra)
    cuts = sorted({first, last, *(cut for span in spans for cut in span[:2] if first < cut < last)})
    for start, end in zip(cuts, cuts[1:] or cuts):
        inside = extra if (start, end) == (first, last) else {**extra, "start_percent": start, "end_percent": end}
        yield inside, next((span for span in spans if span[0] <= start and end <= span[1]), None)
