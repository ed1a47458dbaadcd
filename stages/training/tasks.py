"""What can learn, one class a kind: the network and its objective, and the file that it ends in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import BadValues, WrongInput
from ..files import convert
from ..files.clip import TextConfig
from ..files.header import MARKER, marker_text
from ..nets.encoder import EncoderConfig
from . import export
from .control import (
    TRUNK_SHARE,
    LearningControl,
    choose_gains,
    even_out,
    fit_norms,
    measure_hidden,
    plan_control,
    plan_trunk,
    start_control,
    start_head,
)
from .frozen_net import frozen_net, learning_net
from .lora_layers import Lora
from .objectives import ControlObjective, DiffusionObjective, Row, StageBObjective, StageCObjective, TrunkObjective
from .seeding import generator
from .settings import Settings
from .trainer import Diverged, Trainer
from .words import TABLE, TextTower, Word, Words, WordsObjective, text_tower

MEASURED = 32
"""Pictures that a ControlNet's layers are brought to size on before its first step."""
Text = tuple[TextConfig, Mapping[str, Tensor]]


@dataclass
class Ingredients:
    """The models of a run. ``kind`` is "stage_c" or "stage_b", that of ``config`` and ``weights``.

    ``text`` is the text encoder where it learns, with its ``words``; ``encoder`` the image encoder that a new
    ControlNet's trunk starts from; ``start`` the tensors of what the run goes on from, ``start_name`` their file.
    Weights are let go of as soon as a task has its own copy.
    """

    kind: str
    config: Any
    weights: Mapping[str, Tensor]
    text: Text | None = None
    text_layer: int = -1
    words: list[Word] = field(default_factory=list)
    encoder: tuple[EncoderConfig, Mapping[str, Tensor]] | None = None
    start: Mapping[str, Tensor] | None = None
    start_name: str = ""

    def find_text(self, use: str) -> Text:
        """The text encoder beside Stage C; ``use`` is what for, a sentence. Raises :class:`WrongInput` without it."""
        if self.text is None or self.kind != "stage_c":
            raise WrongInput(f"{use} Give a Stage C model and its text encoder.")
        return self.text


@dataclass(frozen=True)
class File:
    """What is written: tensors, and what is said about them beside the run's own words."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


class Task:
    """``learned`` is what the optimiser moves, ``objective`` how wrong it is, ``rows`` what it reads of a picture."""

    rows: tuple[str, ...] = ("latent", "text", "pooled")
    learned: nn.Module
    objective: DiffusionObjective
    net: nn.Module

    shares: Mapping[nn.Parameter, float] = {}
    """Of the learning rate, for what learns more slowly."""

    def __init__(
        self, given: Ingredients, settings: Settings, empty: Row, device: torch.device, bfloat16: bool
    ) -> None:
        self.given, self.settings, self.device = given, settings, device
        self.empty = empty
        self.told: dict[str, Any] = {"device": device, "bfloat16": bfloat16, "shift": settings.shift}
        self.told |= {"offset": settings.offset_noise, "drop_text": settings.drop_text}
        self.build()
        given.weights, given.text, given.encoder, given.start = {}, None, None, None

    def build(self) -> None:
        """Set ``net``, ``learned`` and ``objective``."""
        raise NotImplementedError

    def build_frozen(self) -> nn.Module:
        """The network of the run as it is, without gradients of its own."""
        given, settings = self.given, self.settings
        return frozen_net(
            given.kind,
            given.config,
            given.weights,
            base=settings.base_on(self.device.type),
            checkpointing=settings.checkpointing,
            device=self.device,
        )

    def make_objective(self, net: nn.Module) -> DiffusionObjective:
        """The plain objective of the network."""
        if self.given.kind == "stage_b":
            self.rows = ("latent", "effnet", "pooled")
            return StageBObjective(net, self.empty, pyramid=True, **self.told)
        return StageCObjective(net, self.empty, **self.told)

    def write(self, result: Mapping[str, Tensor]) -> File:
        """The file of ``result``, the trainer's."""
        raise NotImplementedError

    def name_for_host(self, result: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``result`` under the names that the host patches a model by, whatever layout is written."""
        raise NotImplementedError

    def encode_sample(self, row: Row) -> Row:
        """The text of a sample's prompt as it is now."""
        return row

    def prepare(self, trainer: Trainer, on_step: Callable[[int, int], None]) -> None:
        """What comes before the first step of a new run, seeded as that is; ``on_step(done, of)`` may raise to stop."""


class LoraTask(Task):
    """Adapters on Stage C or Stage B; with words to learn, those too."""

    def build(self) -> None:
        given, settings = self.given, self.settings
        self.net = self.build_frozen()
        self.lora, parts = None, cast(dict[str, nn.Module], {})
        if settings.what != "words":
            official = settings.layout == "official"
            self.lora = Lora(
                self.net, settings.rank, settings.alpha, settings.blocks, settings.seed, official, settings.method
            )
            if given.start is not None:
                self.lora.take_over(given.start, export.PREFIX[given.kind], given.start_name)
            parts["lora"] = self.lora
        self.words = None
        if not given.words:
            self.objective = self.make_objective(self.net)
        else:
            text = given.find_text("Words are learned through Stage C and its text encoder.")
            self.rows = ("latent", "ids")
            self.words = parts["words"] = Words(given.words, text[1][TABLE])
            self.tower = build_tower(self, text, self.words)
            self.objective = WordsObjective(self.net, self.empty, **self.told, tower=self.tower)
        self.learned = nn.ModuleDict(parts)

    def write(self, result: Mapping[str, Tensor]) -> File:
        if self.settings.layout == "official" and self.lora is not None:
            tensors = export.official_names(self.lora, self.take_lora(result), self.net)
            fresh = {word.text: word.pattern for word in self.given.words if word.pattern}
            if self.words is not None:
                tensors["embeddings.embeddings"] = result["words.offsets"]
                tensors["embeddings.indices"] = torch.tensor([word.token for word in self.words.words])
            return File(tensors, {export.TOKENS: json.dumps(fresh)} if fresh else {})
        bundled = {f"bundle_emb.{word.text}.clip_g": vector[None] for word, vector in self.word_vectors(result)}
        return File({**self.name_for_host(result), **bundled})

    def take_lora(self, result: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The LoRA's part of ``result``."""
        return {key[len("lora.") :]: value for key, value in result.items() if key.startswith("lora.")}

    def name_for_host(self, result: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.lora is None:
            return {}
        return export.comfyui_names(self.lora, self.take_lora(result), export.PREFIX[self.given.kind])

    def word_vectors(self, result: Mapping[str, Tensor]) -> list[tuple[Word, Tensor]]:
        """Each learned word and what stands for it in the token table."""
        if self.words is None:
            return []
        return list(zip(self.words.words, self.words.rows.cpu() + result["words.offsets"].cpu()))

    def encode_sample(self, row: Row) -> Row:
        return row if self.words is None else encode_ids(self.tower, row, self.device)


class TextLoraTask(Task):
    """Adapters on the text encoder, through a frozen Stage C."""

    rows = ("latent", "ids")

    def build(self) -> None:
        given, settings = self.given, self.settings
        text = given.find_text("A LoRA on the text encoder learns through Stage C.")
        self.net = self.build_frozen()
        self.tower = build_tower(self, text, Words([], text[1][TABLE]))
        self.objective = WordsObjective(self.net, self.empty, **self.told, tower=self.tower)
        blocks = (".self_attn",) if settings.blocks == (".attn",) else settings.blocks
        self.lora = Lora(self.tower, settings.rank, settings.alpha, blocks, settings.seed, method=settings.method)
        if given.start is not None:
            self.lora.take_over(given.start, export.PREFIX["text_encoder"], given.start_name)
        self.learned = self.lora

    def write(self, result: Mapping[str, Tensor]) -> File:
        return File(self.name_for_host(result))

    def name_for_host(self, result: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return export.comfyui_names(self.lora, result, export.PREFIX["text_encoder"])

    def encode_sample(self, row: Row) -> Row:
        return encode_ids(self.tower, row, self.device)


class StageTask(Task):
    """A whole stage."""

    def build(self) -> None:
        given, settings = self.given, self.settings
        if given.kind != settings.what:
            raise WrongInput(f"{settings.what} is to learn, but the model is {given.kind}. Give the other model.")
        self.net = self.learned = learning_net(
            given.kind,
            given.config,
            given.weights,
            weights=settings.stored,
            checkpointing=settings.checkpointing,
            device=self.device,
        )
        self.objective = self.make_objective(self.net)

    def write(self, result: Mapping[str, Tensor]) -> File:
        layouts = {"official": convert.to_official, "comfyui": convert.to_comfyui, "diffusers": convert.to_diffusers}
        tensors = layouts[self.settings.layout]({key: value.detach() for key, value in result.items()})
        return File(tensors, {MARKER: marker_text(self.given.kind, self.given.config)})

    def name_for_host(self, result: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return convert.to_comfyui(result, "diffusion_model.")


class ControlTask(Task):
    """A ControlNet for a frozen Stage C, in the published architecture for its hint."""

    rows = ("latent", "text", "pooled", "hint")

    def build(self) -> None:
        given, settings = self.given, self.settings
        if given.kind != "stage_c":
            raise WrongInput("A ControlNet guides Stage C. Give a Stage C model.")
        self.net = self.build_frozen()
        self.config = plan_control(given.config, settings, given.encoder[0] if given.encoder else EncoderConfig())
        self.control = start_control(self.config, given.encoder, given.start, given.start_name, settings.seed)
        self.learned = self.guide = LearningControl(self.control).to(self.device)
        self.shares = dict.fromkeys(self.control.backbone.parameters(), TRUNK_SHARE)
        self.fresh, self.masked = given.start is None, settings.hint == "inpaint"
        self.objective = ControlObjective(self.net, self.empty, **self.told, controlnet=self.guide, masked=self.masked)

    def prepare(self, trainer: Trainer, on_step: Callable[[int, int], None]) -> None:
        steps, crew = self.settings.trunk_steps if self.fresh else 0, trainer.crew
        trunk = self.control.backbone
        head = start_head(self.config, self.settings.seed).to(self.device)
        objective = TrunkObjective(trunk, head, self.device, bool(self.told["bfloat16"]), self.masked)

        def see() -> Iterator[Tensor]:
            for place, index in enumerate(trainer.taught[:MEASURED]):
                hint = objective.see_hints([trainer.rows[index]], [self.draw("hint", place)])
                with torch.autocast(self.device.type, torch.bfloat16, enabled=bool(self.told["bfloat16"])):
                    yield hint

        if self.fresh:
            fit_norms(self.control, see())
            self.control.load_state_dict(crew.share(self.control.state_dict()))
        lesson = Trainer(
            objective,
            nn.ModuleDict({"trunk": trunk, "head": head}),
            trainer.rows,
            plan_trunk(self.settings),
            trainer.crew,
            held=trainer.held,
        )
        try:
            while lesson.step < steps:
                lesson.update()
                on_step(lesson.step, steps)
        except Diverged as reason:
            raise BadValues(
                f"The ControlNet's trunk did not learn, because {reason}. Lower the learning rate, or set trunk_steps "
                "to 0."
            ) from reason
        if self.fresh:
            even_out(self.control, crew.share(measure_hidden(self.control, see())))
        self.guide.set_gains(crew.share(choose_gains(self.measure_pulls(trainer))))

    def measure_pulls(self, trainer: Trainer) -> Tensor:
        """How much the loss hangs on each channel of each map (projections, channels), on average over some pictures:
        the root mean square of its gradient."""
        total, made = torch.zeros_like(self.guide.gains), list[dict[int, Tensor]]()
        hook = self.guide.register_forward_hook(lambda _, __, maps: made.append(maps))
        try:
            for place, index in enumerate(trainer.taught[:MEASURED]):
                raw, level = self.objective.losses([trainer.rows[index]], [self.draw("pull", place)])
                grads = torch.autograd.grad((raw * trainer.weights(level, raw)).sum(), list(made.pop().values()))
                total += torch.stack([grad.float().square().mean((0, 2, 3)) for grad in grads])
        finally:
            hook.remove()
        return (total / len(trainer.taught[:MEASURED])).sqrt().cpu()

    def draw(self, name: str, place: int) -> torch.Generator:
        """The chance of a picture that is looked at before the first step."""
        return generator(self.settings.seed, name, place)

    def write(self, result: Mapping[str, Tensor]) -> File:
        return File(self.guide.fold(result), {MARKER: marker_text("controlnet", self.config)})

    def name_for_host(self, result: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.guide.fold(result)


TASKS: dict[str, type[Task]] = {
    "lora": LoraTask,
    "words": LoraTask,
    "stage_c": StageTask,
    "stage_b": StageTask,
    "controlnet": ControlTask,
    "text_lora": TextLoraTask,
}


def build_tower(task: Task, text: Text, words: Words) -> TextTower:
    """The text encoder of a run, frozen, with ``words`` in its table."""
    base = task.settings.base_on(task.device.type)
    return text_tower(text[0], text[1], words, layer=task.given.text_layer, base=base, device=task.device)


@torch.no_grad()
def encode_ids(tower: TextTower, row: Row, device: torch.device) -> Row:
    """ "text" and "pooled" of a row that holds the "ids" of its prompt."""
    text, pooled = tower(row["ids"][None].to(device))
    return {"text": text[0].cpu(), "pooled": pooled[0].cpu()}
