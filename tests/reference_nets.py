"""The host's and diffusers' networks on the weights of one of ours, called as ours are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cascade_studio.stages.nets.stage_b import StageB
from cascade_studio.stages.nets.stage_c import StageC

BLOCKS = {"C": "SDCascadeResBlock", "T": "SDCascadeTimestepBlock", "A": "SDCascadeAttnBlock"}
RENAMED = ((".attention.attn.out_proj.", ".attention.to_out.0."), (".attention.attn.", ".attention."))


def as_lists(value):
    return [as_lists(item) for item in value] if isinstance(value, tuple) else value


def host_config(config) -> dict[str, Any]:
    """The fields of a config that ComfyUI's nets know, as it writes them."""
    return {name: as_lists(value) for name, value in vars(config).items() if not name.startswith("native_")}


def host_net(ours: StageC | StageB) -> nn.Module:
    """ComfyUI's net for the configuration of ``ours``, sharing its weights."""
    import comfy.ops
    from comfy.ldm.cascade import stage_b, stage_c

    config = host_config(ours.config)
    dtype = next(ours.parameters()).dtype
    kind = stage_c.StageC if isinstance(ours, StageC) else stage_b.StageB
    with torch.device("meta"):
        net = kind(**config, dropout=[0.0] * len(config["c_hidden"]), dtype=dtype, operations=comfy.ops.manual_cast)
    net.load_state_dict(ours.state_dict(), strict=True, assign=True)
    return net.eval().requires_grad_(False)


def diffusers_net(ours: StageC | StageB) -> nn.Module:
    """diffusers' net for the configuration of ``ours``, sharing its weights."""
    from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet

    config = ours.config
    prior = isinstance(ours, StageC)
    arguments = (
        {
            "clip_text_in_channels": config.c_clip_text,
            "clip_image_in_channels": config.c_clip_img,
            "clip_text_pooled_in_channels": config.c_clip_text_pooled,
            "switch_level": config.switch_level,
        }
        if prior
        else {
            "clip_text_pooled_in_channels": config.c_clip,
            "switch_level": None,
            "effnet_in_channels": config.c_effnet,
            "pixel_mapper_in_channels": config.c_pixels,
        }
    )
    with torch.device("meta"):
        net = StableCascadeUNet(
            in_channels=config.c_in,
            out_channels=config.c_out,
            timestep_ratio_embedding_dim=config.c_r,
            patch_size=config.patch_size,
            conditioning_dim=config.c_cond,
            block_out_channels=config.c_hidden,
            num_attention_heads=config.nhead,
            down_num_layers_per_block=config.blocks[0],
            up_num_layers_per_block=config.blocks[1],
            down_blocks_repeat_mappers=config.block_repeat[0],
            up_blocks_repeat_mappers=config.block_repeat[1],
            kernel_size=config.kernel_size,
            clip_seq=config.c_clip_seq,
            block_types_per_layer=tuple(tuple(BLOCKS[kind] for kind in level) for level in config.level_config),
            dropout=(0.0,) * len(config.c_hidden),
            self_attn=config.self_attn,
            timestep_conditioning_type=config.t_conds,
            **arguments,
        )
    net.load_state_dict({diffusers_key(key): value for key, value in ours.state_dict().items()}, assign=True)
    return net.eval().requires_grad_(False)


def diffusers_key(key: str) -> str:
    for ours, theirs in RENAMED:
        key = key.replace(ours, theirs)
    return key.replace("clip_mapper.", "clip_txt_pooled_mapper.") if key.startswith("clip_mapper.") else key


def reference(maker: Callable[[StageC | StageB], nn.Module], ours: StageC | StageB) -> Callable[..., Tensor]:
    """A function with the signature of ``ours`` that calls the net of ``maker``, which takes a full batch only.

    diffusers embeds r in the dtype of the network.
    """
    net = maker(ours)
    if maker is host_net:
        return host_stage_c(net) if isinstance(ours, StageC) else host_stage_b(net)
    if isinstance(ours, StageC):
        return lambda x, r, text, pooled, image: net(x, r.to(x.dtype), pooled, clip_text=text, clip_img=image)[0]
    return lambda x, r, effnet, clip, pixels=None: net(x, r.to(x.dtype), clip, effnet=effnet, pixels=pixels)[0]


def host_stage_c(net: nn.Module) -> Callable[..., Tensor]:
    def call(x, r, text, pooled, image, control=None, **conds):
        hint = None if control is None else {"input": list(reversed(control))}
        return net(x, r, clip_text=text, clip_text_pooled=pooled, clip_img=image, control=hint, **conds)

    return call


def host_stage_b(net: nn.Module) -> Callable[..., Tensor]:
    return lambda x, r, effnet, clip, pixels=None, **conds: net(x, r, effnet=effnet, clip=clip, pixels=pixels, **conds)
