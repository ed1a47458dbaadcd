"""What a picture needs once is done once: counted."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
from graphs import FILES
from world import FP32


def count_calls(monkeypatch: Any, owner: Any, name: str) -> list[int]:
    """A list that grows by the batch of every call of ``owner.name``."""
    calls, real = [], getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)]
        calls.append(len(tensors[0]) if tensors else 1)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_a_text_is_encoded_once_for_both_stages_and_the_drafts(studio, monkeypatch):
    graph, parts = studio.graph(), studio.parts
    calls = count_calls(monkeypatch, parts.clip, "encode_from_tokens_scheduled")
    texts = [graph.add("CLIPTextEncode", clip=parts.clip, text=text)[0] for text in ("a house", "")]
    prompts = dict(zip(("positive", "negative"), texts))
    canvas = graph.add("CascadeStudio_Canvas", width=256, height=256, batch_size=2)
    c = graph.add("CascadeStudio_SamplePrior", model=parts.prior, latent=canvas[0], steps=1, **prompts)
    board = graph.add("CascadeStudio_DraftBoard", prior=c[0], vae=parts.stage_c_vae, chosen="2")
    b = graph.add("CascadeStudio_SampleDecoder", model=parts.decoder, prior=board[0], steps=1, **prompts)
    graph.run(b[0])
    assert len(calls) == 2


@pytest.mark.parametrize("cfg, batch", [(1.0, 1), (1.1, 2)])
def test_stage_b_without_guidance_leaves_the_negative_out(studio, monkeypatch, cfg, batch):
    calls = count_calls(monkeypatch, studio.parts.decoder.model.diffusion_model, "forward")
    studio.sample_decoder(studio.prior_latent, steps=3, cfg=cfg)
    assert calls == [batch] * 3


def test_a_level_that_repeats_maps_its_conditions_once_a_pass(studio, monkeypatch):
    net = studio.parts.decoder.model.diffusion_model
    repeats = [len(mappers) + 1 for mappers in net.up_repeat_mappers]
    attending = [
        (block, times)
        for level, times in zip(net.up_blocks, repeats, strict=True)
        for block in level
        if hasattr(block, "kv_mapper")
    ]
    assert any(times > 1 for _, times in attending)
    calls = [(count_calls(monkeypatch, block, "map_condition"), times) for block, times in attending]
    studio.sample_decoder(studio.prior_latent, steps=2, cfg=1.0)
    assert all(len(each) == 2 for each, times in calls if times > 1), "once for each of two steps"
    assert all(len(each) <= 2 for each, _ in calls), "other levels may write them where they are needed"


def test_files_are_opened_once_and_their_weights_are_mapped(studio, monkeypatch):
    """Every file goes through the host's reader once, which maps it; none is read into memory whole."""
    import comfy.utils

    read: collections.Counter[str] = collections.Counter()
    real = comfy.utils.load_torch_file

    def load(path: str, *args: Any, **kwargs: Any) -> Any:
        read[str(path).rpartition("/")[2]] += 1
        return real(path, *args, **kwargs)

    monkeypatch.setattr(comfy.utils, "load_torch_file", load)
    studio.call("CascadeStudio_Load", range(6), **FILES, **FP32)
    assert len(read) >= 6 and set(read.values()) == {1}, read
