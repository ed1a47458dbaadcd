"""The recipes of Mini's LoRA and ControlNet: what they start from and the sizes of what they write."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from cascade_studio.stages.files.header import read_header
from cascade_studio.stages.files.identify import identify
from cascade_studio.stages.nets.controlnet import ControlNet
from cascade_studio.stages.nets.initial import initialise_unet
from cascade_studio.stages.nets.stage_c import StageC, StageCConfig
from cascade_studio.stages.training import export
from cascade_studio.stages.training.control import plan_control
from cascade_studio.stages.training.frozen_net import frozen_net
from cascade_studio.stages.training.lora_layers import Lora
from training.mini import canny_controlnet as canny, style_lora, style_measure
from training.mini.export import FOLDER
from training.mini.sizes import ENCODER, SIDE, STAGE_C


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def stage_c() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = StageC(STAGE_C)
    initialise_unet(net)
    return net.state_dict()


def test_the_lora_stays_below_its_size(stage_c, tmp_path):
    net, settings = frozen_net("stage_c", STAGE_C, stage_c, base="fp32"), style_lora.SETTINGS
    lora = Lora(net, settings.rank, settings.alpha, settings.blocks)
    path = tmp_path / "lora.safetensors"
    export.save_tensors(export.comfyui_names(lora, lora.state_dict()), path, export.metadata(settings, "x", 1))
    assert 500_000 < path.stat().st_size <= style_lora.Style().most and len(load_file(path)) == 3 * len(lora.layers)
    json.dumps(settings.as_dict())


def test_the_controlnet_feeds_the_level_with_all_cells_and_stays_below_its_size():
    config = plan_control(STAGE_C, canny.make_settings(1), ENCODER)
    assert {STAGE_C.res_block_widths[block] for block in config.proj_blocks} == {config.c_proj} == {STAGE_C.c_hidden[0]}
    size = 2 * sum(value.numel() for value in ControlNet(config, device="meta").state_dict().values())
    assert 1_000_000 < size < canny.MOST


def test_the_style_judge_tells_two_kinds_of_latents_apart():
    torch.manual_seed(0)
    rough = torch.randn(80, 16, 6, 6)
    smooth = torch.nn.functional.avg_pool2d(torch.randn(80, 16, 8, 8), 3, 1) * 3
    judge = style_measure.StyleJudge.fit(torch.cat([rough[:60], smooth[:60]]), torch.arange(120) >= 60)
    assert judge.share(smooth[60:]) > 0.9 and judge.share(rough[60:]) < 0.1


def test_measuring_adds_the_lora_as_a_loader_does(tmp_path):
    net = StageC(STAGE_C)
    torch.manual_seed(0)
    initialise_unet(net)
    module = "down_blocks.1.2.attention.attn.to_q"
    up, down = torch.randn(256, 4), torch.randn(4, 256)
    parts = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(2.0)}
    save_file({f"diffusion_model.{module}.{name}": value for name, value in parts.items()}, tmp_path / "x.safetensors")
    changed = style_measure.with_lora(net, tmp_path / "x.safetensors").state_dict()
    before = net.state_dict()
    assert torch.allclose(changed[f"{module}.weight"], before[f"{module}.weight"] + up @ down * 0.5, atol=1e-5)
    assert all(torch.equal(value, changed[name]) for name, value in before.items() if name != f"{module}.weight")


def test_mini_says_what_side_it_paints():
    """The side of its pictures is part of Stage C's config, so that canvas and sampler can tell what suits a model."""
    path = FOLDER / "diffusion_models" / "cascade_mini_stage_c.safetensors"
    header = read_header(path)
    assert identify(header.tensors, header.metadata).config.native_side == SIDE == 256
    assert StageCConfig().native_side == 1024
