"""Train a LoRA from the command line: ``studio.py train --config FILE``. See docs/training.md.

The file is JSON: "settings" are those of the nodes (stages/training/settings.py), the rest says where things lie.
Started by torchrun or accelerate launch, several processes share every batch and reach the same result.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..stages.errors import CascadeError, WrongFile, WrongInput
from ..stages.files import convert, load
from ..stages.files.header import load_file
from ..stages.files.identify import identify
from ..stages.files.kinds import KINDS
from ..stages.nets.encoder import normalise
from ..stages.training.cache import Encoders, encode_caption, encode_set, fingerprint
from ..stages.training.dataset import TrainingSet, from_folder
from ..stages.training.distributed import Crew, from_environment
from ..stages.training.pictures_io import draw_losses, read_picture
from ..stages.training.run import Lesson, Run, add_words
from ..stages.training.settings import Settings, from_dict
from ..stages.training.trainer import Trainer
from ..stages.training.words import Words, text_tower, token_ids
from .places import find_comfyui

log = logging.getLogger(__name__)

LOG_SECONDS = 10


@dataclass(frozen=True)
class Config:
    """The file. Paths are relative to it.

    stage_c, text_encoder, image_encoder: model files in any layout. pictures: a folder with captions. output: a folder
    for the LoRA, the state and what was encoded. caption: for pictures without one.
    """

    stage_c: str
    text_encoder: str
    image_encoder: str
    pictures: str
    output: str
    caption: str = ""
    settings: Settings = Settings()


def read_config(path: Path) -> Config:
    """The configuration in ``path``; :class:`WrongInput` for one that cannot be used."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WrongInput(
            f"The configuration {path.name} cannot be read ({error}). It has to be a JSON file."
        ) from error
    known = {field.name: field for field in fields(Config)}
    missing = [
        name for name in ("stage_c", "text_encoder", "image_encoder", "pictures", "output") if name not in values
    ]
    unknown = sorted(set(values) - set(known))
    if missing or unknown:
        raise WrongInput(
            f"The configuration {path.name} lacks {', '.join(missing) or 'nothing'} and has "
            f"{', '.join(unknown) or 'nothing'} that is not known. Entries are: {', '.join(known)}."
        )
    settings = from_dict(values.pop("settings", {}), f"The settings in {path.name}")
    paths = {
        name: value if name == "caption" else str((path.parent / value).expanduser()) for name, value in values.items()
    }
    return Config(**paths, settings=settings)


# Models


def read_network(path: str, *kinds: str) -> tuple[Any, dict[str, Tensor]]:
    """Configuration and canonical tensors of the network of one of ``kinds`` in the file at ``path``."""
    tensors, metadata = load_file(path)
    kind = load.require(identify(tensors, metadata), kinds, Path(path).name)
    if kind.config is None:
        raise WrongFile(f"{Path(path).name} is incomplete: {kind.problem}. Download it again.")
    return kind.config, convert.dequantise(convert.normalise(tensors, kind), None)


@cache
def tokenizer() -> Any:
    """CLIP's tokenizer, from the host's files."""
    from transformers import CLIPTokenizer

    root = find_comfyui(models=False)
    files = root / "comfy" / "sd1_tokenizer" if root else None
    if files is None or not files.is_dir():
        raise WrongFile(
            f"ComfyUI's tokenizer is needed, and {files or 'no ComfyUI around this pack'} is not there. Set "
            f"COMFYUI_PATH "
            "to the folder of your ComfyUI."
        )
    return CLIPTokenizer.from_pretrained(files)


class Coders:
    """The image encoder and the text encoder, built when first asked: what was encoded before needs neither."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.device = device
        self.image = read_network(config.image_encoder, "encoder", "stage_c_vae")
        self.text = read_network(config.text_encoder, "text_encoder")

    @cached_property
    def image_net(self) -> nn.Module:
        """The image encoder in float32."""
        config, tensors = self.image
        if hasattr(config, "encoder"):
            if config.encoder is None:
                raise WrongFile("The image encoder's file holds the Previewer alone. Choose effnet_encoder.")
            config = config.encoder
            tensors = {key[len("encoder.") :]: value for key, value in tensors.items() if key.startswith("encoder.")}
        net = KINDS["encoder"].module(config, dtype=torch.float32)
        net.load_state_dict({key: tensors[key] for key in net.state_dict() if key in tensors}, strict=False)
        return net.to(self.device).eval().requires_grad_(False)

    @cached_property
    def text_net(self) -> nn.Module:
        """The text encoder in float32 on a processor, in bfloat16 elsewhere."""
        config, tensors = self.text
        base = "fp32" if self.device.type == "cpu" else "bf16"
        return text_tower(
            config,
            tensors,
            Words([], tensors["text_model.embeddings.token_embedding.weight"]),
            base=base,
            device=self.device,
        )

    @torch.no_grad()
    def picture(self, image: Tensor) -> Tensor:
        return self.image_net(normalise(image.to(self.device)))

    @torch.no_grad()
    def caption(self, text: str) -> tuple[Tensor, Tensor]:
        hidden, pooled = self.text_net(token_ids(text, (), tokenizer())[None].to(self.device))
        return hidden[0], pooled[0]

    def encoders(self) -> Encoders:
        """As the training core wants them."""
        return Encoders(self.picture, self.caption, fingerprint(self.image[1]), fingerprint(self.text[1]))


# The run


def prepare_run(config: Config, crew: Crew, device: torch.device) -> Lesson:
    """Check the pictures and encode what was not encoded before; process 0 first, so that the others find it done."""
    pictures: TrainingSet = from_folder(config.pictures, read_picture, config.caption, config.settings.resolution)
    coders = Coders(config, device)
    ways, store = coders.encoders(), Path(config.output) / "cache"
    prompt = config.settings.sample_prompt or pictures.pictures[0].caption
    if crew.rank == 0:
        log.info("%s", pictures.report())
        encode_set(pictures, ways, store, log_every(LOG_SECONDS, "encoding pictures"))
    crew.wait()
    rows, empty = encode_set(pictures, ways, store)
    stage_c, weights = read_network(config.stage_c, "stage_c")
    identity = config.settings.identity(fingerprint(weights), pictures.digest, ways.picture_mark, ways.text_mark)
    bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    lesson = Lesson(
        config.settings, identity, device, bfloat16, rows, empty, encode_caption(prompt, ways, store), stage_c, weights
    )
    if config.settings.tokens:
        lesson.text = coders.text
        add_words(lesson, [picture.caption for picture in pictures.pictures], prompt, tokenizer())
    return lesson


def log_every(seconds: float, what: str) -> Any:
    """A callback that logs now and then."""
    last = [time.monotonic()]

    def tell(done: int, total: int) -> None:
        if time.monotonic() - last[0] > seconds or done == total:
            last[0] = time.monotonic()
            log.info("%s: %d of %d", what, done, total)

    return tell


class Progress:
    """Logs the loss and the time left."""

    def __init__(self, steps: int) -> None:
        self.steps, self.started, self.first, self.told = steps, time.monotonic(), -1, time.monotonic()

    def __call__(self, trainer: Trainer) -> None:
        if self.first < 0:
            self.first = trainer.step - 1
        now = time.monotonic()
        if now - self.told > LOG_SECONDS or trainer.step == self.steps:
            self.told = now
            left = (now - self.started) / (trainer.step - self.first) * (self.steps - trainer.step)
            recent = trainer.losses[-100:]
            log.info(
                "step %d of %d, loss %.4f, %d:%02d left",
                trainer.step,
                self.steps,
                sum(recent) / len(recent),
                left // 60,
                left % 60,
            )


def run(config: Config, device: str | None = None) -> Path:
    """Train as ``config`` says; returns the LoRA's file."""
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    crew = from_environment(kind)
    try:
        place = torch.device("cuda", torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)
        lesson = prepare_run(config, crew, place)
        if crew.rank == 0:
            log.info("%s %d process%s.", lesson.plan(crew.size).describe(), crew.size, "es" if crew.size > 1 else "")
        output, name = Path(config.output), config.settings.name
        training = Run(lesson, crew)
        path = training.train(
            output / "state",
            lambda: output / f"{name}.safetensors",
            Progress(config.settings.steps) if crew.rank == 0 else None,
        )
        if crew.rank == 0:
            for word, stem in training.save_words(output, name):
                log.info("Learned word %s: %s.safetensors", word, stem)
            save_plot(training.trainer.losses, name, output / f"{name}.loss.png")
            log.info("%s, %d steps", path, training.trainer.step)
        crew.wait()
        return path
    finally:
        crew.close()


def save_plot(losses: Sequence[float], name: str, path: Path) -> None:
    """The losses as a PNG file."""
    from PIL import Image

    plot = draw_losses(losses, name)[0]
    Image.fromarray((plot * 255).round().byte().numpy()).save(path)


def main(arguments: Sequence[str]) -> int:
    """Read the command line and train; returns the exit code."""
    parser = argparse.ArgumentParser(prog="studio.py train", description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="the JSON file")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--threads", type=int, help="CPU threads of a process (default: all)")
    parser.add_argument("--steps", type=int, help="other than in the file")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        config = read_config(options.config)
        if options.steps:
            config = replace(config, settings=replace(config.settings, steps=options.steps))
        run(config, options.device)
    except CascadeError as error:
        log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        log.info("Stopped. The same command goes on from here.")
        return 130
    return 0
