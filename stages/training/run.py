"""One LoRA run put together: what the node and the command line share, whoever encoded the pictures and the text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..diffusion.noise import NoiseStreams
from ..diffusion.sampling import OFFICIAL, Guidance, pair_conditions, sample, timesteps
from ..errors import BadValues
from ..files.clip import TextConfig
from ..nets.stage_c import StageCConfig
from . import export
from .checkpoint import Store, train
from .distributed import ALONE, Crew
from .frozen_net import frozen_net
from .lora_layers import Lora
from .memory import Plan, plan
from .objectives import Row, StageCObjective, repeat_tokens
from .settings import Settings
from .trainer import Trainer
from .words import TABLE, Tokenizer, Word, Words, WordsObjective, find_words, text_tower, token_ids


@dataclass
class Lesson:
    """Everything that a run needs. ``rows``, ``empty`` and the prompt of live samples, ``sample``, are encoded.

    ``config`` and ``weights`` are Stage C's, ``text`` those of the text encoder where ``words`` are learned: then rows,
    ``empty`` and ``sample`` hold "ids" too. The weights are let go of as soon as the run has its own copy.
    """

    settings: Settings
    identity: str
    device: torch.device
    bfloat16: bool
    rows: list[Row]
    empty: Row
    sample: Row
    config: StageCConfig
    weights: dict[str, Tensor]
    text: tuple[TextConfig, dict[str, Tensor]] | None = None
    words: list[Word] = field(default_factory=list)

    def plan(self, processes: int = 1) -> Plan:
        """The memory that a process of the run will take."""
        cells = max(row["latent"][0].numel() for row in self.rows)
        text = sum(value.numel() for value in self.text[1].values()) if self.text else 0
        return plan(
            "stage_c",
            self.config,
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
        lesson.empty, lesson.sample = copy_row(lesson.empty), copy_row(lesson.sample)
        base, device = settings.base_on(lesson.device.type), lesson.device
        self.net = frozen_net(
            "stage_c", lesson.config, lesson.weights, base=base, checkpointing=settings.checkpointing, device=device
        )
        self.lora = Lora(
            self.net, settings.rank, settings.alpha, settings.blocks, settings.seed, settings.layout == "official"
        )
        told = {
            "device": device,
            "bfloat16": lesson.bfloat16,
            "shift": settings.shift,
            "offset": settings.offset_noise,
            "drop_text": settings.drop_text,
        }
        self.words, names = None, ("latent", "text", "pooled")
        if lesson.text is None:
            objective = StageCObjective(self.net, lesson.empty, **told)
        else:
            self.words, names = Words(lesson.words, lesson.text[1][TABLE]), ("latent", "ids")
            objective = WordsObjective(self.net, lesson.empty, **told)
            objective.tower = text_tower(*lesson.text, self.words, base=base, device=device)
        lesson.weights, lesson.text = {}, None
        learned = nn.ModuleDict({"lora": self.lora, **({} if self.words is None else {"words": self.words})})
        rows = [{name: row[name] for name in names} for row in lesson.rows]
        self.trainer = Trainer(objective, learned, rows, settings, crew)

    def train(self, folder: Path, target: Callable[[], Path], on_step: Callable[[Trainer], None] | None = None) -> Path:
        """Train with the state in ``folder``, and LoRAs of the way in ``folder``/checkpoints; write ``target()``.

        A run that diverges writes its last good state before the error goes on.
        """
        every = self.settings.save_every

        def on_save(trainer: Trainer) -> None:
            if trainer.step and every and trainer.step % every == 0:
                self.save(folder / "checkpoints" / f"{self.settings.name}-step{trainer.step:06d}.safetensors")

        first = self.trainer.crew.rank == 0
        try:
            train(self.trainer, Store(folder, self.identity), on_step, on_save)
        except BadValues:
            if first:
                self.save(target())
            raise
        path = target()
        if first:
            self.save(path)
        return path

    def save(self, path: Path) -> None:
        """Write the LoRA as it is now, learned words with it, in the layout of the settings."""
        told = export.metadata(self.settings, self.identity, self.trainer.step)
        if self.settings.layout == "official":
            tensors = self.official()
            fresh = {word.text: word.pattern for word in self.lesson.words if word.pattern}
            told.update({export.TOKENS: json.dumps(fresh)} if fresh else {})
        else:
            tensors = {
                **self.comfyui(),
                **{f"bundle_emb.{word.text}.clip_g": vector[None] for word, vector in self.word_vectors()},
            }
        export.save_lora(tensors, path, told)

    def learned(self) -> dict[str, Tensor]:
        """The LoRA's part of the result."""
        return {key[len("lora.") :]: value for key, value in self.trainer.result().items() if key.startswith("lora.")}

    def comfyui(self) -> dict[str, Tensor]:
        """The LoRA under ComfyUI's names."""
        return export.comfyui_names(self.lora, self.learned())

    def official(self) -> dict[str, Tensor]:
        """The LoRA in the official layout, offsets of learned words with it."""
        found = export.official_names(self.lora, self.learned(), self.net)
        if self.words is not None:
            found["embeddings.embeddings"] = self.trainer.result()["words.offsets"]
            found["embeddings.indices"] = torch.tensor([word.token for word in self.words.words])
        return found

    def word_vectors(self) -> list[tuple[Word, Tensor]]:
        """Each learned word and what stands for it in the token table."""
        if self.words is None:
            return []
        vectors = self.words.rows.cpu() + self.trainer.result()["words.offsets"].cpu()
        return list(zip(self.words.words, vectors))

    def save_words(self, folder: Path, stem: str) -> list[tuple[str, str]]:
        """Each learned word as an embedding file; pairs of the word and the file's stem."""
        made = []
        for word, vector in self.word_vectors():
            plain = "".join(letter for letter in word.text if letter.isalnum() or letter in "-_") or str(word.token)
            path = folder / f"{stem}_{plain}.safetensors"
            export.save_lora({"clip_g": vector[None]}, path, {"format": "pt", export.RUN: self.identity}, torch.float32)
            made.append((word.text, path.stem))
        return made

    def paint_latent(self) -> Tensor:
        """A Stage C latent (1, 16, h, w) of the samples' prompt, as the network paints it now."""
        lesson, row, objective = self.lesson, self.lesson.sample, self.trainer.objective
        if isinstance(objective, WordsObjective):
            with torch.no_grad():
                text, pooled = objective.tower(row["ids"][None].to(lesson.device))
            row = {"text": text[0].cpu(), "pooled": pooled[0].cpu()}
        return sample_latent(
            self.net,
            row,
            lesson.empty,
            lesson.rows[0]["latent"].shape,
            seed=self.settings.seed,
            device=lesson.device,
            bfloat16=lesson.bfloat16,
        ).cpu()


def add_words(lesson: Lesson, captions: Sequence[str], prompt: str, tokenizer: Tokenizer) -> None:
    """Give ``lesson``, which has the text encoder, the words of its settings and the token ids of its captions."""
    lesson.words = find_words(lesson.settings.tokens, tokenizer, lesson.text[0].vocab_size)
    for row, caption in zip(lesson.rows, captions):
        row["ids"] = token_ids(caption, lesson.words, tokenizer)
    lesson.empty["ids"] = token_ids("", lesson.words, tokenizer)
    lesson.sample["ids"] = token_ids(prompt, lesson.words, tokenizer)


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
