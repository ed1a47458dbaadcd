"""What a word's weight changes, for each weighting of Encode Prompt: the conditioning, the attention and the picture.

    python3 dev.py run tests/benchmarks/measure_weights.py [--only towers|attention|pictures] [--pictures N]

The conditioning: three text towers in the host's own classes, Cascade Mini's (trained), the tests' family (random, 64
wide) and one of the official width (random, 1280 wide, 20 heads, 4 layers instead of 32). Told is by how many percent
of their length the states of the weighted words, all states and the pooled text move, as the mean over prompts. The
attention: the share of Stage C's attention that lies on the weighted words, Mini's as the mean over its layers at half
noise, and what it would be if all tokens were heard alike. The picture: Cascade Mini's against that of the plain
prompt, in dB and as the likeness of what is seen to the words; and with the states or the pooled text of the next
prompt in place of its own.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("CASCADE_STUDIO_OFFLINE", "1")
sys.path.append(str(Path(__file__).resolve().parents[1]))

import inprocess  # noqa: E402
import torch  # noqa: E402
from family import weights_for, write_family  # noqa: E402
from family_shapes import TEXT, text_shapes  # noqa: E402
from mini_studio import MiniStudio  # noqa: E402
from torch import Tensor  # noqa: E402
from world import FP32, Studio  # noqa: E402

from cascade_studio.stages.attention import layers  # noqa: E402
from cascade_studio.stages.inputs.canvas import plan_canvas  # noqa: E402
from cascade_studio.stages.nets.hooks import Place  # noqa: E402
from tools.scenes import SHEET, Scene  # noqa: E402

CONTRAST, ATTENTION, HOST = METHODS = ("contrast", "attention", "comfyui")
WEIGHT = 1.4
WEIGHTS = (WEIGHT, 2.0)
WIDE = {**TEXT, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 4, "num_attention_heads": 20}
WIDE["projection_dim"] = WIDE["hidden_size"]


class Spy(layers.AttentionLayer):
    """Notes how much of every attention lies on the tokens at ``places`` of the text."""

    order = 100

    def __init__(self, places: list[int]) -> None:
        self.places, self.shares = torch.tensor(places), list[float]()

    def attend(
        self, place: Place, q: Tensor, k: Tensor, v: Tensor, n_self: int, mask: Tensor | None, following: layers.Attend
    ) -> Tensor:
        heads = [x.unflatten(-1, (place.heads, -1)).transpose(1, 2).float() for x in (q, k)]
        products = heads[0] @ heads[1].transpose(2, 3) / math.sqrt(heads[0].shape[-1])
        products = products if mask is None else products + mask[:, None]
        self.shares.append(float(products.softmax(-1)[..., n_self + self.places].sum(-1).mean()))
        return following(q, k, v, n_self, mask)


def weigh(scene: Scene, weight: float) -> str:
    """The scene's prompt with its subject weighted."""
    return scene.prompt.replace(scene.subject, f"({scene.subject}:{weight})")


def encode(studio: Studio, clip: Any, text: str, method: str) -> Any:
    return studio.call("CascadeStudio_EncodePrompt", clip=clip, text=text, weighting=method)


def find_places(studio: Studio, clip: Any, scene: Scene) -> list[int]:
    """Where the weighted words' tokens lie."""
    weights = encode(studio, clip, weigh(scene, WEIGHT), ATTENTION)[0][1]["cascade_studio_token_weights"][0]
    return [index for index, weight in enumerate(weights.tolist()) if weight != 1.0]


def percent(given: Tensor, plain: Tensor) -> float:
    """How far ``given`` has moved, in percent of the length of ``plain``."""
    return 100 * float((given - plain).norm() / plain.norm())


def measure_tower(studio: Studio, name: str, clip: Any) -> None:
    """One line for each weighting."""
    for method in METHODS:
        moved = []
        for scene in SHEET:
            places = find_places(studio, clip, scene)
            plain = studio.text(scene.prompt, clip=clip)[0]
            given = encode(studio, clip, weigh(scene, WEIGHT), method)[0]
            moved.append(
                (
                    percent(given[0][:, places], plain[0][:, places]),
                    percent(given[0], plain[0]),
                    percent(given[1]["pooled_output"], plain[1]["pooled_output"]),
                )
            )
        words, states, pooled = (statistics.mean(column) for column in zip(*moved))
        print(f"{name:<22} {method:<10} words {words:5.1f} %  all {states:5.1f} %  pooled {pooled:5.1f} %", flush=True)


def measure_towers(host: inprocess.Host, mini: MiniStudio) -> None:
    """Mini's, the family's, and one of the official width."""
    write_family(host.models)
    host.folder_paths.filename_list_cache.clear()
    small = Studio.of(host, host.models, **FP32)
    name = small.write("text_encoders/wide", weights_for(text_shapes(WIDE)))
    wide = small.call("CascadeStudio_LoadTextEncoder", text_encoder=name, dtype="fp32")
    measure_tower(mini, "Cascade Mini", mini.parts.clip)
    measure_tower(small, "random, 64 wide", small.parts.clip)
    measure_tower(small, "random, 1280 wide", wide)


def measure_attention(studio: MiniStudio) -> None:
    """The share of the attention on the weighted words, plain and weighted, and on the tokens behind the prompt."""
    net, noise = studio.eyes.stage_c, torch.randn(1, 16, 6, 6, generator=torch.Generator().manual_seed(1))
    shares: dict[str, list[float]] = {"plain": [], "weighted": [], "behind": []}
    counts = []
    for scene in SHEET:
        places = find_places(studio, studio.parts.clip, scene)
        text, extra = studio.text(scene.prompt)[0]
        counts.append(len(places))
        behind = list(range(len(scene.prompt.split()) + 1, text.shape[1]))
        for name, weight, watched in (("plain", 1.0, places), ("weighted", WEIGHT, places), ("behind", 1.0, behind)):
            weights = torch.ones(1, text.shape[1])
            weights[:, places] = weight
            spy = Spy(watched)
            hooks = layers.LayeredHooks(layers.Changes(layers=(layers.TokenLayer(weights), spy)), net.backend.attention)
            with torch.inference_mode():
                net(noise, torch.full((1,), 0.5), text, extra["pooled_output"], hooks=hooks)
            shares[name].append(statistics.mean(spy.shares))
    plain, weighted, rest = (100 * statistics.mean(found) for found in shares.values())
    print(f"Mini's Stage C, attention on the words   plain {plain:.2f} %  weight {WEIGHT} {weighted:.2f} %", flush=True)
    print(f"Mini's Stage C, on the end and the padding behind the prompt {rest:.2f} %", flush=True)
    count = statistics.mean(counts)
    for side, cells in ((256, 36), (1024, math.prod(plan_canvas(1024, 1024).prior_shape()[2:]))):
        others = cells + 77 + 2 * 4 - count
        even = [100 * count * weight / (others + count * weight) for weight in (1.0, WEIGHT)]
        print(f"all tokens heard alike, {side} px            plain {even[0]:.2f} %  weight {WEIGHT} {even[1]:.2f} %")


def list_rows(studio: MiniStudio, scene: Scene, other: Scene) -> Iterator[tuple[str, Any]]:
    """What is painted of a scene: its name, and its conditioning."""
    text, extra = studio.text(scene.prompt)[0]
    states, more = studio.text(other.prompt)[0]
    yield "another's states", [[states, extra]]
    yield "another's pooled text", [[text, more]]
    for method in METHODS:
        for weight in WEIGHTS:
            yield f"{method} {weight}", encode(studio, studio.parts.clip, weigh(scene, weight), method)


def measure_pictures(studio: MiniStudio, count: int) -> None:
    """How far each row's pictures are from the plain ones, and how much they look like the subject."""
    scenes = SHEET[:count]
    shifted = [*scenes[1:], scenes[0]]
    plain = studio.paint_all(scenes)
    rows = [list(list_rows(studio, *pair)) for pair in zip(scenes, shifted)]
    print(f"{'plain':<24} likeness {likeness(studio, plain, scenes):.3f}", flush=True)
    for each in zip(*rows):
        given = studio.paint_all(scenes, positive=join([positive for _, positive in each]))
        errors = (given - plain).square().mean((1, 2, 3)).clamp(min=1e-12)
        decibels = float((-10 * errors.log10()).mean())
        name = each[0][0]
        print(f"{name:<24} likeness {likeness(studio, given, scenes):.3f}   {decibels:5.1f} dB from plain", flush=True)


def join(conditionings: Sequence[Any]) -> Any:
    """One conditioning with a prompt for each picture of a batch."""
    texts, extras = zip(*(conditioning[0] for conditioning in conditionings))
    return [[torch.cat(texts), {key: torch.cat([extra[key] for extra in extras]) for key in extras[0]}]]


def likeness(studio: MiniStudio, pictures: Tensor, scenes: Sequence[Scene]) -> float:
    """Between what is seen and the scenes in words, on average."""
    said = studio.eyes.said([scene.prompt for scene in scenes])
    return float((studio.eyes.seen(pictures) * said).sum(-1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=len(SHEET), help="how many of the sheet's scenes are painted")
    parser.add_argument("--only", choices=("towers", "attention", "pictures"), help="a part of it")
    options = parser.parse_args()
    host = inprocess.Host(inprocess.prepare())
    torch.set_num_threads(1)
    mini = MiniStudio(host)
    if options.only in (None, "towers"):
        measure_towers(host, mini)
    if options.only in (None, "attention"):
        measure_attention(mini)
    if options.only in (None, "pictures"):
        measure_pictures(mini, options.pictures)


if __name__ == "__main__":
    main()
