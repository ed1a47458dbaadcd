"""The pictures and words that Mini learns from: fetched with the npm client, chosen, drawn and kept outside the clone.

One style (Fluent 3D) is what Stage C paints; the others only broaden the encoder, Stage B and Stage A. Every style
becomes one array of 256 x 256 RGBA pictures with premultiplied alpha, in the order of ``split.json``.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cascade_studio.commands.places import cache_root
from tools.cache import is_complete, mark_complete, sha256

from .captions import HELD_TEMPLATES, join_caption
from .sizes import SIDE
from .subjects import COLOURS, LANGUAGES, PLAIN, Subject

log = logging.getLogger(__name__)

SPLIT = Path(__file__).with_name("split.json")
SEED = 20261123
HELD_PROMPTS, HELD_PAIRS = 200, 2
MAIN = "fluent"
DUPLICATE = 0.012
"""Subjects whose 32 x 32 pictures differ by less, on average, are one subject: no prompt could tell them apart."""

PACKAGES = {  # name: (version, licence of the pictures or words)
    "@lobehub/fluent-emoji-3d": ("1.1.0", "MIT (Microsoft Fluent Emoji)"),
    "emojibase-data": ("17.0.0", "MIT"),
    "@iconify-json/noto": ("1.2.9", "Apache-2.0 (Google Noto Emoji)"),
    "@iconify-json/twemoji": ("1.2.5", "CC-BY-4.0 (Twemoji)"),
    "@iconify-json/openmoji": ("1.2.29", "CC-BY-SA-4.0 (OpenMoji)"),
    "@iconify-json/fluent-emoji-flat": ("1.2.6", "MIT (Microsoft Fluent Emoji)"),
}
OTHER_STYLES = ("noto", "twemoji", "openmoji", "fluent-emoji-flat")
RASTERISER = "@resvg/resvg-js@2.6.2"

EXCLUDED_GROUPS = {-1, 2, 8, 9}  # letters, components, symbols and buttons, flags
EXCLUDED_SUBGROUPS = {"family"}
CLOCKS = range(0x1F550, 0x1F568)


def is_there(pictures: np.ndarray) -> np.ndarray:
    """Which of ``pictures`` (N, H, W, 4) show anything, (N,) bool: not every style has every subject."""
    return pictures[:, ::16, ::16, 3].any(axis=(1, 2))


def data_folder() -> Path:
    """Where packages and arrays are kept."""
    return cache_root() / "mini-data"


# Fetching


def _npm(*arguments: str, cwd: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("The training recipe fetches its pictures with npm, which was not found. Install Node.js.")
    subprocess.run([npm, *arguments, "--silent"], cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def package(name: str) -> Path:
    """The unpacked npm package ``name`` at its pinned version, fetched on first use."""
    version = PACKAGES[name][0]
    stem = f"{name.lstrip('@').replace('/', '-')}-{version}"
    folder = data_folder() / stem
    if not is_complete(folder):
        folder.mkdir(parents=True, exist_ok=True)
        archive = data_folder() / f"{stem}.tgz"
        if not archive.is_file():
            _npm("pack", f"{name}@{version}", cwd=data_folder())
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        mark_complete(folder, sha256(archive))
    return folder / "package"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _bare(code: str) -> str:
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


# Choosing


def _candidates() -> list[dict[str, Any]]:
    words = package("emojibase-data")
    subgroups = _read(words / "meta" / "groups.json")["subgroups"]
    pictures = fluent_files()
    kept = []
    for entry in sorted(_read(words / "en" / "data.json"), key=lambda e: e.get("order", 0)):
        code = _bare(entry["hexcode"])
        if (
            entry.get("group", -1) in EXCLUDED_GROUPS
            or code not in pictures
            or subgroups[str(entry["subgroup"])] in EXCLUDED_SUBGROUPS
            or int(code.split("-")[0], 16) in CLOCKS
            or "facing right" in entry["label"]
        ):
            continue
        kept.append({"code": code, "tags": entry.get("tags", [])})
    return kept


def fluent_files() -> dict[str, Path]:
    """Fluent 3D pictures by code point sequence, without variation selectors."""
    folder = package("@lobehub/fluent-emoji-3d") / "assets"
    return {_bare(path.stem): path for path in folder.glob("*.webp")}


def _without_duplicates(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    files, kept, seen = fluent_files(), [], []
    for entry in entries:
        picture = Image.open(files[entry["code"]]).convert("RGBa").resize((32, 32), Image.BOX)
        small = np.asarray(picture, np.float32) / 255
        if seen and np.abs(np.stack(seen) - small).mean(axis=(1, 2, 3)).min() < DUPLICATE:
            continue
        seen.append(small)
        kept.append(entry)
    return kept


def make_split() -> dict[str, Any]:
    """Subjects, held-out pairs and held-out prompts, all from ``SEED``; written to ``split.json`` before training."""
    entries = _without_duplicates(_candidates())
    labels = {
        language: {
            _bare(e["hexcode"]): e["label"].lower() for e in _read(package("emojibase-data") / language / "data.json")
        }
        for language in LANGUAGES
    }
    rng = random.Random(SEED)
    named = [colour for colour in COLOURS if colour != PLAIN]
    subjects = [
        {
            "code": e["code"],
            "labels": {lang: labels[lang][e["code"]] for lang in LANGUAGES},
            "tags": [str(tag).lower() for tag in e["tags"]],
            "held": sorted(rng.sample(named, HELD_PAIRS)),
        }
        for e in entries
    ]
    prompts = []
    for index in sorted(rng.sample(range(len(subjects)), HELD_PROMPTS)):
        colour = rng.choice(subjects[index]["held"])
        fragments = rng.choice(HELD_TEMPLATES)
        prompts.append(
            {
                "prompt": join_caption(fragments, subjects[index]["labels"]["en"], colour),
                "subject": index,
                "background": colour,
                "seed": rng.randrange(2**32),
            }
        )
    return {
        "seed": SEED,
        "packages": {name: list(pin) for name, pin in PACKAGES.items()},
        "subjects": subjects,
        "prompts": prompts,
    }


def write_split() -> None:
    """Write ``split.json``, one subject or prompt a line."""
    split = make_split()
    parts = [f'"seed": {split["seed"]}', f'"packages": {json.dumps(split["packages"])}']
    for name in ("subjects", "prompts"):
        lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in split[name])
        parts.append(f'"{name}": [\n{lines}\n]')
    SPLIT.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    log.info("%s: %d subjects, %d held-out prompts", SPLIT.name, len(split["subjects"]), len(split["prompts"]))


def read_split() -> tuple[list[Subject], list[dict[str, Any]]]:
    """Subjects and held-out prompts."""
    split = _read(SPLIT)
    subjects = [Subject(s["code"], s["labels"], tuple(s["tags"]), tuple(s["held"])) for s in split["subjects"]]
    return subjects, split["prompts"]


# Drawing


def pictures(style: str = MAIN) -> np.ndarray:
    """(subjects, 256, 256, 4) uint8 with premultiplied alpha, memory-mapped; all zero where a style lacks a subject."""
    path = data_folder() / f"{style}-{sha256(SPLIT)[:12]}.npy"
    if not path.is_file():
        subjects, _ = read_split()
        array = np.zeros((len(subjects), SIDE, SIDE, 4), np.uint8)
        if style == MAIN:
            files = fluent_files()
        else:
            files = _raster(style)
        for index, subject in enumerate(subjects):
            if subject.code in files:
                image = Image.open(files[subject.code]).convert("RGBA").convert("RGBa")
                array[index] = np.asarray(image.resize((SIDE, SIDE), Image.LANCZOS))
        draft = path.with_suffix(".new.npy")
        np.save(draft, array)
        draft.replace(path)
        log.info("%s: %d of %d subjects", style, int(array.any(axis=(1, 2, 3)).sum()), len(subjects))
    return np.load(path, mmap_mode="r")


def _raster(style: str) -> dict[str, Path]:
    """Draw the vector pictures of an iconify package at 256 px; PNG files by code."""
    source = package(f"@iconify-json/{style}")
    target = data_folder() / f"{style}-png"
    if not is_complete(target):
        tool = data_folder() / "raster"
        if not (tool / "node_modules").is_dir():
            tool.mkdir(parents=True, exist_ok=True)
            _npm("install", "--no-audit", "--no-fund", "--prefix", str(tool), RASTERISER, cwd=data_folder())
        icons, chars = _read(source / "icons.json"), _read(source / "chars.json")
        jobs = {}
        for code, name in chars.items():
            icon = icons["icons"].get(name)
            if icon is not None:
                width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
                jobs[_bare(code)] = (
                    '<svg xmlns="http://www.w3.org/2000/svg" '
                    'xmlns:xlink="http://www.w3.org/1999/xlink" '
                    f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
                )
        target.mkdir(exist_ok=True)
        wanted = {subject.code for subject in read_split()[0]}
        _draw(tool, target, {code: svg for code, svg in jobs.items() if code in wanted})
        mark_complete(target, style)
    return {path.stem: path for path in target.glob("*.png")}


def _draw(tool: Path, target: Path, jobs: dict[str, str]) -> None:
    """Draw ``jobs`` {code: svg}. A picture that the rasteriser dies of is left out, and drawing goes on after it."""
    current = target / "current"
    while jobs:
        (target / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
        command = ["node", str(Path(__file__).with_name("raster.js")), str(tool), str(target), str(SIDE)]
        if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0:
            break
        failed = current.read_text(encoding="utf-8")
        log.warning("%s: %s cannot be drawn", target.name, failed)
        jobs = {code: svg for code, svg in jobs.items() if code != failed and not (target / f"{code}.png").is_file()}
    (target / "jobs.json").unlink(missing_ok=True)
    current.unlink(missing_ok=True)
