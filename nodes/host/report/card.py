"""The report card: what each stage did, how long it took and with which files, beside the latent it travels with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management
import comfy.utils

from ....stages.errors import CascadeError
from ....stages.files.header import read_header
from ....stages.units import GB, GIB
from ...checkpoints.catalogue import Catalogue
from ...checkpoints.hashes import CHUNK
from ..files import names
from .facts import NO_FACTS, Addition, Facts
from .measure import Taken

REPORT = "cascade_studio_report"
"""Key in a latent, and in a node's ui, under which the reports of the stages so far stand in order."""

SEEDS = 2**64
"""Seeds are counted up to this, and then from 0 again."""


@dataclass(frozen=True)
class StageReport:
    """One stage's work. Two reports of the same work are equal, however long it took.

    unit: of width and height; settings: names and values as the node shows them; weights: path of the model's file, or
    None where a node made the model; patched: how many of its weights a LoRA or a merge changes; places: of each
    picture in the batch that it was sampled in, which its seed follows; empty for 0, 1, 2 and so on.
    """

    stage: str
    width: int
    height: int
    pictures: int
    unit: str = "px"
    settings: tuple[tuple[str, Any], ...] = ()
    weights: str | None = None
    patched: int = 0
    places: tuple[int, ...] = ()
    seconds: float = field(default=0.0, compare=False)
    peak_memory: int | None = field(default=None, compare=False)

    def with_measured(self, taken: Taken) -> StageReport:
        """The same with what was measured."""
        return replace(self, seconds=taken.seconds, peak_memory=taken.peak_memory)

    def setting(self, name: str) -> Any:
        """The value of one setting, or None."""
        return dict(self.settings).get(name)

    def place(self, index: int) -> int:
        """The place of picture ``index`` in the batch that it was sampled in."""
        return self.places[index % len(self.places)] if self.places else index

    def seed(self, index: int) -> int | None:
        """The seed of picture ``index``, which makes it alone; that of the batch where all share one noise."""
        varied = self.setting("variation_strength")
        base = self.setting("variation_seed" if varied else "seed")
        if base is None or self.setting("noise"):
            return base  # one generator for the whole batch, which no single picture can start at
        return (base + self.place(index)) % SEEDS

    def for_picture(self, index: int) -> StageReport:
        """The same for one picture of the batch: its own seed, and its place."""
        seed, key = self.seed(index), "variation_seed" if self.setting("variation_strength") else "seed"
        settings = tuple((name, seed if name == key else value) for name, value in self.settings)
        return replace(self, pictures=1, places=(self.place(index),), settings=settings)

    def tells_seeds(self, seeds: Sequence[int | None]) -> bool:
        """Whether the pictures have other seeds than the one that was set."""
        set_one = self.setting("variation_seed" if self.setting("variation_strength") else "seed")
        return any(seed not in (set_one, None) for seed in seeds)

    def pick_places(self, places: Sequence[int]) -> StageReport:
        """The same for the pictures at ``places`` of the batch."""
        return replace(self, pictures=len(places), places=tuple(places))

    def as_dict(self) -> dict[str, Any]:
        """For the user interface and for files: plain values, and the file's name without its folder."""
        return {
            "stage": self.stage,
            "width": self.width,
            "height": self.height,
            "unit": self.unit,
            "pictures": self.pictures,
            "places": [self.place(index) for index in range(self.pictures)],
            **dict(self.settings),
            "model": strip_folder(self.weights),
            "patched_weights": self.patched,
            "seconds": round(self.seconds, 3),
            "peak_memory": self.peak_memory,
        }

    def describe(self) -> str:
        """One line."""
        settings = ", ".join(f"{name.replace('_', ' ')} {format_setting(value)}" for name, value in self.settings)
        memory = "" if self.peak_memory is None else f", peak memory {self.peak_memory / GIB:.2f} GiB"
        patched = f", {self.patched} weights changed by LoRAs or merging" if self.patched else ""
        of = f"{self.pictures} × " if self.pictures > 1 else ""
        seeds = [self.seed(index) for index in range(self.pictures)]
        own = f" (seeds of the pictures: {', '.join(map(str, seeds))})" if self.tells_seeds(seeds) else ""
        told = f"{self.stage}: {of}{self.width} × {self.height} {self.unit}{', ' if settings else ''}{settings}{own}"
        return f"{told}{patched}: {self.seconds:.2f} s{memory}."


Reports = tuple[StageReport, ...]
STAGE_INPUTS = {"Stage C": "prior", "Stage B": "decoder", "Stage A": "stage_a"}


def format_setting(value: Any) -> str:
    """A setting's value without needless digits."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def strip_folder(path: str | None) -> str | None:
    """The name of a file without its folder."""
    return None if path is None else os.path.basename(path)


def find_reports(latent: dict[str, Any] | None) -> Reports:
    """The reports that a latent carries, for the pictures that are left in it; none where another node made it."""
    reports = tuple(each for each in (latent or {}).get(REPORT, ()) if isinstance(each, StageReport))
    if not reports:
        return ()
    places = find_batch_places(latent)
    return tuple(
        report if [report.place(index) for index in range(report.pictures)] == places else report.pick_places(places)
        for report in reports
    )


def find_batch_places(latent: dict[str, Any]) -> list[int]:
    """The place of each picture in the batch that it was sampled in."""
    count = latent["samples"].shape[0]
    given = list(latent.get("batch_index") or [])
    return (given + list(range(count)))[:count]


def attach_reports(latent: dict[str, Any], *reports: StageReport) -> dict[str, Any]:
    """A copy of ``latent`` that carries ``reports``."""
    return {**latent, REPORT: reports}


def show_report(report: StageReport) -> dict[str, Any]:
    """What a node sends to the user interface about its own work."""
    return {REPORT: [report.as_dict()]}


def find_weights_path(patcher: Any) -> str | None:
    """The file that a model was loaded from, by us or by core: both note it for loading it a second time."""
    factory = getattr(patcher, "cached_patcher_init", None)
    paths = [value for value in (factory[1] if factory else ()) if isinstance(value, str) and os.path.isabs(value)]
    return paths[0] if paths else None


@dataclass(frozen=True)
class ModelFile:
    """A model's file: name, size in bytes, SHA-256 (None if it was not asked for), licence, and its loader's input."""

    name: str
    size: int
    sha256: str | None
    licence: str
    role: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For the card's JSON."""
        return {
            "name": self.name,
            "input": self.role,
            "bytes": self.size,
            "sha256": self.sha256,
            "licence": self.licence,
        }

    def describe(self) -> str:
        """One line."""
        digest = f", SHA-256 {self.sha256}" if self.sha256 else ""
        size = f"{self.size / GB:.2f} GB" if self.size >= GB // 10 else f"{self.size / 1000**2:.1f} MB"
        return f"{self.name}: {size}{digest}. Licence: {self.licence}."


def list_model_files(reports: Iterable[StageReport], hashes: bool, facts: Facts = NO_FACTS) -> dict[str, ModelFile]:
    """The files behind ``reports`` and ``facts`` by path, each once; a file that is gone by now is left out."""
    stages = {report.weights: STAGE_INPUTS.get(report.stage, "") for report in reports if report.weights}
    roles = {**stages, **{path: role for path, role in facts.files.items() if path not in stages}}
    paths, known = [path for path in roles if os.path.isfile(path)], names.usable_catalogue()
    digests = hash_files(paths) if hashes else {}
    return {
        path: ModelFile(
            os.path.basename(path),
            os.path.getsize(path),
            digests.get(path),
            find_licence(path, digests.get(path), known),
            roles[path],
        )
        for path in paths
    }


def hash_files(paths: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of each file. Those not seen before are read once, under the node's progress bar and its Cancel."""
    bar = comfy.utils.ProgressBar(max(1, sum(os.path.getsize(path) for path in paths) // CHUNK))

    def tick() -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update(1)

    cache = names.hashes()
    return {path: cache.sha256(path, tick) for path in paths}


def find_licence(path: str, digest: str | None, known: Catalogue) -> str:
    """The licence: of the published file with this hash, else as the file says, else of the published file so named."""
    name, size = os.path.basename(path).lower(), os.path.getsize(path)
    for entry in known.entries.values():
        if digest and entry.sha256 == digest:
            return entry.licence.describe()
    told = read_licence(path)
    if told:
        return told
    for entry in known.entries.values():
        if name in entry.known_names and entry.bytes in (None, size):
            return entry.licence.describe()
    return "unknown; ask whoever published the file"


def read_licence(path: str) -> str | None:
    """What a safetensors file says of its licence, under the usual names."""
    try:
        metadata = read_header(path).metadata
    except (CascadeError, OSError):
        return None
    return next((metadata[key] for key in ("modelspec.license", "license", "licence") if metadata.get(key)), None)


def make_card(
    reports: Reports, size: tuple[int, int, int] | None, facts: Facts, files: Mapping[str, ModelFile], index: int
) -> dict[str, Any]:
    """The whole report on picture ``index`` of a batch as plain values.

    size: (pictures, width, height) of the finished pictures, if known; files: those of :func:`list_model_files`.
    """
    picture = None if size is None else {**dict(zip(("pictures", "width", "height"), size)), "number": index + 1}
    return {
        "version": 2,
        "picture": picture,
        "prompt": list(facts.positive),
        "negative_prompt": list(facts.negative),
        "loras": [describe_addition(each, files) for each in facts.loras],
        "controlnets": [describe_addition(each, files) for each in facts.controlnets],
        "seconds": round(sum(report.seconds for report in reports), 3),
        "stages": [report.for_picture(index).as_dict() for report in reports],
        "models": [file.as_dict() for file in files.values()],
        "recipe": {"nodes": facts.nodes, "picture": facts.picture},
    }


def describe_addition(addition: Addition, files: Mapping[str, ModelFile]) -> dict[str, Any]:
    """A LoRA or ControlNet as plain values: file, hash and the settings that it has in its node."""
    file = files.get(addition.path)
    return {"name": os.path.basename(addition.path), "sha256": file.sha256 if file else None, **dict(addition.settings)}


def write_card(
    reports: Reports, size: tuple[int, int, int] | None, facts: Facts, files: Mapping[str, ModelFile]
) -> str:
    """The whole report in lines to read."""
    lines = []
    if size is not None:
        lines.append(f"Picture: {size[0]} of {size[1]} × {size[2]} px.")
    for title, texts in (("Prompt", facts.positive), ("Negative prompt", facts.negative)):
        lines += [f"{title}: {text}" for text in texts if text.strip()]
    for title, additions in (("LoRA", facts.loras), ("ControlNet", facts.controlnets)):
        for each in additions:
            settings = ", ".join(f"{name.replace('_', ' ')} {format_setting(value)}" for name, value in each.settings)
            lines.append(f"{title}: {os.path.basename(each.path)}, {settings}.")
    lines += [report.describe() for report in reports]
    if len(reports) > 1:
        lines.append(f"Together: {sum(report.seconds for report in reports):.2f} s.")
    lines += [file.describe() for file in files.values()]
    return "\n".join(lines)
