"""Seconds against distance from the exact picture, for Cache for Cascade and for fewer steps, on Cascade Mini.

    python3 dev.py run tests/benchmarks/measure_cache.py [--pictures N] [--held-out] [--rows NAME ...] [--gaps C:B ...]
                                                           [--write]

The official settings (20 + 10 steps, cfg 4 and 1.1), pictures of 256 px by the nodes in the host, on one thread of a
processor, without live previews. Seconds are processor time of Stage C, Stage B and Stage A for one picture; every
picture is painted in all rows before the next one, and the factor is the median of each picture's own, so that a busy
machine hits all rows alike. Distance is the PSNR to the exact picture, as the mean over all and as the worst of them.

The presets are chosen on captions of the kind that Mini was trained with (``--gaps`` tries others beside them, as
Stage C's gap and Stage B's, with Stage B at cfg 1); ``--held-out`` takes prompts that neither they nor Mini's training
have seen. ``--write`` puts the rows into the help page, in all languages; ``python3 dev.py run -m tools.authoring``
then writes the pages.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.append(str(Path(__file__).resolve().parents[1]))

import inprocess

BASE = inprocess.prepare()

import torch  # noqa: E402
from mini_studio import MiniStudio  # noqa: E402

from cascade_studio.nodes.host.sampling import live  # noqa: E402
from cascade_studio.stages.diffusion import reuse  # noqa: E402
from cascade_studio.stages.diffusion.reuse import CAREFUL, FAST, OFF, Rule  # noqa: E402
from tools.scenes import SHEET, Scene  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
SPLIT = REPOSITORY / "training" / "mini" / "split.json"
NUMBER = re.compile(r"[\d.]+\b")
Made = tuple[torch.Tensor, float]
"""A picture and the seconds that it took."""
KEYS = ("stage_c", "stage_b")


@dataclass(frozen=True)
class Row:
    """Settings of one row: the preset of the cache, what differs in the samplers, other rules for *fast*."""

    name: str
    preset: str
    prior: Mapping[str, Any] = field(default_factory=dict)
    decoder: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[str, Rule] | None = None


ROWS = (
    Row("off", OFF),
    Row("off, Stage B at cfg 1", OFF, decoder={"cfg": 1.0}),
    Row("careful", CAREFUL),
    Row("careful, Stage B at cfg 1", CAREFUL, decoder={"cfg": 1.0}),
    Row("fast", FAST),
    Row("fast, Stage B at cfg 1", FAST, decoder={"cfg": 1.0}),
    Row("off, 10 + 5 steps", OFF, prior={"steps": 10}, decoder={"steps": 5}),
)


def paint_row(studio: MiniStudio, row: Row, prompt: str, seed: int) -> Made:
    """The picture (1, H, W, 3) of one row and the processor time of its three stages."""
    prior, decoder = (
        studio.call("CascadeStudio_Cache", model=part, preset=row.preset)
        for part in (studio.parts.prior, studio.parts.decoder)
    )
    given = {"positive": studio.text(prompt), "negative": studio.negative, "seed": seed}
    canvas = studio.canvas()[0]
    with trying(row.rules):
        started = time.process_time()
        c = studio.sample_prior(canvas, model=prior, **{**given, **row.prior})
        b = studio.sample_decoder(c, model=decoder, **{**given, **row.decoder})
        picture = studio.call("CascadeStudio_DecodeStageA", latent=b, vae=studio.parts.stage_a)
        return picture, time.process_time() - started


def psnr(picture: torch.Tensor, exact: torch.Tensor) -> float:
    """Decibels, of pictures in 0 to 1."""
    return float(-10 * torch.log10((picture - exact).square().mean().clamp(min=1e-12)))


def read_held_out(count: int) -> list[str]:
    """``count`` of the prompts that Mini's training held out."""
    prompts = json.loads(SPLIT.read_text(encoding="utf-8"))["prompts"]
    return [each["prompt"] for each in prompts[:: max(1, len(prompts) // count)]][:count]


def list_prompts(count: int) -> list[str]:
    """Up to 144 prompts of what Mini was trained with: the sheet's subjects, on the background of each in turn."""
    backgrounds = [scene.background for scene in SHEET]
    scenes = (
        Scene(scene.subject, backgrounds[(at + turn) % len(SHEET)])
        for turn in range(len(SHEET))
        for at, scene in enumerate(SHEET)
    )
    return list(dict.fromkeys(scene.prompt for scene in scenes))[:count]


def read_rules(text: str) -> dict[str, Rule]:
    """The rules of both stages, from ``C:B``, each a gap, and behind commas maybe a slope and a power."""
    return {key: Rule(*map(float, part.split(","))) for key, part in zip(KEYS, text.split(":"), strict=True)}


@contextmanager
def trying(rules: Mapping[str, Rule] | None) -> Iterator[None]:
    """The preset *fast* means ``rules`` inside."""
    before = {key: dict(reuse.RULES[key]) for key in KEYS}
    for key, rule in (rules or {}).items():
        reuse.RULES[key][FAST] = rule
    try:
        yield
    finally:
        reuse.RULES.update(before)


def replace_numbers(cells: str, row: str) -> str:
    """``cells``, a row of the table in some language, with the numbers of ``row`` behind its name and its own mark of
    decimals."""
    new = iter(row.split(" | ")[1:])
    first, *rest = cells.split(" | ")
    mark = "," if any(re.match(r"\d+,\d", cell) for cell in rest) else "."
    numbers = (number.replace(".", mark) if NUMBER.match(number) else "" for number in new)
    return " | ".join([first, *(number or cell for cell, number in zip(rest, numbers, strict=True))])


def write_rows(rows: Sequence[str]) -> None:
    """Put ``rows`` of the table in the place of those with their names, in the help page and in all word lists."""
    page = REPOSITORY / "web" / "docs" / "CascadeStudio_Cache.md"
    by_name = {row.partition(" | ")[0]: row for row in rows}

    def renew(text: str) -> str:
        name, *cells = text.split(" | ")
        return by_name.get(name, text) if len(cells) == 4 else text

    page.write_text("\n".join(map(renew, page.read_text(encoding="utf-8").split("\n"))), encoding="utf-8")
    for path in sorted((REPOSITORY / "tools" / "words").glob("*.json")):
        words = json.loads(path.read_text(encoding="utf-8"))
        texts = {
            renew(text): replace_numbers(said, renew(text)) if renew(text) != text else said
            for text, said in words["texts"].items()
        }
        words["texts"] = dict(sorted(texts.items()))
        path.write_text(json.dumps(words, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def describe_row(row: Row, made: Sequence[Made], exact: Sequence[Made]) -> str:
    """A line of the table."""
    seconds = statistics.median(took for _, took in made)
    factor = statistics.median(right / took for (_, took), (_, right) in zip(made, exact, strict=True))
    near = [psnr(picture, right) for (picture, _), (right, _) in zip(made, exact, strict=True)]
    far = "exact | exact" if row.name == "off" else f"{statistics.mean(near):.1f} | {min(near):.1f}"
    return f"| {row.name} | {seconds:.2f} | {factor:.2f} | {far} |"


def choose_rows(options: argparse.Namespace) -> list[Row]:
    """The rows that were asked for, the exact one first."""
    wanted = [row for row in ROWS if not options.rows or row.name in ("off", *options.rows)]
    tried = [Row(f"fast at {gaps}", FAST, decoder={"cfg": 1.0}, rules=read_rules(gaps)) for gaps in options.gaps]
    return [*(wanted if options.rows or not tried else wanted[:1]), *tried]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=6, help="how many prompts, each with a seed of its own")
    parser.add_argument("--held-out", action="store_true", help="other prompts: Mini's held-out ones, evenly spread")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], help="only these and 'off'")
    parser.add_argument("--gaps", nargs="+", default=[], help="rules to try as well, without the other rows but 'off'")
    parser.add_argument("--write", action="store_true", help="put the rows into the help page and its translations")
    options = parser.parse_args()
    studio = MiniStudio(inprocess.Host(BASE))
    torch.set_num_threads(1)
    prompts = (read_held_out if options.held_out else list_prompts)(options.pictures)
    rows, found = choose_rows(options), []
    with mock.patch.object(live, "find_choice", lambda: "none"):
        for seed, prompt in enumerate([prompts[0], *prompts]):
            found.append([paint_row(studio, row, prompt, max(1, seed)) for row in rows])
    del found[0]  # it loaded the models
    sys.stdout.write("| cache | seconds | times as fast | PSNR dB, mean | worst |\n| --- | --- | --- | --- | --- |\n")
    told = [describe_row(row, [made[at] for made in found], [made[0] for made in found]) for at, row in enumerate(rows)]
    sys.stdout.write("".join(f"{row}\n" for row in told))
    if options.write:
        write_rows(told)


if __name__ == "__main__":
    main()
