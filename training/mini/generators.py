"""Parts 4 and 5: Stage B and Stage C, on pictures encoded once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_studio.stages.diffusion.sampling import Guidance, NoiseStreams, paired, sample, timesteps
from cascade_studio.stages.nets.backend import Backend
from cascade_studio.stages.nets.encoder import ImageEncoder
from cascade_studio.stages.nets.initial import initialise_unet
from cascade_studio.stages.nets.previewer import Previewer
from cascade_studio.stages.nets.stage_a import StageA
from cascade_studio.stages.nets.stage_b import StageB
from cascade_studio.stages.nets.stage_c import StageC
from cascade_studio.stages.training.losses import (
    add_training_noise,
    epsilon_losses,
    keep_mask,
    replace_dropped,
    sample_times,
    velocity_weight,
)
from cascade_studio.stages.training.optimiser import EMA, Optimiser

from .captions import LENGTH, Fragment, batch_tokens
from .compose import LARGE
from .data import COLOURS
from .language import TunedText, known_tokens
from .loop import Part, Place, frozen, grid
from .precondition import Exact, ExactConv, Preconditioning
from .scenes import CANVAS, SHORT, Scenes, make_pool
from .sizes import ENCODER, PREVIEWER, STAGE_A, STAGE_B, STAGE_C, TEXT, VISION
from .towers import TextTower, VisionTower

NETS = {
    "stage_a": (StageA, STAGE_A),
    "encoder": (ImageEncoder, ENCODER),
    "previewer": (Previewer, PREVIEWER),
    "text": (TextTower, TEXT),
    "vision": (VisionTower, VISION),
    "stage_b": (StageB, STAGE_B),
    "stage_c": (StageC, STAGE_C),
}
RESULTS = {
    "stage_a": ("stage_a",),
    "encoder": ("encoder", "previewer"),
    "language": ("text", "vision"),
    "stage_b": ("stage_b",),
    "stage_c": ("stage_c", "text"),
}
"""The nets in the result of each part; Stage C tunes the text encoder of the language part."""


def trained(place: Place, name: str, part: str | None = None) -> nn.Module:
    """A net out of the result of ``part`` (default: the last that trains it); eval mode, no gradients."""
    kind, config = NETS[name]
    part = part or [part for part, nets in RESULTS.items() if name in nets][-1]
    net = kind(config)
    net.load_state_dict(torch.load(place.weights(part), map_location="cpu")[name])
    return frozen(net).to(place.device)


def small_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, options: Any = None, mask: Tensor | None = None
) -> Tensor:
    """Attention by plain products: for 36 cells PyTorch's fused kernel takes three times as long to train on a CPU."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    scores = scores if mask is None else scores + mask[:, None]
    return (scores.float().softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


TRAINING = Backend(Linear=Exact, Conv2d=ExactConv, attention=small_attention)


class MatrixOptimiser:
    """Muon (Jordan et al. 2024) with updates of AdamW's size; gradients are those that the other optimiser left."""

    ITERATIONS = 3
    """Of Newton and Schulz; the usual five even out small singular values more, and take a fifth of a step's time."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        self.lr = lr
        self.muon = torch.optim.Muon(
            parameters, lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw", ns_steps=self.ITERATIONS
        )

    def update(self, factor: float) -> None:
        """One step at ``factor`` of the learning rate; clears the gradients."""
        for group in self.muon.param_groups:
            group["lr"] = self.lr * factor
        self.muon.step()
        self.muon.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """The momenta."""
        return self.muon.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.muon.load_state_dict(state)


class DiffusionPart(Part):
    """What training Stage B and Stage C has in common: a start as v-prediction, noise, averaged weights."""

    LR, BATCH, EMA_DECAY = 2e-3, 32, 0.998
    SEED = 3
    NOISY, NOISY_FROM = 0.0, 0.75
    """The share of a batch whose times are drawn from the noisy end alone."""

    def __init__(self, place: Place, net: StageB | StageC) -> None:
        super().__init__(place)
        torch.manual_seed(place.seed + self.SEED)
        initialise_unet(net)
        self.net = net.to(place.device)
        self.start = Preconditioning(self.net)
        if place.warm:
            self.net.load_state_dict(trained(place, self.name).state_dict())
            self.start.hold()
        self.text = trained(place, "text", "language")
        self.ema = EMA(net, self.EMA_DECAY)
        matrices = [
            parameter
            for name, parameter in net.named_parameters()
            if parameter.dim() == 2 and (".channelwise." in name or ".attention." in name)
        ]
        chosen = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in net.parameters() if id(parameter) not in chosen]
        self.state = {
            "net": net,
            "ema": self.ema,
            "matrices": MatrixOptimiser(matrices, self.LR),
            "optimiser": Optimiser(others, self.LR, betas=(0.9, 0.98), weight_decay=0.01),
        }

    @torch.no_grad()
    def said(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states and pooled text of token ids."""
        return self.text(ids.to(self.place.device))

    def learn(
        self, x0: Tensor, conditions: dict[str, Tensor], factor: float, beside: Tensor | float = 0.0
    ) -> dict[str, float]:
        """One update on ``x0`` (B, C, H, W), and on the loss ``beside``."""
        t = sample_times(len(x0), device=x0.device)
        chosen = torch.rand_like(t) < self.NOISY
        t = torch.where(chosen, self.NOISY_FROM + (1 - self.NOISY_FROM) * t, t)
        seen = add_training_noise(x0, torch.randn_like(x0), t)
        with self.place.autocast():
            predicted = self.net(seen.x, seen.r, **conditions)
        losses = epsilon_losses(predicted, seen.noise)
        weighted = losses * velocity_weight(seen.logsnr)
        self.state["optimiser"].clear()
        (weighted.mean() + beside).backward()
        self.start.still()
        norm = self.state["optimiser"].update(factor)
        if math.isfinite(norm):
            self.state["matrices"].update(factor)
        self.start.hold()
        self.ema.update(self.net)
        taken = {"loss": float(losses.detach().mean()), "weighted": float(weighted.detach().mean()), "norm": norm}
        for name, low, high in (("noisy", -99, -4), ("middle", -4, 0), ("clear", 0, 99)):
            these = weighted.detach()[(low <= seen.logsnr) & (seen.logsnr < high)]
            if len(these):
                taken[name] = float(these.mean())
        return taken

    def result(self) -> dict[str, dict[str, Tensor]]:
        return {self.name: self.ema.copy_of(self.net).state_dict()}


class StageBPart(DiffusionPart):
    """Stage B from latents of the image encoder, with a little noise on them, and the pooled caption.

    Half of every batch is nearly pure noise: there it learns what a latent says, and the rest only sharpens that.
    """

    name = "stage_b"
    BATCH, SEED, NOISY = 24, 4, 0.5
    PICTURES, OTHERS, SIZES, MIRRORED = 8000, 0.25, (0.74, 0.92), 0.3
    DROP_TEXT, DROP_EFFNET, NOISE = 0.1, 0.05, 0.4

    def __init__(self, place: Place) -> None:
        super().__init__(place, StageB(STAGE_B, backend=TRAINING))
        self.scenes = Scenes(self.rng, others=self.OTHERS, sizes=self.SIZES, mirrored=self.MIRRORED)
        self.stage_a = trained(place, "stage_a")
        subjects = [self.rng.randrange(len(self.scenes.subjects)) for _ in range(self.PICTURES)]
        nets = {"stage_a": self.stage_a, "encoder": trained(place, "encoder")}
        self.pool = make_pool(place.work / "pool_b.pt", self.scenes, subjects, nets, place.device)
        self.nothing = self.said(batch_tokens([[]], SHORT))[1]

    def step(self, factor: float) -> dict[str, float]:
        index = self.rng.sample(range(len(self.pool)), self.BATCH)
        rows = {name: value.to(self.place.device) for name, value in self.pool.rows(index).items()}
        ids = self.scenes.captions([self.pool.subjects[i] for i in index], [self.pool.colours[i] for i in index])
        clip = replace_dropped(self.said(ids)[1], keep_mask(len(index), self.DROP_TEXT), self.nothing)
        effnet = rows["effnet"]
        blur = self.NOISE * torch.rand(len(effnet), 1, 1, 1, device=effnet.device)
        effnet = replace_dropped(effnet + blur * torch.randn_like(effnet), keep_mask(len(index), self.DROP_EFFNET))
        return self.learn(rows["latent"], {"effnet": effnet, "clip": clip}, factor)

    def sheet(self) -> Tensor:
        """Rows: pictures through Stage A alone, and through encoder, Stage B and Stage A."""
        index = [i * len(self.pool) // 8 for i in range(8)]
        rows = {name: value.to(self.place.device) for name, value in self.pool.rows(index).items()}
        ids = self.scenes.captions([self.pool.subjects[i] for i in index], [self.pool.colours[i] for i in index])
        made = decode(self.ema.copy_of(self.net), rows["effnet"], self.said(ids)[1], self.nothing, list(range(8)))
        return grid(torch.cat([self.stage_a.decode(rows["latent"]), self.stage_a.decode(made)]).cpu(), 8)


class StageCPart(DiffusionPart):
    """Stage C from captions, and at times from the image embedding of the vision tower.

    Its subjects nearly fill the canvas, hardly move and are seldom mirrored: of a cell of 43 pixels, every shift is a
    latent of its own. The text encoder learns with it, so that similar pictures come to lie close in what it says;
    its pooled output is held where the language part left it, for Stage B and the vision tower. Words that say
    nothing about the picture are strewn in.
    """

    name = "stage_c"
    BATCH, SEED, NOISY = 64, 5, 0.5
    VARIANTS, MIRRORED, ROOM = 10, 0.04, 0.3
    DROP_TEXT, KEEP_IMAGE, LONG_FROM, STRANGE = 0.08, 0.05, 0.93, 0.3
    LR, TEXT_LR, HELD = 1e-3, 1e-3, 1.0

    def __init__(self, place: Place) -> None:
        super().__init__(place, StageC(STAGE_C, backend=TRAINING))
        self.scenes = Scenes(self.rng, sizes=LARGE, mirrored=self.MIRRORED, room=self.ROOM)
        self.tags = [tag for subject in self.scenes.subjects for tag in subject.tags if tag not in COLOURS]
        known = known_tokens(self.scenes.subjects).to(place.device)
        self.tuned = TunedText(trained(place, "text") if place.warm else self.text, known)
        self.text_ema = EMA(self.tuned, self.EMA_DECAY)
        self.state.update(
            text=self.tuned,
            text_ema=self.text_ema,
            text_optimiser=Optimiser(self.tuned.parameters(), self.TEXT_LR, betas=(0.9, 0.98)),
        )
        subjects = [i for _ in range(self.VARIANTS) for i in range(len(self.scenes.subjects))]
        nets = {"encoder": trained(place, "encoder"), "vision": trained(place, "vision")}
        self.pool = make_pool(place.work / "pool_c.pt", self.scenes, subjects, nets, place.device)

    def step(self, factor: float) -> dict[str, float]:
        length = LENGTH if self.progress > self.LONG_FROM else SHORT
        index = self.rng.sample(range(len(self.pool)), self.BATCH)
        rows = {name: value.to(self.place.device) for name, value in self.pool.rows(index).items()}
        subjects, colours = ([names[i] for i in index] for names in (self.pool.subjects, self.pool.colours))
        said = [
            fragments if self.rng.random() >= self.DROP_TEXT else []
            for fragments in self.scenes.fragments(subjects, colours)
        ]
        meant = self.said(batch_tokens(said, length))[1]
        ids = batch_tokens([self._strewn(fragments) for fragments in said], length)
        with self.place.autocast():
            text, pooled = (value.float() for value in self.tuned(ids.to(self.place.device)))
        held = (pooled - meant).square().mean() / meant.square().mean()
        image = replace_dropped(rows["image"], keep_mask(len(index), 1 - self.KEEP_IMAGE))
        conditions = {"clip_text": text, "clip_text_pooled": pooled, "clip_img": image}
        self.state["text_optimiser"].clear()
        taken = self.learn(rows["effnet"], conditions, factor, self.HELD * held)
        norm = self.state["text_optimiser"].update(factor)
        self.text_ema.update(self.tuned)
        return {**taken, "held": float(held.detach()), "text_norm": norm}

    def _strewn(self, fragments: list[Fragment]) -> list[Fragment]:
        """``fragments``, at times with one to three words between them that nobody knows or that tag another subject."""
        fragments = list(fragments)
        if fragments and self.rng.random() < self.STRANGE:
            for _ in range(self.rng.randint(1, 3)):
                word = (self.tuned.stranger,) if self.rng.random() < 0.5 else self.rng.choice(self.tags)
                fragments.insert(self.rng.randint(0, len(fragments)), word)
        return fragments

    def result(self) -> dict[str, dict[str, Tensor]]:
        return {**super().result(), "text": self.text_ema.copy_of(self.tuned).tensors()}

    def sheet(self) -> Tensor:
        """Sixteen held-out prompts, seen through the Previewer."""
        previewer = trained(self.place, "previewer")
        prompts = [prompt["prompt"] for prompt in self.scenes.prompts[::12]][:16]
        latent = paint(self.ema.copy_of(self.net), self.text_ema.copy_of(self.tuned), prompts, list(range(16)))
        return F.interpolate(grid(previewer(latent).cpu(), 8)[None], scale_factor=3.0)[0]


# Sampling, as the nodes do it


def told(text: nn.Module, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Hidden states (B, 77, width) and pooled text (B, width) of prompts as written."""
    device = next(text.parameters()).device
    return text(batch_tokens([[prompt] if prompt else [] for prompt in prompts]).to(device))


@torch.no_grad()
def paint(
    net: StageC,
    text: nn.Module,
    prompts: list[str],
    seeds: list[int],
    *,
    steps: int = 20,
    cfg: float = 4.0,
    shift: float = 2.0,
    image: Tensor | None = None,
    grid_size: tuple[int, int] | None = None,
) -> Tensor:
    """Stage C latents of ``prompts``, one seed each."""
    (said, pooled), (said_empty, pooled_empty) = told(text, prompts), told(text, [""] * len(prompts))
    image = pooled.new_zeros(len(prompts), STAGE_C.c_clip_img) if image is None else image
    cond = {"clip_text": said, "clip_text_pooled": pooled, "clip_img": image}
    uncond = {"clip_text": said_empty, "clip_text_pooled": pooled_empty, "clip_img": torch.zeros_like(image)}
    rows, columns = grid_size or (CANVAS.prior_height, CANVAS.prior_width)
    return _sampled(net, cond, uncond, seeds, (16, rows, columns), steps, cfg, shift, said.device)


@torch.no_grad()
def decode(
    net: StageB,
    effnet: Tensor,
    pooled: Tensor,
    empty: Tensor,
    seeds: list[int],
    *,
    steps: int = 10,
    cfg: float = 1.1,
    shift: float = 1.0,
) -> Tensor:
    """Stage A latents for Stage C latents (B, 16, h, w) and pooled text (B, width)."""
    cond = {"effnet": effnet, "clip": pooled}
    uncond = {"effnet": torch.zeros_like(effnet), "clip": empty.expand_as(pooled)}
    shape = CANVAS.decoder_shape()[1:]
    return _sampled(net, cond, uncond, seeds, shape, steps, cfg, shift, effnet.device)


def _sampled(
    net: nn.Module,
    cond: dict[str, Any],
    uncond: dict[str, Any],
    seeds: list[int],
    shape: tuple[int, ...],
    steps: int,
    cfg: float,
    shift: float,
    device: torch.device,
) -> Tensor:
    start = NoiseStreams(seeds).next((len(seeds), *shape)).to(device)
    for step in sample(
        paired(net, cond, uncond),
        start,
        timesteps=timesteps(steps),
        shift=shift,
        guidance=Guidance(cfg),
        noise=NoiseStreams(seeds, 1).next,
    ):
        last = step.x0
    return last
