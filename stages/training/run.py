"""One run put together: what the node and the command line share, whoever encoded the pictures and the text."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import BadValues, WrongInput
from ..nets.encoder import EncoderConfig
from . import export
from .checkpoint import Store, check_target, train
from .distributed import ALONE, Crew
from .heap import return_memory
from .memory import Plan, plan
from .objectives import ALL, Row
from .paint import sample_latent
from .seeding import generator
from .settings import Settings
from .tasks import TASKS, Ingredients, LoraTask
from .trainer import Trainer
from .watch import Board, save_losses
from .words import Tokenizer, Word, find_words, token_ids

log = logging.getLogger(__name__)

LATENTS = ("latent", f"{ALL}latent")
SIZED = re.compile(r"(.*)\|\s*([0-9]{1,5})\s*[xX×]\s*([0-9]{1,5})\s*")
"""A prompt with the width and the height of its picture."""
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

    repeats: how often an epoch shows each row. pictures: how many there are, where rows show them at several sizes.
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
    pictures: int = 0

    def plan(self, processes: int = 1) -> Plan:
        """The memory that a process of the run will take."""
        cells = max(math.prod(row[name].shape[-2:]) for row in self.rows for name in LATENTS if name in row)
        cells = -(-cells // self.given.config.patch_size**2)
        return plan(
            self.given.kind,
            self.given.config,
            self.settings,
            device=self.device.type,
            processes=processes,
            cells=cells,
            text=self.given.text[0] if self.given.text else None,
            trunk=self.given.encoder[0] if self.given.encoder else EncoderConfig(),
            bfloat16=self.bfloat16,
            pictures=sum(value.nbytes for row in self.rows for value in row.values()),
        )


class Run:
    """A lesson with its network, ready to train."""

    def __init__(self, lesson: Lesson, crew: Crew = ALONE) -> None:
        settings = self.settings = lesson.settings
        self.lesson, self.identity = lesson, lesson.identity
        if lesson.rows and all("weight" in row and not row["weight"].any() for row in lesson.rows):
            raise WrongInput(
                "All pictures have the weight 0, so nothing would be learned. Give a folder a weight above 0."
            )
        lesson.rows = [copy_row(row) for row in lesson.rows]
        lesson.empty = copy_row(lesson.empty)
        for watched in lesson.samples:
            watched.row = copy_row(watched.row)
        task = self.task = TASKS[settings.what](lesson.given, settings, lesson.empty, lesson.device, lesson.bfloat16)
        wanted = {*task.rows, "mask", "weight", *(ALL + name for name in task.rows), f"{ALL}mask"}
        rows = [{name: value for name, value in row.items() if name in wanted} for row in lesson.rows]
        count = lesson.pictures or len(rows)
        apart = choose_held(count, settings.held_out, settings.seed)
        held = {number for number in range(len(rows)) if number % count in apart}
        self.trainer = Trainer(
            task.objective, task.learned, rows, settings, crew, lesson.repeats or None, held, task.shares
        )

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
        on_prepare: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Train with the state in ``folder``; write ``target()``.

        Files of the way go into ``folder``/checkpoints, or with list_steps into a folder of the run's name beside the
        target. Both places are tried before the first step. A run that diverges writes its last good state before the
        error goes on, if that has learned anything. ``on_prepare(done, of)`` follows what comes before the first step
        (:meth:`.Task.prepare`).
        """
        settings, first = self.settings, self.trainer.crew.rank == 0
        way = target().parent / settings.name if settings.list_steps else folder / "checkpoints"
        if first:
            size = sum(value.nbytes for value in self.trainer.learned.state_dict().values())
            check_target(target().parent, 2 * size)
            check_target(folder, STATE_COPIES * 3 * size)
        board: list[Board] = []

        def on_save(trainer: Trainer) -> None:
            if trainer.step and settings.save_every and trainer.step % settings.save_every == 0:
                self.save(export.find_free_path(way, f"{settings.name}-step{trainer.step:06d}", self.identity))
            save_losses(trainer, folder / "losses.csv")

        def prepare(trainer: Trainer) -> None:
            self.task.prepare(trainer, on_prepare or (lambda done, of: None))
            trainer.start_average()

        def begin(trainer: Trainer) -> None:
            board.append(Board(folder / "tensorboard" if first else None, trainer))
            if on_start is not None:
                on_start(trainer)

        def follow(trainer: Trainer) -> None:
            board[0].write(trainer)
            if on_step is not None:
                on_step(trainer)

        try:
            with return_memory():
                train(self.trainer, Store(folder, self.identity), follow, on_save, begin, prepare)
        except BadValues:
            if first and self.trainer.step:
                self.save(target())
            raise
        finally:
            for opened in board:
                opened.close(self.trainer)
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


def choose_held(count: int, held: int, seed: int) -> set[int]:
    """Which of ``count`` pictures are judged only."""
    return set(torch.randperm(count, generator=generator(seed, "held"))[:held].tolist())


def parse_prompts(text: str, resolution: int, first: str, cell: float) -> list[tuple[str, tuple[int, int]]]:
    """The watched prompts, one a line, each with the cells (h, w) of its latent: ``a red apple | 1024x768`` in pixels
    of the picture, ``cell`` of them to one, by default the square of the training's resolution. What follows a bar and
    is no size belongs to the prompt. ``first`` stands for an empty text."""
    found = []
    for line in text.splitlines() or [""]:
        side = max(1, resolution // 32)
        prompt, cells = line.strip(), (side, side)
        if sized := SIZED.fullmatch(line):
            wide, high = (max(1, round(int(pixels) / cell)) for pixels in sized.groups()[1:])
            prompt, cells = sized[1].strip(), (high, wide)
        found.append((prompt or first, cells))
    return found


def add_words(lesson: Lesson, captions: Sequence[Sequence[str]], prompts: Sequence[str], tokenizer: Tokenizer) -> None:
    """Give ``lesson``, whose text encoder learns, the words of its settings and the token ids of all its texts.

    Raises :class:`~.errors.WrongInput` for a word that is in no caption: nothing would be learned of it.
    """
    words = lesson.given.words = make_words(lesson, tokenizer)
    found: list[Row] = []
    for row, lines in zip(lesson.rows, captions):
        ids = [token_ids(line, words, tokenizer) for line in lines]
        found.append({**row, **({"ids": ids[0]} if len(ids) == 1 else {f"{ALL}ids": torch.stack(ids)})})
    lesson.rows, lesson.empty = found, {**lesson.empty, "ids": token_ids("", words, tokenizer)}
    said = {int(one) for row in found for name in ("ids", f"{ALL}ids") if name in row for one in row[name].flatten()}
    if missing := [word.text for word in words if word.token not in said]:
        raise WrongInput(
            f"No caption holds {', '.join(missing)} within its first 75 tokens, so nothing would be learned of it. "
            "Write it into the captions, or put it in front of all of them by 'trigger'."
        )
    for watched, prompt in zip(lesson.samples, prompts):
        watched.row = {**watched.row, "ids": token_ids(prompt, words, tokenizer)}


def make_words(lesson: Lesson, tokenizer: Tokenizer) -> list[Word]:
    """The words of the settings."""
    text, _ = lesson.given.find_text("New words have their rows in the table of Stage C's text encoder.")
    return find_words(lesson.settings.tokens, tokenizer, text.vocab_size)


def copy_row(row: Row) -> dict[str, Tensor]:
    """A row of ordinary tensors, where it was made under inference mode."""
    return {name: value.clone() for name, value in row.items()}
