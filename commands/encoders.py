"""The models of a training run from their files: the network that learns, and what encodes pictures and captions."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..stages.errors import WrongFile
from ..stages.files import convert, load
from ..stages.files.header import load_file, read_header
from ..stages.files.identify import identify
from ..stages.files.kinds import KINDS
from ..stages.nets.encoder import normalise
from ..stages.training.cache import Encoders, fingerprint
from ..stages.training.control import make_hint_maker
from ..stages.training.words import TABLE, Words, text_tower, token_ids
from .places import find_comfyui


def read_network(path: str, *kinds: str) -> tuple[Any, dict[str, Tensor]]:
    """Configuration and canonical tensors of the network of one of ``kinds`` in the file at ``path``."""
    tensors, metadata = load_file(path)
    kind = load.require(identify(tensors, metadata), kinds, Path(path).name)
    if kind.config is None:
        raise WrongFile(f"{Path(path).name} is incomplete: {kind.problem}. Download it again.")
    return kind.config, convert.dequantise(convert.normalise(tensors, kind), None)


def check_network(path: str, *kinds: str) -> None:
    """As :func:`read_network`, but from the file's header alone: what is wrong is told before hours of work."""
    header = read_header(path)
    load.require(identify(header.tensors, header.metadata), kinds, Path(path).name)


def read_image_encoder(path: str) -> tuple[Any, dict[str, Tensor]]:
    """As :func:`read_network` for the image encoder, alone or with the Previewer."""
    config, tensors = read_network(path, "encoder", "stage_c_vae")
    if not hasattr(config, "encoder"):
        return config, tensors
    if config.encoder is None:
        raise WrongFile(f"{Path(path).name} holds the Previewer alone. Choose effnet_encoder.")
    return config.encoder, {
        key[len("encoder.") :]: value for key, value in tensors.items() if key.startswith("encoder.")
    }


@cache
def load_tokenizer() -> Any:
    """CLIP's tokenizer, from the host's files."""
    from transformers import CLIPTokenizer

    root = find_comfyui(models=False)
    files = root / "comfy" / "sd1_tokenizer" if root else None
    if files is None or not files.is_dir():
        raise WrongFile(
            f"ComfyUI's tokenizer is needed, and {files or 'no ComfyUI around this pack'} is not there. Set "
            "COMFYUI_PATH to the folder of your ComfyUI."
        )
    return CLIPTokenizer.from_pretrained(files)


class Coders:
    """The image encoder, the text encoder and Stage A, built when first asked: what was encoded before needs none.

    :meth:`close` lets all of them go: a run holds what they made, not them.
    """

    def __init__(self, image: str, text: str, stage_a: str, device: torch.device) -> None:
        self.device, self.nets = device, {}
        self.image, self.text = read_image_encoder(image), read_network(text, "text_encoder")
        self.stage_a = read_network(stage_a, "stage_a") if stage_a else None

    def build(self, name: str) -> nn.Module:
        """The network ``name`` ("image", "text", "stage_a") on the device, kept until :meth:`close`."""
        if name not in self.nets:
            self.nets[name] = getattr(self, f"_build_{name}")()
        return self.nets[name]

    def _build_image(self) -> nn.Module:
        config, tensors = self.image
        return self._fill(KINDS["encoder"].module(config, dtype=torch.float32), tensors)

    def _build_stage_a(self) -> nn.Module:
        config, tensors = self.stage_a
        return self._fill(KINDS["stage_a"].module(config, dtype=torch.float32), tensors)

    def _build_text(self) -> nn.Module:
        config, tensors = self.text
        base = "fp32" if self.device.type == "cpu" else "bf16"
        return text_tower(config, tensors, Words([], tensors[TABLE]), base=base, device=self.device)

    def _fill(self, net: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
        net.load_state_dict({key: tensors[key] for key in net.state_dict() if key in tensors}, strict=False)
        return net.to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode_picture(self, image: Tensor) -> Tensor:
        """(1, 3, h, w) in [0, 1] → (1, 16, h/32, w/32)."""
        return self.build("image")(normalise(image.to(self.device)))

    @torch.no_grad()
    def encode_full(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) in [0, 1] → (1, 4, H/4, W/4), Stage A's."""
        return self.build("stage_a").encode(image.to(self.device))

    @torch.no_grad()
    def encode_caption(self, text: str) -> tuple[Tensor, Tensor]:
        """Hidden states (77, width) and pooled text (1, width)."""
        hidden, pooled = self.build("text")(token_ids(text, (), load_tokenizer())[None].to(self.device))
        return hidden[0], pooled[0]

    def encoders(self, hint: str = "") -> Encoders:
        """As the training core wants them; ``hint`` is that of a ControlNet that learns."""
        mark = fingerprint(self.image[1])
        return Encoders(
            self.encode_picture,
            self.encode_caption,
            mark,
            fingerprint(self.text[1]),
            stage_a=None if self.stage_a is None else self.encode_full,
            stage_a_mark="" if self.stage_a is None else fingerprint(self.stage_a[1]),
            hint=make_hint_maker(hint, partial(Coders.encode_picture, self)) if hint else None,
            hint_mark=f"{hint} {mark if hint == 'super_resolution' else ''}",
            cell=self.image[0].native_compression,
        )

    def close(self) -> None:
        """Let go of all networks and tensors."""
        self.nets, self.image, self.text, self.stage_a = {}, None, None, None
