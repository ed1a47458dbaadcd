"""A small canny ControlNet for Mini's Stage C: python3 dev.py run -m training.mini.canny_controlnet

Its trunk starts from Mini's image encoder and first learns to tell the latent of a picture from its edges
(stages/inputs/canny.py) alone; then the whole is trained by the loop of the nodes. Pictures are mirrored half the
time, which no caption says. The result goes into mini/controlnet. Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_studio.commands.places import cache_root
from cascade_studio.commands.train import TrainingProgress
from cascade_studio.stages.nets.controlnet import ControlNet, ControlNetConfig
from cascade_studio.stages.training.checkpoint import Store, train
from cascade_studio.stages.training.frozen_net import frozen_net
from cascade_studio.stages.training.objectives import ControlObjective, Row, StageCObjective, stack_rows
from cascade_studio.stages.training.optimiser import Optimiser
from cascade_studio.stages.training.seeding import generator
from cascade_studio.stages.training.settings import Settings
from cascade_studio.stages.training.trainer import Trainer
from tools.small import MINI_FILES

from .captions import batch_tokens
from .compose import LARGE
from .data import SEED
from .export import FOLDER, _save, put_on_record
from .loop import Place, write_atomically
from .nets import load_trained
from .precondition import carrying
from .scenes import SHORT, Scenes, for_encoder
from .sizes import ENCODER, SHIPPED, STAGE_C
from .style_lora import OutOfTime, limit_minutes

log = logging.getLogger(__name__)

NAME, MOST = MINI_FILES["controlnet_canny"], 4_000_000
CONFIG = ControlNetConfig(c_in=1, c_proj=STAGE_C.c_hidden[0], proj_blocks=(0, 2, 4, 6), trunk=replace(ENCODER, c_in=1))
SETTINGS = Settings(
    name="cascade_mini_canny",
    steps=3000,
    batch_size=32,
    learning_rate=1e-3,
    warm_up=50,
    ema=0.995,
    resolution=SHIPPED.canvas.encoder_size[0],
    base="fp32",
    save_every=0,
    loss_weight="velocity",
    sample_every=0,
    seed=SEED,
)
HELD, TRUNK_STEPS = 64, 500


def fresh(encoder: nn.Module) -> ControlNet:
    """A ControlNet that changes nothing yet: the trunk of ``encoder``, its stem summed over the colours."""
    net = ControlNet(CONFIG)
    tensors = dict(encoder.backbone.state_dict())
    tensors["0.0.weight"] = tensors["0.0.weight"].sum(1, keepdim=True)
    net.backbone.load_state_dict(tensors)
    torch.manual_seed(SEED)
    for projection in net.projections:
        nn.init.xavier_uniform_(projection[0].weight)
        nn.init.zeros_(projection[2].weight)
        for parameter in projection[2].parameters():
            parameter.register_hook(silent)
    return net


def sharpen(control: ControlNet, rows: list[Row], steps: int, batch: int = 32, lr: float = 2e-3) -> list[float]:
    """Teach the trunk to see: a linear layer behind it, thrown away, tells latents from hints. Returns the losses."""
    chance = random.Random(SEED)
    torch.manual_seed(SEED)
    device = next(control.parameters()).device
    head = nn.Conv2d(CONFIG.trunk.c_features, STAGE_C.c_in, 1).to(device)
    optimiser = Optimiser([*control.backbone.parameters(), *head.parameters()], lr, warm_up=20)
    losses = []
    for step in range(steps):
        drawn = [rows[i] for i in chance.sample(range(len(rows)), min(batch, len(rows)))]
        hints, latents = (stack_rows(drawn, name).to(device) for name in ("hint", "latent"))
        with torch.autocast(device.type, torch.bfloat16):
            told = head(control.backbone(hints))
        loss = F.mse_loss(told.float(), latents)
        optimiser.step(loss, 1 - step / steps)
        losses.append(float(loss.detach()))
        if step % 50 == 49:
            log.info("trunk: step %d, loss %.3f", step + 1, sum(losses[-50:]) / 50)
    return losses


def silent(gradient: Tensor) -> Tensor:
    """Maps stay out of the channels that carry the noise itself (precondition.py): they do not know the time."""
    gradient = gradient.clone()
    gradient[: carrying(STAGE_C.c_in)] = 0
    return gradient


@torch.no_grad()
def make_rows(place: Place, count: int, hint: Callable[[Tensor], Tensor]) -> tuple[list[Row], Row]:
    """``count`` composed pictures with captions, encoded once, and the empty prompt."""
    scenes = Scenes(random.Random(SEED), sizes=LARGE, mirrored=0.5)
    nets = {name: load_trained(place, name) for name in ("encoder", "text")}
    rows: list[Row] = []
    size = place.sizes.canvas.encoder_size[::-1]
    while len(rows) < count:
        batch = scenes.batch(min(32, count - len(rows)))
        text, pooled = nets["text"](scenes.captions(batch.subjects, batch.colours).to(place.device))
        seen = F.interpolate(batch.rgb, size=size, mode="bilinear", antialias=True).clamp(0, 1)
        found = {
            "latent": nets["encoder"](for_encoder(batch.rgb.to(place.device), place.sizes.canvas)),
            "text": text,
            "pooled": pooled[:, None],
            "hint": hint(seen),
        }
        rows += [
            {name: value[i].half().cpu().clone() for name, value in found.items()} for i in range(len(batch.subjects))
        ]
    text, pooled = nets["text"](batch_tokens([[]], SHORT).to(place.device))
    return rows, {"text": text[0].cpu(), "pooled": pooled[:1].cpu()}


@torch.no_grad()
def measure_loss(objective: ControlObjective, rows: list[Row]) -> tuple[float, float]:
    """Mean losses on ``rows`` with the ControlNet, and without it, on the same noise."""
    plain = StageCObjective(objective.net, objective.empty, device=objective.device, drop_text=objective.drop_text)
    bare = [{name: value for name, value in row.items() if name != "hint"} for row in rows]

    def mean(judged: StageCObjective, given: list[Row]) -> float:
        parts = [
            judged.losses(
                given[i : i + 16], [generator(SEED, "held", j) for j in range(i, min(i + 16, len(given)))]
            ).raw
            for i in range(0, len(given), 16)
        ]
        return float(torch.cat(parts).mean())

    return mean(objective, rows), mean(plain, bare)


def learn(
    place: Place, work: Path, settings: Settings, minutes: float | None, pictures: int, hint: Callable[[Tensor], Tensor]
) -> tuple[dict[str, Tensor], tuple[float, float]]:
    """Train; returns the tensors and the held-out losses with and without them."""
    work.mkdir(parents=True, exist_ok=True)
    pool = work / f"pool_{pictures}.pt"
    if not pool.is_file():
        write_atomically(make_rows(place, pictures + HELD, hint), pool)
    rows, empty = torch.load(pool)
    control = fresh(load_trained(place, "encoder")).to(place.device)
    trunk = work / "trunk.pt"
    if not trunk.is_file():
        sharpen(control, rows[HELD:], TRUNK_STEPS)
        write_atomically(control.backbone.state_dict(), trunk)
    control.backbone.load_state_dict(torch.load(trunk))
    net = frozen_net(
        "stage_c",
        STAGE_C,
        load_trained(place, "stage_c").state_dict(),
        base="fp32",
        checkpointing=False,
        device=place.device,
    )
    objective = ControlObjective(net, empty, device=place.device, drop_text=0.2, controlnet=control)
    trainer = Trainer(objective, control, rows[HELD:], settings)
    try:
        train(
            trainer,
            Store(work / "state", settings.identity(str(pictures))),
            limit_minutes(minutes, TrainingProgress(settings.steps)),
        )
    except OutOfTime:
        pass
    control.load_state_dict(trainer.result())
    return control.state_dict(), measure_loss(objective, rows[:HELD])


def main() -> None:
    """Train the ControlNet that ships."""
    parser = argparse.ArgumentParser(prog="training.mini.canny_controlnet", description=__doc__.split("\n")[0])
    parser.add_argument("--mini", type=Path, default=SHIPPED.work, help="the recipe's work folder")
    parser.add_argument("--work", type=Path, default=cache_root() / "mini-canny", help="where the state is kept")
    parser.add_argument("--steps", type=int, default=SETTINGS.steps)
    parser.add_argument("--minutes", type=float, default=25.0, help="the most that training may take")
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    hint = importlib.import_module("cascade_studio.stages.inputs.canny").make_hint
    place = Place(options.mini, torch.device(options.device), False)
    tensors, losses = learn(
        place, options.work, replace(SETTINGS, steps=options.steps), options.minutes, options.pictures, hint
    )
    log.info("held-out loss %.4f with the ControlNet, %.4f without", *losses)
    size = _save(FOLDER, NAME, "controlnet", CONFIG, tensors)
    if size > MOST:
        raise SystemExit(f"The ControlNet takes {size:,} bytes, more than {MOST:,}. Feed fewer blocks.")
    put_on_record()


if __name__ == "__main__":
    main()
