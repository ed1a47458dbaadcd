"""Seconds against distance from the exact picture, for Cache for Cascade and for fewer steps, on Cascade Mini.

    python3 dev.py run tests/benchmarks/measure_cache.py [--pictures N] [--held-out] [--rows NAME ...]

The official settings (20 + 10 steps, cfg 4 and 1.1), pictures of 256 px by the nodes in the host, on one thread of a
processor. Seconds are processor time of Stage C, Stage B and Stage A for one picture; distance is the PSNR to the exact
picture, as the mean over all and as the worst of them. The presets were chosen on the sheet's scenes; ``--held-out``
takes prompts that neither they nor Mini's training have seen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import inprocess

BASE = inprocess.prepare()

import torch  # noqa: E402
from mini_studio import MiniStudio  # noqa: E402

from cascade_studio.stages.diffusion.reuse import CAREFUL, FAST, OFF  # noqa: E402
from tools.scenes import SHEET  # noqa: E402

SPLIT = Path(__file__).resolve().parents[2] / "training" / "mini" / "split.json"
ROWS: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
    ("off", OFF, {}, {}),
    ("off, Stage B at cfg 1", OFF, {}, {"cfg": 1.0}),
    ("careful", CAREFUL, {}, {}),
    ("careful, Stage B at cfg 1", CAREFUL, {}, {"cfg": 1.0}),
    ("fast", FAST, {}, {}),
    ("fast, Stage B at cfg 1", FAST, {}, {"cfg": 1.0}),
    ("off, 10 + 5 steps", OFF, {"steps": 10}, {"steps": 5}),
)


def paint(studio: MiniStudio, models: dict[str, Any], prompt: str, seed: int, prior: dict, decoder: dict) -> Any:
    """The picture (1, H, W, 3) and the processor time of its three stages."""
    given = {"positive": studio.text(prompt), "negative": studio.negative, "seed": seed}
    canvas = studio.canvas()[0]
    started = time.process_time()
    c = studio.sample_prior(canvas, model=models["prior"], **{**given, **prior})
    b = studio.sample_decoder(c, model=models["decoder"], **{**given, **decoder})
    picture = studio.call("CascadeStudio_DecodeStageA", latent=b, vae=studio.parts.stage_a)
    return picture, time.process_time() - started


def psnr(picture: torch.Tensor, exact: torch.Tensor) -> float:
    """Decibels, of pictures in 0 to 1."""
    return float(-10 * torch.log10((picture - exact).square().mean().clamp(min=1e-12)))


def read_held_out(count: int) -> list[str]:
    """``count`` of the prompts that Mini's training held out."""
    prompts = json.loads(SPLIT.read_text(encoding="utf-8"))["prompts"]
    return [each["prompt"] for each in prompts[:: max(1, len(prompts) // count)]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=6, help="how many of the sheet's scenes")
    parser.add_argument("--held-out", action="store_true", help="other prompts: Mini's held-out ones, evenly spread")
    parser.add_argument("--rows", nargs="+", choices=[row[0] for row in ROWS], help="only these; 'off' is always there")
    options = parser.parse_args()
    studio = MiniStudio(inprocess.Host(BASE))
    torch.set_num_threads(1)
    prompts = read_held_out(options.pictures) if options.held_out else [scene.prompt for scene in SHEET]
    jobs = [(prompt, seed) for seed, prompt in enumerate(prompts[: options.pictures], 1)]
    exact: list[torch.Tensor] = []
    seconds_exact = 0.0
    sys.stdout.write("| cache | seconds | times as fast | PSNR dB, mean | worst |\n| --- | --- | --- | --- | --- |\n")
    for name, preset, prior, decoder in ROWS:
        if options.rows and name not in ("off", *options.rows):
            continue
        models = {
            part: studio.call("CascadeStudio_Cache", model=getattr(studio.parts, part), preset=preset)
            for part in ("prior", "decoder")
        }
        paint(studio, models, *jobs[0], {**prior, "steps": 1}, {**decoder, "steps": 1})  # loads the models
        made = [paint(studio, models, *job, prior, decoder) for job in jobs]
        seconds = statistics.median(took for _, took in made)
        exact = exact or [picture for picture, _ in made]
        seconds_exact = seconds_exact or seconds
        found = [psnr(picture, right) for (picture, _), right in zip(made, exact, strict=True)]
        far = "exact | exact" if name == "off" else f"{statistics.mean(found):.1f} | {min(found):.1f}"
        sys.stdout.write(f"| {name} | {seconds:.2f} | {seconds_exact / seconds:.2f} | {far} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
