"""What 16 numbers a cell can say at all: python3 dev.py run -m training.mini.linear_codes --work DIR

The image encoder and its decoder have to be trained; the best linear code of a cell needs none: the sixteen directions
in which the cells of pictures differ most (principal components), and a linear decoder that sees a cell and its eight
neighbours. What it reaches is a bar for what is trained: PSNR inside the subject, and what the judge tells right, on
backgrounds that neither saw.
"""

from __future__ import annotations

import argparse
import logging
import random
from pathlib import Path

import torch
from torch import Tensor

from .autoencoders import psnr
from .codes import LinearCode
from .compose import PAINTED
from .data import SEED
from .evaluate import DECODED
from .judge import at_sight, first_five, load_judge, measure_told
from .loop import Place, grid, save_sheet
from .scenes import Scenes
from .sizes import NEXT

log = logging.getLogger(__name__)

GRIDS = (6, 8, 12, 16)
STRONGEST = (3, 4, 6, 8, 12)
"""Of the sixteen numbers of a cell of :data:`~.sizes.NEXT`'s grid: what those say alone."""
LEARNED = 400
"""Pictures to learn from."""


def main() -> None:
    """Measure every grid and print the table."""
    parser = argparse.ArgumentParser(prog="training.mini.linear_codes", description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="the recipe's work folder, with a judge in it")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)
    place = Place(options.work, torch.device("cpu"), seed=SEED)
    learned = Scenes(random.Random(SEED), shades=0.1, **PAINTED).batch(LEARNED).rgb
    scenes = Scenes(random.Random(SEED + 1), **PAINTED)
    batch, judge = scenes.batch(DECODED, held=True), load_judge(place, len(scenes.subjects))
    rows, shown = [], [batch.rgb[:10]]

    def measure(name: str, alone: Tensor, made: Tensor) -> None:
        told = measure_told(first_five(judge, at_sight(made), place.device), batch.subjects)
        rows.append(
            f"| {name} | {psnr(alone, batch.rgb, batch.alpha):.1f} | {psnr(made, batch.rgb, batch.alpha):.1f} | "
            f"{100 * told['top-1']:.1f} % | {100 * told['top-5']:.1f} % |"
        )
        log.info("%s", rows[-1])
        shown.append(made[:10])

    for cells in GRIDS:
        code = LinearCode(learned, cells)
        said = code.encode(batch.rgb)
        measure(f"{cells} x {cells}", code.decode_alone(said), code.decode(said))
        for count in STRONGEST if cells == NEXT.cells else ():
            told = torch.cat([torch.zeros_like(said[:, :-count]), said[:, -count:]], 1)
            measure(f"{cells} x {cells}, the strongest {count}", code.decode_alone(told), code.decode(told))
    save_sheet(grid(torch.cat(shown), 10), place.work / "sheets" / "linear_codes.png")
    head = "| grid | dB, a cell alone | dB, with its neighbours | top-1 | top-5 |\n| --- | --- | --- | --- | --- |"
    log.info("\n%s\n%s", head, "\n".join(rows))


if __name__ == "__main__":
    main()
