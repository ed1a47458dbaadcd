"""One run put together: what the node and the command line share, whoever encoded the pictures and the text."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..diffusion.noise import NoiseStreams
from ..diffusion.official import OFFICIAL
from ..diffusion.sampling import Guidance, pair_conditions, sample, timesteps
from ..errors import BadValues
from . import export
from .checkpoint import Store, check_target, train, write_whole
from .distributed import ALONE, Crew
from .memory import Plan, plan
from .objectives import ALL, Row, repeat_tokens
from .settings import Settings
from .tasks import TASKS, Ingredients, LoraTask
from .trainer import Trainer
from .words import Tokenizer, Word, find_words, token_ids

log = logging.getLogger(__name__)

LATENTS = ("latent", f"{ALL}latent")
STATE_COPIES = 3
"""States on the disk at once: the newest, the one before, and a draft."""


@dataclass
class Sample:
    """A prompt to watch: its row ("text" and "pooled", or "ids") and the cells of its Stage C latent."""

    prompt: str
    row: Row
    cells: tuple[int, int]


@dataclass
class Lesson:
    """Everything that a run needs. ``rows``, ``empty`` and ``samples`` are encoded, ``given`` are the models.

    repeats: how often an epoch shows each row.
    """

    settings: Settings
    identity: str
    device: torch.device
    bfloat16: bool
    rows: list[Row]
    empty: Row
    samples: list[Sample]
    given: Ingredients
    repeats: list[int] = field(default_factory=list)

    def plan(self, processes: int = 1) -> Plan:
        """The memory that a process of the run will take."""
        cells = max(math.prod(row[name].shape[-2:]) for row in self.rows for name in LATENTS if name in row)
        text = sum(value.numel() for value in self.given.text[1].values()) if self.given.text else 0
        return plan(
            self.given.kind,
            self.given.config,
            self.settings,
            device=self.device.type,
            processes=processes,
            cells=cells,
            text_parameters=text,
        )


class Run:
    """A lesson with its network, ready to train."""

    def __init__(self, lesson: Lesson, crew: Crew = ALONE) -> None:
        settings = self.settings = lesson.settings
        self.lesson, self.identity = lesson, lesson.identity
        lesson.rows = [copy_row(row) for row in lesson.rows]
        lesson.empty = copy_row(lesson.empty)
        for watched in lesson.samples:
            watched.row = copy_row(watched.row)
        task = self.task = TASKS[settings.what](lesson.given, settings, lesson.empty, lesson.device, lesson.bfloat16)
        wanted = {*task.rows, "mask", "weight", *(ALL + name for name in task.rows), f"{ALL}mask"}
        rows = [{name: value for name, value in row.items() if name in wanted} for row in lesson.rows]
        self.trainer = Trainer(task.objective, task.learned, rows, settings, crew, lesson.repeats or None)

    @property
    def net(self) -> nn.Module:
        """The network that paints: Stage C or Stage B."""
        return self.task.net

    def train(
        self,
        folder: Path,
        target: Callable[[], Path],
        on_step: Callable[[Trainer], None] | None = None,
        on_start: Callable[[Trainer], None] | None = None,
    ) -> Path:
        """Train with the state in ``folder``, and files of the way in ``folder``/checkpoints; write ``target()``.

        Both places are tried before the first step. A run that diverges writes its last good state before the error
        goes on, if that has learned anything.
        """
        every, first = self.settings.save_every, self.trainer.crew.rank == 0
        if first:
            size = sum(value.nbytes for value in self.trainer.learned.state_dict().values())
            check_target(target().parent, 2 * size)
            check_target(folder, STATE_COPIES * 3 * size)

        def on_save(trainer: Trainer) -> None:
            if trainer.step and every and trainer.step % every == 0:
                self.save(folder / "checkpoints" / f"{self.settings.name}-step{trainer.step:06d}.safetensors")
            save_losses(trainer, folder / "losses.csv")

        try:
            train(self.trainer, Store(folder, self.identity), on_step, on_save, on_start)
        except BadValues:
            if first and self.trainer.step:
                self.save(target())
            raise
        path = target()
        if first:
            self.save(path)
            save_losses(self.trainer, folder / "losses.csv")
        return path

    def save(self, path: Path) -> None:
        """Write what was learned, in the layout of the settings."""
        file = self.task.write(self.trainer.result())
        told = export.metadata(self.settings, self.identity, self.trainer.step, **file.metadata)
        export.save_tensors(file.tensors, path, told, torch.float16 if self.settings.is_lora else None)

    def comfyui(self) -> dict[str, Tensor]:
        """The result under the names that the host patches a model by, whatever layout is written."""
        return self.task.name_for_host(self.trainer.result())

    def save_words(self, folder: Path, stem: str) -> list[tuple[str, str]]:
        """Each learned word as an embedding file of its own; pairs of the word and the file's stem."""
        made = []
        vectors = self.task.word_vectors(self.trainer.result()) if isinstance(self.task, LoraTask) else []
        for word, vector in vectors:
            plain = "".join(letter for letter in word.text if letter.isalnum() or letter in "-_") or str(word.token)
            run = f"{self.identity} {word.text}"
            path = export.find_free_path(folder, f"{stem}_{plain}", run)
            export.save_tensors({"clip_g": vector[None]}, path, {"format": "pt", export.RUN: run}, torch.float32)
            made.append((word.text, path.stem))
        return made

    def paint_latents(self) -> list[Tensor]:
        """A Stage C latent (1, 16, h, w) of each watched prompt, as the network paints it now; none for Stage B."""
        lesson = self.lesson
        if lesson.given.kind != "stage_c":
            return []
        return [
            sample_latent(
                self.net,
                self.task.encode_sample(watched.row),
                lesson.empty,
                (16, *watched.cells),
                seed=self.settings.seed,
                device=lesson.device,
                bfloat16=lesson.bfloat16,
            ).cpu()
            for watched in lesson.samples
        ]


def save_losses(trainer: Trainer, path: Path) -> None:
    """The loss of every step, and that on fixed noise where it was taken, as CSV."""
    judged, text = dict(trainer.judged), io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["step", "loss", "loss on fixed noise"])
    rows.writerow([0, "", f"{judged[0]:.6g}" if 0 in judged else ""])
    for step, loss in enumerate(trainer.losses, 1):
        rows.writerow([step, f"{loss:.6g}", f"{judged[step]:.6g}" if step in judged else ""])
    write_whole(path, lambda draft: draft.write_text(text.getvalue(), encoding="utf-8"))


def parse_prompts(text: str, resolution: int, first: str) -> list[tuple[str, tuple[int, int]]]:
    """The watched prompts, one a line, each with the cells (h, w) of its latent: ``a red apple | 1024x768`` in pixels
    of the picture, by default the square of the training's resolution. ``first`` stands for an empty text."""
    found = []
    for line in text.splitlines() or [""]:
        prompt, _, size = (part.strip() for part in line.rpartition("|")) if "|" in line else (line.strip(), "", "")
        sides = [side for side in size.lower().replace("×", "x").split("x") if side.strip().isdigit()]
        side = max(1, resolution // 32)
        cells = (side, side)
        if len(sides) == 2:
            full = resolution * 4 / 3  # pixels that the model paints for what the image encoder sees
            wide, high = (max(1, round(int(pixels) / full * side)) for pixels in sides)
            cells = (high, wide)
        found.append((prompt or first, cells))
    return found


def add_words(lesson: Lesson, captions: Sequence[Sequence[str]], prompts: Sequence[str], tokenizer: Tokenizer) -> None:
    """Give ``lesson``, whose text encoder learns, the words of its settings and the token ids of all its texts."""
    words = lesson.given.words = make_words(lesson, tokenizer)
    found: list[Row] = []
    for row, lines in zip(lesson.rows, captions):
        ids = [token_ids(line, words, tokenizer) for line in lines]
        found.append({**row, **({"ids": ids[0]} if len(ids) == 1 else {f"{ALL}ids": torch.stack(ids)})})
    lesson.rows, lesson.empty = found, {**lesson.empty, "ids": token_ids("", words, tokenizer)}
    for watched, prompt in zip(lesson.samples, prompts):
        watched.row = {**watched.row, "ids": token_ids(prompt, words, tokenizer)}


def make_words(lesson: Lesson, tokenizer: Tokenizer) -> list[Word]:
    """The words of the settings."""
    text, _ = lesson.given.find_text("New words have their rows in the table of Stage C's text encoder.")
    return find_words(lesson.settings.tokens, tokenizer, text.vocab_size)


def copy_row(row: Row) -> dict[str, Tensor]:
    """A row of ordinary tensors, where it was made under inference mode."""
    return {name: value.clone() for name, value in row.items()}


@torch.no_grad()
def sample_latent(
    net: nn.Module,
    row: Row,
    empty: Row,
    shape: Sequence[int],
    *,
    seed: int = 0,
    steps: int = OFFICIAL["stage_c"].steps,
    cfg: float = OFFICIAL["stage_c"].cfg,
    shift: float = OFFICIAL["stage_c"].shift,
    device: torch.device | str = "cpu",
    bfloat16: bool = False,
) -> Tensor:
    """The Stage C latent (1, 16, h, w) of one prompt ("text", "pooled") at ``shape`` (16, h, w), sampled officially."""
    device = torch.device(device)
    text = row["text"].float()
    told = {"clip_text": text, "clip_text_pooled": row["pooled"].float()}
    untold = {"clip_text": repeat_tokens(empty["text"], len(text)), "clip_text_pooled": empty["pooled"].float()}
    cond, uncond = ({name: value[None].to(device) for name, value in part.items()} for part in (told, untold))
    start = NoiseStreams([seed]).next((1, *shape)).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        steps_made = sample(
            pair_conditions(net, cond, uncond),
            start,
            timesteps=timesteps(steps),
            shift=shift,
            guidance=Guidance(cfg),
            noise=NoiseStreams([seed], 1).next,
        )
        *_, last = steps_made
    return last.denoised.float()
