"""The memory plan: its arithmetic against what a network really keeps, and the promises for the published sizes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lessons import SMALL_B, lesson, randn

from cascade_studio.stages.files.clip import TextConfig
from cascade_studio.stages.files.kinds import KINDS
from cascade_studio.stages.nets.controlnet import ControlNet, ControlNetConfig
from cascade_studio.stages.nets.encoder import EncoderConfig
from cascade_studio.stages.nets.stage_c import StageCConfig
from cascade_studio.stages.training import memory as plans
from cascade_studio.stages.training.frozen_net import CLASSES, FROZEN, frozen_net
from cascade_studio.stages.training.lora_layers import Lora
from cascade_studio.stages.training.settings import Settings
from cascade_studio.stages.training.words import TextTower, Words

FULL, LITE = (KINDS["stage_c"].published[name] for name in ("3.6B", "1B"))
MIDDLE = StageCConfig(
    c_cond=256,
    c_hidden=(256, 256),
    nhead=(4, 4),
    blocks=((1, 2), (2, 1)),
    c_clip_text=96,
    c_clip_text_pooled=96,
    c_clip_img=64,
)


@pytest.mark.parametrize("config, most", [(FULL, 12e9), (LITE, 8e9)])
@pytest.mark.parametrize("base", ["bf16", "fp8"])
def test_the_published_models_fit(config, most, base):
    plan = plans.plan("stage_c", config, Settings(base=base))
    assert plan.total <= most
    assert f"{plan.total / 1e9:.1f} GB" in plan.describe() and "frozen weights" in plan.describe()


def test_the_plan_counts_its_parts():
    plan = plans.plan("stage_c", FULL, Settings(base="bf16", rank=4))
    assert plan.parts["frozen weights"] == 2 * 3_589_103_632
    assert plan.parts["LoRA with its optimiser"] == 64 * 4 * 4 * (2048 + 2048) * 16
    eight = plans.plan("stage_c", FULL, Settings(base="fp8")).parts["frozen weights"]
    assert 0.5 <= eight / plan.parts["frozen weights"] <= 0.53
    assert plans.plan("stage_c", FULL, Settings(base="fp32")).parts["frozen weights"] == 4 * 3_589_103_632
    averaged = plans.plan("stage_c", FULL, Settings(ema=0.9)).parts
    assert averaged["LoRA with its optimiser"] == 1.25 * plan.parts["LoRA with its optimiser"]
    words = plans.plan("stage_c", FULL, Settings(), text=TextConfig())
    assert words.parts["text encoder"] >= 1.39e9 and words.total <= 13.5e9


def test_what_the_computers_memory_holds_is_told():
    settings = Settings(what="stage_c", optimiser="adamw_cpu")
    card, processor = (plans.plan("stage_c", LITE, settings, device=device) for device in ("cuda", "cpu"))
    assert "and 12.4 GB of the computer's memory" in card.describe() and "computer" not in processor.describe()
    name = "Stage C with its optimiser"
    assert processor.parts[name] == card.parts[name] + card.host == 7 * card.parts[name]


def test_a_controlnets_trunk_is_that_of_its_image_encoder():
    small = EncoderConfig(
        c_stem=8, widths=(8, 8), repeats=(1, 1), expansions=(1, 2), strides=(2, 8), fused=(True, True)
    )
    settings, name = Settings(what="controlnet"), "ControlNet with its optimiser"
    own, other = (plans.plan("stage_c", LITE, settings, trunk=trunk).parts[name] for trunk in (EncoderConfig(), small))
    assert other < 0.7 * own


def test_the_weights_are_what_is_stored():
    for base in ("bf16", "fp8", "fp32"):
        net = frozen_net("stage_c", MIDDLE, CLASSES["stage_c", False](MIDDLE).state_dict(), base=base)
        stored = sum(p.numel() * p.element_size() for p in net.parameters())
        stored += sum(m.scale.numel() * 4 for m in net.modules() if getattr(m, "scale", None) is not None)
        assert plans.count_weight_bytes(CLASSES["stage_c", False](MIDDLE, device="meta"), base) == stored


def test_parts_and_processes_lower_it():
    one = plans.plan("stage_c", LITE, Settings(batch_size=8)).parts["activations"]
    assert plans.plan("stage_c", LITE, Settings(batch_size=8, accumulation=4)).parts["activations"] == pytest.approx(
        one / 4
    )
    assert plans.plan("stage_c", LITE, Settings(batch_size=8), processes=2).parts["activations"] == pytest.approx(
        one / 2
    )
    kept = plans.plan("stage_c", LITE, replace(Settings(batch_size=8), checkpointing=False)).parts["activations"]
    assert kept > 4 * one


def kept_bytes(checkpointing: bool, bfloat16: bool, side: int) -> int:
    """Bytes of all tensors that autograd keeps after one forward pass, weights aside."""
    net = CLASSES["stage_c", checkpointing](MIDDLE, backend=FROZEN).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.02 * randn(*parameter.shape))
    Lora(net, 4, 4.0, (".attn",))
    known = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
    ):
        out = net(randn(2, 16, side, side), torch.rand(2), randn(2, 7, 96), randn(2, 1, 96))
    assert out.requires_grad
    return sum(size for size, _ in kept.values())


def test_activations_are_what_the_graph_keeps(monkeypatch):
    """Within a quarter of what is counted, with products in float32 and in bfloat16, in the graph of a graphics card
    and in that of a processor."""
    for on_cpu in (True, False):
        monkeypatch.setattr("cascade_studio.stages.nets.response._eager_on_cpu", lambda x, on_cpu=on_cpu: on_cpu)
        for bfloat16 in (False, True):
            counted = kept_bytes(False, bfloat16, 12)
            planned = plans.count_activations(MIDDLE, 2, 144, False, "cpu", bfloat16)
            one = plans.count_activations(MIDDLE, 2, 144, True, "cpu", bfloat16) - HANDED_ON
            kept = planned - one * (plans.BACKWARD - 1) / plans.BACKWARD
            assert 0.8 <= counted / kept <= 1.25, (on_cpu, bfloat16, counted, kept)


HANDED_ON = 6 * 2 * 144 * 256 * plans.STREAM
"""Bytes that six groups hand on."""


def test_checkpointing_keeps_what_the_groups_hand_on():
    """PyTorch keeps the groups' inputs outside of the count; the rest is little."""
    outside = kept_bytes(True, True, 12)
    assert outside <= 0.15 * kept_bytes(False, True, 12)
    assert HANDED_ON + outside <= plans.count_activations(MIDDLE, 2, 144, True)


def test_a_controlnets_activations_are_what_its_graph_keeps():
    """The graph is built without numbers; a real one keeps as much."""
    trunk = EncoderConfig(
        c_stem=8, widths=(8, 16), repeats=(1, 2), expansions=(1, 4), strides=(2, 8), fused=(True, False)
    )
    config = ControlNetConfig(c_in=1, c_proj=64, proj_blocks=(0, 1), trunk=trunk)
    net, kept = ControlNet(config).requires_grad_(True), dict[int, tuple[int, torch.Tensor]]()
    known = {value.untyped_storage().data_ptr() for value in net.state_dict().values()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(torch.rand(1, 1, 192, 192))
    counted = sum(size for size, _ in kept.values())
    assert 0.9 <= plans.count_control(config, 6) / counted <= 1.1


def test_stage_b_is_planned_by_the_cells_that_it_embeds():
    """Two pixels of its latent to a cell: 1024 px are 256 x 256 in the latent, and 128 x 128 cells."""
    lesson_b = lesson("lora_b")
    by_hand = plans.plan("stage_b", SMALL_B, lesson_b.settings, device="cpu", cells=8 * 8, bfloat16=False)
    assert lesson_b.plan().parts["activations"] == by_hand.parts["activations"]
    whole = KINDS["stage_b"].published["700M"]
    by_default = plans.plan("stage_b", whole, Settings(resolution=768)).parts["activations"]
    assert by_default == plans.count_activations(whole, 4, 128 * 128, True)


def test_a_text_encoder_is_counted_by_its_sizes():
    """Its numbers and those of adapters on it are what the built ones have; what it keeps grows with the batch."""
    small = TextConfig(hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=2, vocab_size=99)
    for config in (TextConfig(), small):
        tower = TextTower(config, Words([], torch.zeros(1, config.hidden_size)))
        assert plans.count_text(config) == sum(parameter.numel() for parameter in tower.parameters())
    tower = TextTower(small, Words([], torch.zeros(1, 64))).to_empty(device="cpu")
    adapters = sum(parameter.numel() for parameter in Lora(tower, 5, 5.0, (".self_attn",)).parameters())
    settings = Settings(what="text_lora", rank=5)
    net = CLASSES["stage_c", False](MIDDLE, device="meta")
    assert plans.count_learned(net, MIDDLE, settings, EncoderConfig(), small) == adapters
    one, four = (plans.count_text_activations(small, batch) for batch in (1, 4))
    assert four == pytest.approx(4 * one)


def test_a_processor_is_planned_with_what_it_alone_keeps():
    """Pictures in memory, a text encoder in float32, and no products of attention where the fused kernel is taken."""
    settings = Settings(what="words", tokens=(("[x]", "dog"),))
    card, processor = (
        plans.plan("stage_c", MIDDLE, settings, device=device, text=TextConfig(), pictures=10**8)
        for device in ("cuda", "cpu")
    )
    assert processor.parts["pictures"] == 10**8 and "pictures" not in card.parts
    grown = processor.parts["text encoder"] - card.parts["text encoder"]
    assert grown == 2 * plans.count_text(TextConfig())
    below, above = (
        plans.count_activations(MIDDLE, 1, cells, True, "cpu") / cells
        for cells in (plans.MOST_SCORES, plans.MOST_SCORES + 1)
    )
    assert above < 0.6 * below


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are counted by Linux")
def test_the_plan_is_what_a_process_takes():
    """Within a quarter, for a run that reads, trains and saves in a process of its own."""
    script = Path(__file__).parents[1] / "benchmarks" / "measure_training.py"
    done = subprocess.run([sys.executable, str(script), "--check", "LoRA"], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
