"""What stays beside the pictures: a table of results, and contact sheets to choose from."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path

from .manifest import DONE, Manifest
from .results import SHEET, TABLE, OutputFolder

COLUMNS = ("line", "state", "file", "seconds", "worker", "failures", "sha256", "error")
SIDE, GAP, STRIP, ACROSS, DOWN = 192, 8, 18, 8, 8
PAPER, INK = (24, 24, 24), (220, 220, 220)
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def write_table(manifest: Manifest) -> Path:
    """``results.csv``: a line for every file, with the values of its row."""
    names: dict[str, None] = {}
    for (text,) in manifest.iterate('SELECT "values" FROM rows'):
        names.update(dict.fromkeys(json.loads(text)))
    own = [name for name in names if not name.startswith("#")]
    path, part = manifest.folder / TABLE, manifest.folder / f".{TABLE}"
    with open(part, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow([*COLUMNS, *own])
        for line, state, name, seconds, worker, failures, digest, error, text in manifest.iterate(
            'SELECT line, state, files.name, seconds, worker, failures, sha256, error, "values" FROM rows '
            "LEFT JOIN files USING(key) ORDER BY line, position, number"
        ):
            values = json.loads(text)
            known = [line, state, name, None if seconds is None else round(seconds, 3), worker, failures, digest, error]
            table.writerow([*known, *(values.get(column, "") for column in own)])
    part.replace(path)
    return path


def write_sheets(manifest: Manifest, store: OutputFolder, most: int) -> list[Path]:
    """``sheet_1.jpg`` and on: ``ACROSS`` by ``DOWN`` small pictures each, at most ``most`` pictures in all."""
    from PIL import Image, ImageDraw, ImageFont

    for old in manifest.folder.glob(f"{SHEET}*.jpg"):
        if old.stem[len(SHEET) :].isdigit():
            old.unlink()
    files = manifest.iterate(
        "SELECT line, files.name FROM rows JOIN files USING(key) WHERE state=? ORDER BY line, position, number", DONE
    )
    found = list(itertools.islice(((line, name) for line, name in files if name.lower().endswith(PICTURES)), most))
    font, paths, page = ImageFont.load_default(), [], ACROSS * DOWN
    for start in range(0, len(found), page):
        part = found[start : start + page]
        rows = -(-len(part) // ACROSS)
        size = (min(len(part), ACROSS) * (SIDE + GAP) + GAP, rows * (SIDE + STRIP + GAP) + GAP)
        sheet = Image.new("RGB", size, PAPER)
        drawn = ImageDraw.Draw(sheet)
        for number, (line, name) in enumerate(part):
            left, top = GAP + number % ACROSS * (SIDE + GAP), GAP + number // ACROSS * (SIDE + STRIP + GAP)
            try:
                with Image.open(io.BytesIO(store.read(name))) as picture:
                    picture.thumbnail((SIDE, SIDE))
                    sheet.paste(picture.convert("RGB"), (left + (SIDE - picture.width) // 2, top))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                name = f"{name} cannot be read"
            caption = f"{line}  {Path(name).stem}"[:32].encode("latin-1", "replace").decode("latin-1")
            drawn.text((left, top + SIDE + 3), caption, fill=INK, font=font)
        paths.append(manifest.folder / f"{SHEET}{start // page + 1}.jpg")
        sheet.save(paths[-1], quality=88)
    return paths
