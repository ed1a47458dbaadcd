"""Training a LoRA inside the host: encoders of the graph, a private copy of Stage C, progress, and the result applied.

The host runs nodes under inference mode, whose tensors cannot be trained through: everything that learns is made
anew with that mode switched off.
"""
from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from PIL import Image
from server import PromptServer
from torch import Tensor, nn

from ...stages.errors import BadValues, OutOfMemory
from ...stages.stage_c import StageCConfig
from ...stages.tuning import result
from ...stages.tuning.adapters import Lora
from ...stages.tuning.encode import encoded, fingerprint, said
from ...stages.tuning.frozen import frozen_net
from ...stages.tuning.objectives import Row, StageCObjective
from ...stages.tuning.pictures import TrainingSet
from ...stages.tuning.plan import GB, Plan, plan
from ...stages.tuning.samples import painted
from ...stages.tuning.settings import Settings
from ...stages.tuning.store import Store, train
from ...stages.tuning.text import TABLE, Words, WordsObjective, learned_words, text_tower, token_ids
from ...stages.tuning.trainer import Trainer
from .memory import explained, make_room
from .training_files import loss_plot
from .training_models import encoders, prior_weights, spoken, text_weights
from .vae import preview

log = logging.getLogger(__name__)

WHERE = "Train LoRA"
FOLDER = "cascade_studio_training"
SAMPLE_SIDE = 512
ADVICE = ("Raise accumulation, choose fp8 as the base in Training Settings, train fewer blocks or the lite model, or close "
          "other programs that use the graphics card.")


@dataclass(frozen=True)
class Trained:
    """What the node gives: the MODEL with the LoRA on it, the LoRA's file name, and the plot of its losses."""

    model: Any
    name: str
    plot: Tensor


@dataclass
class Lesson:
    """Everything that one run needs, on its device."""

    settings: Settings
    identity: str
    device: torch.device
    rows: list[Row]
    empty: Row
    config: StageCConfig
    weights: dict[str, Tensor]
    text: tuple[Any, dict[str, Tensor]] | None = None
    """Configuration and tensors of the text encoder, where words are learned."""
    words: list[Any] = field(default_factory=list)
    sample: Row = field(default_factory=dict)
    """The prompt of the live samples."""

    @property
    def bfloat16(self) -> bool:
        """Whether products are computed in bfloat16."""
        return self.device.type != "cpu" and comfy.model_management.should_use_bf16(self.device)

    @property
    def folder(self) -> Path:
        """Where states, samples and checkpoints of the run are kept."""
        return home() / self.settings.name / self.identity


def home() -> Path:
    """Where all runs, and what was encoded for them, are kept."""
    return Path(folder_paths.get_output_directory()) / FOLDER


def train_lora(model: Any, clip: Any, vae: Any, pictures: TrainingSet, settings: Settings, node: str = "") -> Trained:
    """Train on ``pictures``, going on from where an interrupted or crashed run of the same settings was."""
    settings = replace(settings, resolution=pictures.resolution)
    lesson = prepared(model, clip, vae, pictures, settings)
    check_memory(lesson)
    make_room()
    with explained(WHERE, ADVICE), torch.inference_mode(False), torch.enable_grad():
        path, names, losses = taught(lesson, Show(vae, settings.steps, node))
    comfy.model_management.soft_empty_cache()
    lora = comfy.utils.load_torch_file(str(path), safe_load=True) if names is None else names
    applied, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    return Trained(applied, path.name, loss_plot(losses, settings.name))


def prepared(model: Any, clip: Any, vae: Any, pictures: TrainingSet, settings: Settings) -> Lesson:
    """Encode what was not encoded before, and look at the model."""
    ways = encoders(clip, vae)
    bar = comfy.utils.ProgressBar(len(pictures.pictures))

    def on_item(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    with explained(f"{WHERE}, encoding the pictures,", "Close other programs that use the graphics card."):
        rows, empty = encoded(pictures, ways, home() / "cache", on_item)
    config, weights = prior_weights(model)
    lesson = Lesson(settings, settings.identity(fingerprint(weights), pictures.digest, ways.picture_mark, ways.text_mark),
                    comfy.model_management.get_torch_device(), rows, empty, config, weights)
    prompt = settings.sample_prompt or pictures.pictures[0].caption
    lesson.sample = said(prompt, ways, home() / "cache")
    if settings.tokens:
        lesson.text = text_weights(clip)
        speak = lambda words: spoken(clip, words)  # noqa: E731
        lesson.words = learned_words(settings.tokens, speak, lesson.text[0].vocab_size)
        for row, picture in zip(rows, pictures.pictures):
            row["ids"] = token_ids(picture.caption, lesson.words, speak)
        empty["ids"] = token_ids("", lesson.words, speak)
        lesson.sample["ids"] = token_ids(prompt, lesson.words, speak)
    return lesson


def check_memory(lesson: Lesson) -> Plan:
    """Log the memory plan; refuse a run that cannot fit, before anything is built."""
    cells = max(row["latent"][0].numel() for row in lesson.rows)
    count = sum(value.numel() for value in lesson.text[1].values()) if lesson.text else 0
    planned = plan("stage_c", lesson.config, lesson.settings, device=lesson.device.type, cells=cells,
                   text_parameters=count)
    log.info("%s: %s", lesson.settings.name, planned.describe())
    there = comfy.model_management.get_total_memory(lesson.device)
    if planned.total > there:
        raise OutOfMemory(f"{WHERE} needs about {planned.total / GB:.1f} GB, but this device has {there / GB:.1f} GB. "
                          f"{planned.describe()} {ADVICE}")
    return planned


def taught(lesson: Lesson, show: Show) -> tuple[Path, dict[str, Tensor] | None, list[float]]:
    """Train; returns the LoRA's file, its tensors under ComfyUI's names where the file has others, and the losses.

    Runs outside of inference mode.
    """
    settings = lesson.settings
    lesson.rows, lesson.empty = [own(row) for row in lesson.rows], own(lesson.empty)
    lesson.sample = own(lesson.sample)
    base = settings.base_on(lesson.device.type)
    net = frozen_net("stage_c", lesson.config, lesson.weights, base=base, checkpointing=settings.checkpointing,
                     device=lesson.device)
    lesson.weights = {}
    lora = Lora(net, settings.rank, settings.alpha, settings.blocks, settings.seed, settings.layout == "official")
    objective, learned = StageCObjective(net, lesson.empty), nn.ModuleDict({"lora": lora})
    if lesson.text is not None:
        words = Words(lesson.words, lesson.text[1][TABLE])
        objective = WordsObjective(net, {"ids": lesson.empty["ids"]})
        objective.tower = text_tower(*lesson.text, words, base=base, device=lesson.device)
        learned["words"] = words
        lesson.text = None
    objective.device, objective.bfloat16 = lesson.device, lesson.bfloat16
    objective.shift, objective.offset = settings.shift, settings.offset_noise
    objective.drop_text = settings.drop_text
    names = ("latent", "ids") if "words" in learned else ("latent", "text", "pooled")
    trainer = Trainer(objective, learned, [{name: row[name] for name in names} for row in lesson.rows], settings)
    show.begin(lesson, net, trainer)

    def written(folder: Path | None = None, name: str = settings.name) -> Path:
        path = folder / f"{name}.safetensors" if folder else result.free_path(lora_folder(), name, lesson.identity)
        told = result.metadata(settings, lesson.identity, trainer.step)
        result.save_lora(tensors(trainer, net, settings), path, told)
        return path

    def on_save(trainer: Trainer) -> None:
        if trainer.step and settings.save_every and trainer.step % settings.save_every == 0:
            written(lesson.folder / "checkpoints", f"{settings.name}-step{trainer.step:06d}")

    try:
        train(trainer, Store(lesson.folder, lesson.identity), show.step, on_save)
    except BadValues:
        written()
        raise
    path = written()
    save_words(trainer, path.stem)
    plain = None
    if settings.layout == "official":
        plain = {key: value.half().cpu() for key, value in result.comfyui_names(lora, of_lora(trainer)).items()}
    return path, plain, trainer.losses


def own(row: Row) -> dict[str, Tensor]:
    """A row of ordinary tensors."""
    return {name: value.clone() for name, value in row.items()}


def of_lora(trainer: Trainer) -> dict[str, Tensor]:
    """The LoRA's part of what was learned."""
    return {key[len("lora."):]: value for key, value in trainer.result().items() if key.startswith("lora.")}


def tensors(trainer: Trainer, net: nn.Module, settings: Settings) -> dict[str, Tensor]:
    """What the file holds, in the layout that was asked for."""
    lora = trainer.learned["lora"]
    if settings.layout != "official":
        return result.comfyui_names(lora, of_lora(trainer))
    found = result.official_names(lora, of_lora(trainer), net)
    if "words" in trainer.learned:
        words = trainer.learned["words"]
        found["embeddings.embeddings"] = trainer.result()["words.offsets"]
        found["embeddings.indices"] = torch.tensor([word.token for word in words.words])
    return found


def save_words(trainer: Trainer, stem: str) -> None:
    """Each learned word as an embedding file, which prompts of any graph can name."""
    if "words" not in trainer.learned:
        return
    words = trainer.learned["words"]
    vectors = (words.rows.cpu() + trainer.result()["words.offsets"].cpu())
    for word, vector in zip(words.words, vectors):
        plain = "".join(letter for letter in word.text if letter.isalnum() or letter in "-_") or str(word.token)
        path = Path(folder_paths.get_folder_paths("embeddings")[0]) / f"{stem}_{plain}.safetensors"
        result.save_lora({"clip_g": vector[None]}, path, {"format": "pt"}, torch.float32)
        log.info("Learned word %s: write embedding:%s in prompts", word.text, path.stem)


def lora_folder() -> Path:
    """Where new LoRAs go."""
    return Path(folder_paths.get_folder_paths("loras")[0])


class Show:
    """Progress: the bar, the loss with the time left, and pictures that the network paints on the way."""

    def __init__(self, vae: Any, steps: int, node: str) -> None:
        self.vae, self.node = vae, node
        self.bar = comfy.utils.ProgressBar(steps)

    def begin(self, lesson: Lesson, net: nn.Module, trainer: Trainer) -> None:
        """Hand over what is trained."""
        self.lesson, self.net, self.started = lesson, net, time.monotonic()
        self.first: int | None = None
        self.mean = 0.0

    def step(self, trainer: Trainer) -> None:
        """After every update; raises where the user has asked to stop."""
        settings, done = self.lesson.settings, trainer.step
        if self.first is None:
            self.first, self.mean = done - 1, trainer.losses[-1]
        self.mean += 0.05 * (trainer.losses[-1] - self.mean)
        left = (time.monotonic() - self.started) / (done - self.first) * (settings.steps - done)
        PromptServer.instance.send_progress_text(
            f"step {done} of {settings.steps}, loss {self.mean:.4f}, {int(left // 60)}:{int(left % 60):02d} left", self.node)
        picture = None
        if settings.sample_every and done % settings.sample_every == 0:
            picture = self.sample(trainer)
        self.bar.update_absolute(done, settings.steps, picture)
        comfy.model_management.throw_exception_if_processing_interrupted()

    def sample(self, trainer: Trainer) -> tuple[str, Image.Image, int] | None:
        """What the network makes of the samples' prompt now; kept in the run's folder. None without Previewer."""
        if not hasattr(self.vae.first_stage_model, "previewer"):
            return None
        lesson, row = self.lesson, self.lesson.sample
        if isinstance(trainer.objective, WordsObjective):
            with torch.no_grad():
                text, pooled = trainer.objective.tower(row["ids"][None].to(lesson.device))
            row = {"text": text[0].cpu(), "pooled": pooled[0].cpu()}
        latent = painted(self.net, row, lesson.empty, lesson.rows[0]["latent"].shape, seed=lesson.settings.seed,
                         device=lesson.device, bfloat16=lesson.bfloat16)
        with torch.inference_mode():
            pixels = preview(self.vae, latent.cpu())[0]
        image = Image.fromarray((pixels.float().cpu() * 255).round().byte().numpy())
        path = lesson.folder / "samples" / f"step{trainer.step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        return "PNG", image, SAMPLE_SIDE
