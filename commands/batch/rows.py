"""Reads what is asked for: rows of a CSV, JSON Lines or text file, and every picture that they stand for.

A row becomes several pictures by its grids (lists of choices), by ``--count`` and ``--seeds``; wildcards are drawn from
the row's own text, so that the same command draws the same again.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..messages import Stop, WrongUsage
from ..workflow.inputs import LARGEST_SEED

FORMATS = (".csv", ".jsonl", ".txt")
GRID_MARK = "[]"
MOST_SEEDS = 1_000_000
_WILDCARD = re.compile(r"(?<!\\)__([\w\-/]+?)__")
_CHOICE = re.compile(r"(?<!\\)\{([^{}]*)\}")


@dataclass(frozen=True)
class Row:
    """One picture that is asked for: the line of the file it comes from (from 1) and values by column."""

    line: int
    values: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A line that cannot be painted, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class Expansion:
    """How one row becomes several.

    grid: more choices by column; seeds: every row with each of these; count: pictures of each row, of consecutive
    seeds; wildcards: folder with ``NAME.txt``, one choice a line; first_seed: where a row without a seed begins;
    batched: the ``count`` pictures are one row with that batch_size.
    """

    grid: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    count: int = 1
    wildcards: Path | None = None
    first_seed: int = 0
    batched: bool = False


def read_rows(path: Path) -> Iterator[Row | BadRow]:
    """The rows of a file in their order. Raises ``Stop`` for a file that holds no rows at all."""
    if path.suffix.lower() not in FORMATS:
        raise Stop(f"{path.name} is no list of rows: it has to end in {', '.join(FORMATS)}.")
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = {".csv": _read_csv, ".jsonl": _read_json_lines, ".txt": _read_text}[path.suffix.lower()]
            for row in reader(file, path.name):
                yield _check_text(row)
    except OSError as error:
        raise Stop(f"{path} cannot be read ({error.strerror}). Give the path of a list of rows.") from None


def _check_text(row: Row | BadRow) -> Row | BadRow:
    found = isinstance(row, Row) and re.search("[\ud800-\udfff]", json.dumps(row.values, ensure_ascii=False))
    if found:
        undecoded = "\udc80" <= found[0] <= "\udcff"
        return BadRow(row.line, f"it {'is not UTF-8' if undecoded else 'has half a letter'}. Save the file as UTF-8.")
    return row


def _read_csv(file: Any, name: str) -> Iterator[Row | BadRow]:
    reader = csv.reader(file)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield BadRow(line, f"it is no CSV ({error}).")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _check_header(cells, name)
        elif len(cells) != len(header):
            wrong = f"it has {len(cells)} cells and the header has {len(header)}. Quote cells with commas."
            over = f" It goes on to line {reader.line_num}: a closing quote may be missing."
            yield BadRow(line, wrong + (over if reader.line_num > line else ""))
        else:
            yield Row(line, {key: cell for key, cell in zip(header, cells, strict=True) if cell.strip()})
    if header is None:
        raise Stop(f"{name} is empty. Its first line names the columns, for example: prompt,seed")


def _check_header(cells: list[str], name: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    if len(header) == 1 and re.search("[;\t]", header[0]):
        raise Stop(f"{name} has one column, '{header[0][:60]}'. Separate columns with commas.")
    twice = sorted(cell for cell, count in Counter(header).items() if count > 1)
    if twice or "" in header:
        raise Stop(f"The header of {name} has {'an empty column' if '' in header else f'{twice[0]} twice'}. Name each.")
    return header


def _read_json_lines(file: Any, name: str) -> Iterator[Row | BadRow]:
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield BadRow(line, f"it is no JSON ({error}).")
            continue
        if not isinstance(values, dict):
            yield BadRow(line, 'it is no JSON object. Write {"prompt": "a red apple", "seed": 1}.')
            continue
        yield Row(line, {key: value for key, value in values.items() if value is not None})


def _read_text(file: Any, name: str) -> Iterator[Row | BadRow]:
    for line, text in enumerate(file, 1):
        if text.strip() and not text.startswith("#"):
            yield Row(line, {"prompt": text.strip()})


def parse_seeds(text: str) -> list[int]:
    """``1,2,10-13`` as numbers, each once."""
    found: list[int] = []
    for part in filter(None, re.split(r"[\s,]+", text)):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= LARGEST_SEED:
            raise WrongUsage(f"--seeds {text} is no list of seeds: '{part}'. Write numbers from 0, such as 1,2,10-13.")
        if last - first >= MOST_SEEDS:
            raise WrongUsage(f"--seeds {text} are more than {MOST_SEEDS} seeds. Give fewer, or put them into the list.")
        found += range(first, last + 1)
    return list(dict.fromkeys(found))


def parse_grid(text: str) -> tuple[str, list[str]]:
    """``cfg=2,4,6`` or ``prompt=a cat|a dog, sleeping`` as a column and its choices."""
    name, sign, choices = text.partition("=")
    found = [choice.strip() for choice in choices.split("|" if "|" in choices else ",")]
    if not (sign and name.strip() and all(found)):
        raise WrongUsage(f"--grid {text} is no grid. Write a column and its choices, such as --grid cfg=2,4,6.")
    return name.strip(), found


class Expander:
    """Makes every picture of every row; one object reads one list."""

    def __init__(self, how: Expansion) -> None:
        self.how = how
        self._seen: dict[bytes, int] = {}
        self._files: dict[str, list[str]] = {}

    def expand(self, row: Row) -> Iterator[Row | BadRow]:
        """The pictures of ``row``, in an order in which neighbours share the most."""
        try:
            choices = self._choices(row.values)
            for cells in itertools.product(*choices.values()):
                values = dict(zip(choices, cells, strict=True))
                for copy, seed in self._seeds(values):
                    drawn = self._draw(values, copy)
                    if self.how.batched and self.how.count > 1:
                        drawn["batch_size"] = self.how.count
                    yield Row(row.line, drawn if seed is None else {**drawn, "seed": seed})
        except ValueError as error:
            yield BadRow(row.line, str(error))

    def _choices(self, values: dict[str, Any]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for name, value in values.items():
            if isinstance(value, list):
                found[name] = value
            elif name.endswith(GRID_MARK):
                found[name[: -len(GRID_MARK)]] = [choice.strip() for choice in str(value).split("|")]
            else:
                found[name] = [value]
            if not found.get(name, [0]):
                raise ValueError(f"the list of {name} is empty. Give it a value, or leave it out.")
        return {**found, **{name: list(choices) for name, choices in self.how.grid.items()}}

    def _seeds(self, values: dict[str, Any]) -> Iterator[tuple[int, int | None]]:
        given = values.get("seed")
        if self.how.seeds:
            starts: Sequence[int | None] = self.how.seeds
        elif given is not None:
            starts = [_as_seed(given)]
        else:
            starts = [None if self.how.count == 1 else self.how.first_seed]
        copies = range(1 if self.how.batched else self.how.count)
        for number, (start, copy) in enumerate(itertools.product(starts, copies)):
            yield number, None if start is None else (start + copy) % (LARGEST_SEED + 1)

    def _draw(self, values: dict[str, Any], copy: int) -> dict[str, Any]:
        """The values with one choice for each ``{a|b}`` and ``__name__``; another one for each copy of a row."""
        if not any(isinstance(value, str) and _has_wildcards(value) for value in values.values()):
            return {key: _plain(value) for key, value in values.items()}
        text = json.dumps([values, copy], sort_keys=True, ensure_ascii=False)
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        turn = self._seen[digest] = self._seen.get(digest, 0) + 1
        numbers = _numbers(f"{text}/{turn}")
        return {key: _plain(self._resolve(value, numbers)) for key, value in values.items()}

    def _resolve(self, value: Any, numbers: Iterator[int]) -> Any:
        if not isinstance(value, str):
            return value
        for _ in range(64):
            found = _CHOICE.search(value)
            if found:
                choices = found[1].split("|")
            else:
                found = _WILDCARD.search(value)
                if not found:
                    return value
                choices = self._lines(found[1])
            value = value[: found.start()] + choices[next(numbers) % len(choices)] + value[found.end() :]
        raise ValueError("its wildcards lead round in a circle. Take one of them out.")

    def _lines(self, name: str) -> list[str]:
        if name not in self._files:
            folder = self.how.wildcards
            path = None if folder is None else folder / f"{name}.txt"
            if path is None or ".." in Path(name).parts or not path.is_file():
                raise ValueError(
                    f"the wildcard __{name}__ has no file {name}.txt in {folder or 'any folder'}. "
                    "Name its folder with --wildcards."
                )
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
            self._files[name] = [line for line in lines if line and not line.startswith("#")]
        if not self._files[name]:
            raise ValueError(f"{name}.txt has no choices. Write one a line.")
        return self._files[name]


def _as_seed(value: Any) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"\d+", text) or int(text) > LARGEST_SEED:
        raise ValueError(f"its seed is '{text}'. A seed is a whole number from 0 to 2^64 - 1.")
    return int(text)


def _has_wildcards(text: str) -> bool:
    return bool(_CHOICE.search(text) or _WILDCARD.search(text))


def _plain(value: Any) -> Any:
    return re.sub(r"\\([{}|_])", r"\1", value) if isinstance(value, str) else value


def _numbers(key: str) -> Iterator[int]:
    """Numbers that follow from ``key`` on every computer."""
    for count in itertools.count():
        yield int.from_bytes(hashlib.sha256(f"{key}/{count}".encode("utf-8", "surrogatepass")).digest()[:8], "big")
