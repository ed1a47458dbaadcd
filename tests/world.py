"""The tiny family as the host loaded it, its pure networks, and short ways to sample with both."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from graphs import FILES, Graph
from safetensors.torch import save_file
from torch import Tensor, nn

from cascade_studio.stages import from_file
from cascade_studio.stages.diffusion import sampling
from cascade_studio.stages.diffusion.noise import NoiseStreams
from cascade_studio.stages.diffusion.official import OFFICIAL
from cascade_studio.stages.diffusion.sampling import Guidance

FP32 = {"prior_dtype": "fp32", "decoder_dtype": "fp32", "text_dtype": "fp32", "vae_dtype": "fp32"}
WORDS = "a small house by the sea, in the style of nobody in particular"
FEW_WORDS = "a red apple"
PRIOR_SCALE, DECODER_SCALE = 1.0, 1 / 0.43
"""What the host multiplies latents by before a stage sees them; Stage A divides by the second (official)."""


def relative(given: Tensor, expected: Tensor) -> float:
    """The largest difference in units of the standard deviation of what is expected."""
    assert given.shape == expected.shape
    given, expected = given.float(), expected.float()
    assert torch.isfinite(given).all() and expected.std() > 0
    return float((given - expected).abs().max() / expected.std())


def of_range(given: Tensor, expected: Tensor) -> float:
    """The largest difference in units of the range of what is expected: for results that differ by rounding alone."""
    return relative(given, expected) * float(expected.float().std() / (expected.max() - expected.min()))


def changed(given: Tensor, before: Tensor) -> bool:
    """Whether two results differ by more than rounding."""
    return relative(given, before) > 1e-3


@dataclass(frozen=True)
class Parts:
    """What Load Stable Cascade gives, and a prompt with its negative."""

    prior: Any
    decoder: Any
    clip: Any
    clip_vision: Any
    stage_a: Any
    stage_c_vae: Any
    positive: Any
    negative: Any

    @property
    def prompts(self) -> dict[str, Any]:
        """The conditioning inputs of a sampler."""
        return {"positive": self.positive, "negative": self.negative}


class Studio:
    """All parts of the family, loaded once; every call builds a prompt and runs it in the host."""

    def __init__(self, host: Any, models: Path, words: str = WORDS, **loading: Any) -> None:
        self.host, self.models, self.words, self.loading = host, models, words, {**FILES, **loading}

    @classmethod
    def of(cls, host: Any, models: Path, **given: Any) -> Studio:
        """The one studio of this process whose files are loaded with these inputs; in float32 with :data:`FP32`."""
        studios = vars(host).setdefault("studios", {})
        return studios.setdefault(tuple(sorted(given.items())), cls(host, models, **given))

    @classmethod
    def plain(cls, host: Any, models: Path) -> Studio:
        """The family in its default formats, and few words: what most tests of nodes need."""
        return cls.of(host, models, words=FEW_WORDS)

    @cached_property
    def parts(self) -> Parts:
        """The loaded files, and two prompts."""
        graph = self.graph()
        load = graph.add("CascadeStudio_Load", **self.loading)
        words = [graph.add("CLIPTextEncode", clip=load[2], text=text)[0] for text in (self.words, "")]
        return Parts(*graph.run(*(load[slot] for slot in range(6)), *words))

    @property
    def positive(self) -> Any:
        return self.parts.positive

    @property
    def negative(self) -> Any:
        return self.parts.negative

    @property
    def prompts(self) -> dict[str, Any]:
        return self.parts.prompts

    @cached_property
    def nets(self) -> dict[str, nn.Module]:
        """The pure networks of the same files, in fp32."""
        files = {
            "C": "diffusion_models/stage_c",
            "B": "diffusion_models/stage_b",
            "A": "vae/stage_a",
            "encoder": "vae/effnet_encoder",
            "previewer": "vae/previewer",
        }
        return {
            name: from_file(self.models / f"{file}.safetensors", dtype=torch.float32) for name, file in files.items()
        }

    @cached_property
    def prior_latent(self) -> dict[str, Any]:
        """A sampled Stage C latent of a 256x256 picture."""
        return self.sample_prior(self.canvas()[0], steps=2)

    def write(self, name: str, tensors: dict[str, Tensor]) -> str:
        """Save a model file as "folder/name"; returns the name that a loader offers."""
        path = self.models / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata={"format": "pt"})
        self.host.folder_paths.filename_list_cache.clear()
        return path.name

    def load(self, stage: str, name: str, dtype: str = "fp32") -> Any:
        """A MODEL of ours: ``stage`` "prior" or "decoder" from the file ``name``."""
        kind = {"prior": "CascadeStudio_LoadPrior", "decoder": "CascadeStudio_LoadDecoder"}[stage]
        return self.call(kind, **{stage: name}, dtype=dtype)

    def graph(self) -> Graph:
        return Graph(self.host)

    def call(self, kind: str, slot: int = 0, **inputs: Any) -> Any:
        """One output of one node, or all of the first n outputs when ``slot`` is a range."""
        graph = self.graph()
        node = graph.add(kind, **inputs)
        return graph.run(node[slot]) if isinstance(slot, int) else graph.run(*(node[i] for i in slot))

    def text(self, text: str, clip: Any = None) -> Any:
        return self.call("CLIPTextEncode", clip=clip or self.parts.clip, text=text)

    def canvas(self, width: int = 256, height: int = 256, batch: int = 1, **inputs: Any) -> list[dict[str, Any]]:
        """Empty latents of both stages."""
        return self.call("CascadeStudio_Canvas", range(2), width=width, height=height, batch_size=batch, **inputs)

    def sample_prior(self, latent: dict[str, Any], **inputs: Any) -> dict[str, Any]:
        given = {"model": self.parts.prior, **self.prompts, "latent": latent, **inputs}
        return self.call("CascadeStudio_SamplePrior", **given)

    def sample_decoder(self, prior: dict[str, Any], **inputs: Any) -> dict[str, Any]:
        given = {"model": self.parts.decoder, **self.prompts, "prior": prior, **inputs}
        return self.call("CascadeStudio_SampleDecoder", **given)

    def core_sample(self, model: Any, latent: dict[str, Any], *, steps: int = 2, **inputs: Any) -> Tensor:
        """Core's KSampler."""
        given = {
            "model": model,
            **self.prompts,
            "latent_image": latent,
            "sampler_name": "euler",
            "scheduler": "simple",
            "steps": steps,
            "cfg": 2.0,
            **inputs,
        }
        return self.call("KSampler", **given)["samples"]

    def decoder_prompts(
        self, prior: dict[str, Any] | None = None, **prompts: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Stage B's conditioning for core samplers, and its empty latent."""
        given = {**self.prompts, **prompts, "prior": prior or self.prior_latent}
        positive, negative, latent = self.call(
            "CascadeStudio_DecoderConditioning", range(3), model=self.parts.decoder, **given
        )
        return {"positive": positive, "negative": negative}, latent

    def pure_prior(self, shape: tuple[int, ...], seeds: list[int], start: Tensor | None = None, **run: Any) -> Tensor:
        """What ``stages`` alone makes of the same prompts; ``shape`` is (B, 16, h, w)."""
        conds = [
            {"clip_text": text[0][0], "clip_text_pooled": text[0][1]["pooled_output"]}
            for text in (self.positive, self.negative)
        ]
        return pure(self.nets["C"], conds, shape, seeds, start, **{**asdict(OFFICIAL["stage_c"]), **run})

    def pure_decoder(
        self, prior: Tensor, shape: tuple[int, ...], seeds: list[int], start: Tensor | None = None, **run: Any
    ) -> Tensor:
        conds = [
            {"effnet": codes, "clip": text[0][1]["pooled_output"]}
            for text, codes in ((self.positive, prior), (self.negative, torch.zeros_like(prior)))
        ]
        return pure(self.nets["B"], conds, shape, seeds, start, **{**asdict(OFFICIAL["stage_b"]), **run})


def check_works(host: Any) -> None:
    """A small picture comes out, and is the same every time: nothing that went wrong before has left a trace."""
    studio = Studio.plain(host, host.models)
    latent = studio.sample_decoder(studio.sample_prior(studio.canvas(64, 64)[0], steps=2), steps=1)
    picture = studio.call("CascadeStudio_DecodeStageA", latent=latent, vae=studio.parts.stage_a)
    assert picture.shape == (1, 64, 64, 3) and picture.std() > 0.01
    assert torch.equal(picture, vars(studio).setdefault("first_picture", picture))


@torch.inference_mode()
def pure(
    net: nn.Module,
    conds: list[dict[str, Tensor]],
    shape: tuple[int, ...],
    seeds: list[int],
    start: Tensor | None,
    *,
    steps: int,
    shift: float,
    cfg: float,
    denoise: float = 1.0,
    step: Any = sampling.step_ddpm,
    noise_shift: float | None = None,
    **guidance: Any,
) -> Tensor:
    """The official sampling loop on a pure network; ``start`` is x0 in the network's own scale.

    ``noise_shift`` is the shift at which ``start`` is noised, where that differs from the sampling's.
    """
    conds = [{name: value.float().expand(shape[0], *value.shape[1:]) for name, value in cond.items()} for cond in conds]
    times = sampling.timesteps(steps, denoise)
    x = NoiseStreams(seeds).next(shape)
    if start is not None:
        x = sampling.add_noise(start, x, sampling.logsnr(times[0], noise_shift or shift))
    noise = NoiseStreams(seeds, stream=1).next
    predict = sampling.pair_conditions(net, *conds)
    *_, last = sampling.sample(
        predict, x, timesteps=times, shift=shift, step=step, noise=noise, guidance=Guidance(cfg, **guidance)
    )
    return last.denoised
