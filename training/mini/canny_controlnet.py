"""A small canny ControlNet for Mini's Stage C: python3 dev.py run -m training.mini.canny_controlnet

2,000 pictures of the recipe with captions become a folder; a canny ControlNet learns from it by the trainer of the
nodes, as ``studio.py train`` would, for a fixed number of steps, and goes into mini/controlnet. Then the same pictures
are painted without a net and with it: how well do their edges agree with those they were told? Writes
results_control.md beside this file. Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_studio.commands.places import cache_root
from cascade_studio.commands.train import TrainingProgress, log_every, prepare_run
from cascade_studio.stages import from_file
from cascade_studio.stages.inputs.canny import make_hint
from cascade_studio.stages.nets.controlnet import ControlNet
from cascade_studio.stages.nets.stage_c import StageC
from cascade_studio.stages.training.distributed import ALONE
from cascade_studio.stages.training.export import save_tensors
from cascade_studio.stages.training.run import Run
from cascade_studio.stages.training.settings import PRESETS, Settings, from_dict
from cascade_studio.stages.training.trainer import Trainer
from tools.scenes import SCENES, Scene
from tools.small import MINI_FILES

from .captions import COLOUR_TEMPLATES, PLAIN_TEMPLATES, join_caption
from .compose import LARGE
from .data import SEED
from .export import FOLDER, configure_training, load_shipped, put_on_record
from .machine import has_fast_bfloat16
from .nets import decode, encode_prompts, paint
from .scenes import Scenes
from .sizes import SHIPPED
from .subjects import PLAIN

log = logging.getLogger(__name__)

TABLE = Path(__file__).with_name("results_control.md")
NAME, MOST = MINI_FILES["controlnet_canny"], 4_000_000
"""Where the file goes in mini/, and the most bytes that it may take."""
PAIRS, SCENE_COUNT, SEEN_SIDE = 2000, 12, 64
PAINTS = ("stage_a", "text", "stage_b", "stage_c")
"""Nets that paint."""
TEST_SCENES = (Scene("rocket", "blue"), Scene("house", "pink"), Scene("snowman", "purple"))
"""Those of tests/host/test_mini_examples.py."""
SETTINGS = {
    **PRESETS["controlnet"],
    "what": "controlnet",
    "name": Path(NAME).name,
    "hint": "canny",
    "control_blocks": ("0", "7"),  # the level with all cells: in the deeper one edges would lie between four of them
    "resolution": SHIPPED.canvas.encoder_size[0],
    "loss_weight": "velocity",
    "checkpointing": False,
    "held_out": 64,
    "validate_every": 100,
    "save_every": 0,
    "sample_every": 0,
}


def edges(rgb: Tensor) -> Tensor:
    """Where neighbouring pixels differ, at 64 pixels: (B, 3, H, W) → (B, N), unit length, without their mean."""
    small = F.interpolate(rgb, size=(SEEN_SIDE, SEEN_SIDE), mode="area")
    across = (small[..., 1:, 1:] - small[..., :-1, 1:]).abs().mean(1)
    down = (small[..., 1:, 1:] - small[..., 1:, :-1]).abs().mean(1)
    found = (across + down).flatten(1)
    return F.normalize(found - found.mean(1, keepdim=True), dim=1)


def write_pairs(folder: Path, count: int = PAIRS) -> None:
    """``count`` composed pictures, mirrored half of the time, each with a caption that does not say which way."""
    chance = random.Random(SEED + 3)
    scenes = Scenes(chance, sizes=LARGE, mirrored=0.5)
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, count, 50):
        batch = scenes.batch(min(50, count - start))
        for number, (rgb, subject, colour) in enumerate(zip(batch.rgb, batch.subjects, batch.colours), start):
            template = chance.choice(PLAIN_TEMPLATES if colour == PLAIN else COLOUR_TEMPLATES)
            pixels = (rgb * 255).round().byte().movedim(0, -1).numpy()
            Image.fromarray(pixels).save(folder / f"{number:04d}.png", compress_level=1)
            words = join_caption(template, scenes.subjects[subject].labels["en"], colour)
            (folder / f"{number:04d}.txt").write_text(words, encoding="utf-8")


def make_settings(steps: int) -> Settings:
    """Those of a run of ``steps``."""
    return from_dict({**SETTINGS, "steps": steps, "seed": SEED})


def train_net(work: Path, steps: int) -> tuple[Path, dict[str, float]]:
    """Train for ``steps``; the file, and how long that took."""
    pictures = work / "pictures"
    if not pictures.is_dir():
        write_pairs(work / "pictures.new")
        (work / "pictures.new").rename(pictures)
    config = configure_training(pictures, work, make_settings(steps))
    clock = Clock(work / f"seconds {steps}.json", TrainingProgress(steps))
    lesson = prepare_run(config, ALONE, torch.device("cpu"))
    log.info("%s", lesson.plan().describe())
    run, path, state = Run(lesson), work / f"{Path(NAME).name}.safetensors", work / "state" / lesson.identity
    run.train(state, lambda: path, clock, clock.begin, on_prepare=log_every(10, "teaching the trunk"))
    (_, before), (_, after) = run.trainer.judged[0], run.trainer.judged[-1]
    return path, {"steps": steps, "cpu_minutes": clock.seconds / 60, "before": before, "after": after}


class Clock:
    """Counts processor time over all starts of a run, encoding and all preparation included."""

    def __init__(self, path: Path, progress: TrainingProgress) -> None:
        self.path, self.progress, self.at = path, progress, time.process_time()
        self.seconds = json.loads(path.read_text()) if path.is_file() else 0.0

    def begin(self, trainer: Trainer) -> None:
        """Before the first step of this start."""
        self.tick()

    def __call__(self, trainer: Trainer) -> None:
        self.progress(trainer)
        self.tick()

    def tick(self) -> None:
        """Count what has passed since the last time."""
        now = time.process_time()
        self.seconds, self.at = self.seconds + now - self.at, now
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.seconds))


# The measure


class Guided(nn.Module):
    """Stage C with the maps of one hint for each picture of a batch, conditional and unconditional alike."""

    def __init__(self, net: StageC, control: ControlNet, hint: Tensor) -> None:
        super().__init__()
        self.net, self.config = net, net.config
        maps = control(hint)
        self.maps = [maps.get(index) for index in range(max(maps) + 1)]

    def forward(self, x: Tensor, r: Tensor, **conditions: Tensor) -> Tensor:
        """As :meth:`.StageC.forward`."""
        times = len(x) // len(next(values for values in self.maps if values is not None))
        control = [None if values is None else values.repeat(times, 1, 1, 1) for values in self.maps]
        return self.net(x, r, **conditions, control=control)


def list_scenes(count: int) -> list[Scene]:
    """The scenes of the test, and others of other subjects."""
    found = {scene.subject: scene for scene in (*TEST_SCENES, *SCENES.values())}
    return list(found.values())[:count]


@torch.no_grad()
def measure(nets: Mapping[str, nn.Module], controls: Mapping[str, Path], count: int) -> dict[str, float]:
    """Mean agreement of edges (their cosine) with those of a mirrored picture of the same subject on another ground."""
    scenes = list_scenes(count)
    size = SHIPPED.canvas.encoder_size[::-1]
    shape = SHIPPED.canvas.prior_height, SHIPPED.canvas.prior_width
    said, empty = [scene.prompt for scene in scenes], encode_prompts(nets["text"], [""])[1]

    quick = torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16(torch.device("cpu")))

    def show(latent: Tensor, prompts: list[str], seed: int) -> Tensor:
        made = decode(nets["stage_b"], latent, encode_prompts(nets["text"], prompts)[1], empty, [seed] * count)
        return nets["stage_a"].decode(made).float().clamp(0, 1)

    with quick:
        first = paint(nets["stage_c"], nets["text"], said, [11] * count, grid_size=shape).float()
        given = show(first, said, 11).flip(3)
    hint = make_hint(F.interpolate(given, size=size, mode="bilinear", antialias=True).clamp(0, 1))
    others = [Scene(scene.subject, "yellow").prompt for scene in scenes]
    found = {}
    for name, path in {"no net": None, **controls}.items():
        net = nets["stage_c"] if path is None else Guided(nets["stage_c"], from_file(path, dtype=torch.float32), hint)
        with quick:
            latent = paint(net, nets["text"], others, [3] * count, grid_size=shape).float()
            shown = show(latent, others, 3)
        found[name] = float((edges(shown) * edges(given)).sum(1).mean())
        log.info("%s: edges agree to %.3f", name, found[name])
    return found


def describe(run: Mapping[str, float], found: Mapping[str, float], count: int) -> list[str]:
    """The record."""
    return [
        f"# {Path(NAME).name}, measured",
        "",
        "Written by `python3 dev.py run -m training.mini.canny_controlnet`.",
        "",
        f"{PAIRS:,} pictures of the recipe with captions, {run['steps']:.0f} steps of {SETTINGS['batch_size']} of them",
        "by the trainer of the nodes and its preset for ControlNets, in",
        f"{run['cpu_minutes']:.1f} processor minutes; what an earlier run encoded is not in them. Loss on the same",
        f"noise of {SETTINGS['held_out']} held-out pictures: {run['before']:.4f} before and {run['after']:.4f} after.",
        "",
        f"| {count} pictures | edges agree with those of a mirrored picture |",
        "| --- | --- |",
        *(f"| {name} | {value:.3f} |" for name, value in found.items()),
    ]


def main() -> None:
    """Train the ControlNet that ships, measure it, and write the record."""
    parser = argparse.ArgumentParser(prog="training.mini.canny_controlnet", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--scenes", type=int, default=SCENE_COUNT)
    parser.add_argument("--work", type=Path, default=cache_root() / "mini-canny")
    parser.add_argument("--measure", action="store_true", help="only measure the net that ships")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    target = FOLDER / f"{NAME}.safetensors"
    if options.measure:
        measure(load_shipped(*PAINTS), {"the net that ships": target}, options.scenes)
        return
    path, run = train_net(options.work, options.steps)
    with safe_open(path, "pt") as file:
        save_tensors({key: file.get_tensor(key) for key in file.keys()}, target, file.metadata())
    if target.stat().st_size > MOST:
        raise SystemExit(
            f"The ControlNet takes {target.stat().st_size:,} bytes, more than {MOST:,}. Feed fewer blocks."
        )
    put_on_record()
    found = measure(load_shipped(*PAINTS), {"the net that ships": target}, options.scenes)
    TABLE.write_text("\n".join(describe(run, found, options.scenes)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
