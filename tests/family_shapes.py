"""Keys and shapes of the tiny family's files, in the official names (attention fused)."""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "projection_dim": 64,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "projection_dim": 64,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
    "hidden_act": "quick_gelu",
}
STAGE_C = {
    "c_cond": 128,
    "c_hidden": (128, 128),
    "blocks": ((1, 1), (1, 1)),
    "level_config": ("CTA", "CTA"),
    "c_clip_text": 64,
    "c_clip_text_pooled": 64,
    "c_clip_img": 64,
}
STAGE_B = {
    "c_cond": 64,
    "c_hidden": (32, 32, 64, 128),
    "blocks": ((1, 1, 1, 1), (1, 1, 1, 1)),
    "block_repeat": ((1, 1, 1, 1), (2, 1, 2, 1)),
    "level_config": ("CT", "CT", "CTA", "CTA"),
    "c_clip": 64,
}
STAGE_A = {"c_hidden": 32, "bottleneck_blocks": 2, "codebook_size": 64}
ENCODER = {"c_stem": 8, "widths": (8, 8, 16, 16, 24, 32), "repeats": (1, 2, 1, 1, 2, 1), "c_features": 64}
PREVIEWER = {"c_hidden": 32}
CONTROLNET = {"c_in": 1, "c_proj": 128, "proj_blocks": (0, 3)}
EXPANSIONS = (1, 4, 4, 4, 6, 6)
PRIOR, PIXELS, T_CONDS_C, T_CONDS_B = 16, 3, ("sca", "crp"), ("sca",)


def linear(key: str, c_out: int, c_in: int, *kernel: int, bias: bool = True) -> Shapes:
    shapes = {f"{key}.weight": (c_out, c_in, *kernel)}
    return {**shapes, f"{key}.bias": (c_out,)} if bias else shapes


def batch_norm(key: str, c: int, affine: bool = True) -> Shapes:
    shapes = {f"{key}.weight": (c,), f"{key}.bias": (c,)} if affine else {}
    return {**shapes, f"{key}.running_mean": (c,), f"{key}.running_var": (c,), f"{key}.num_batches_tracked": ()}


def layer_norm(key: str, c: int) -> Shapes:
    return {f"{key}.weight": (c,), f"{key}.bias": (c,)}


def block(key: str, letter: str, c: int, c_skip: int, c_cond: int, t_conds: tuple[str, ...]) -> Shapes:
    """One layer of the diffusion networks: C (ResBlock), T (timestep) or A (attention)."""
    if letter == "C":
        return {
            **linear(f"{key}.depthwise", c, 1, 3, 3),
            **linear(f"{key}.channelwise.0", 4 * c, c + c_skip),
            f"{key}.channelwise.2.gamma": (1, 1, 1, 4 * c),
            f"{key}.channelwise.2.beta": (1, 1, 1, 4 * c),
            **linear(f"{key}.channelwise.4", c, 4 * c),
        }
    if letter == "T":
        shapes = linear(f"{key}.mapper", 2 * c, 64)
        for name in t_conds:
            shapes.update(linear(f"{key}.mapper_{name}", 2 * c, 64))
        return shapes
    return {
        f"{key}.attention.attn.in_proj_weight": (3 * c, c),
        f"{key}.attention.attn.in_proj_bias": (3 * c,),
        **linear(f"{key}.attention.attn.out_proj", c, c),
        **linear(f"{key}.kv_mapper.1", c, c_cond),
    }


def levels(config: dict, t_conds: tuple[str, ...]) -> Shapes:
    """The down and up blocks; the first ResBlock of every up level but the deepest takes a skip."""
    shapes: Shapes = {}
    widths, names = config["c_hidden"], config["level_config"]
    count = len(widths)
    for side, order in (("down", range(count)), ("up", reversed(range(count)))):
        for place, level in enumerate(order):
            groups = config["blocks"][side == "up"][place]
            for i, letter in enumerate(names[level] * groups):
                c_skip = widths[level] if side == "up" and place and i == 0 else 0
                key = f"{side}_blocks.{place}.{i}"
                shapes.update(block(key, letter, widths[level], c_skip, config["c_cond"], t_conds))
            repeats = config.get("block_repeat", ((1,) * count, (1,) * count))[side == "up"][place]
            for i in range(repeats - 1):
                shapes.update(linear(f"{side}_repeat_mappers.{place}.{i}", widths[level], widths[level], 1, 1))
    return shapes


def stage_c_shapes(config: dict = STAGE_C) -> Shapes:
    c_cond, widths = config["c_cond"], config["c_hidden"]
    shapes = {
        **linear("clip_txt_mapper", c_cond, config["c_clip_text"]),
        **linear("clip_txt_pooled_mapper", 4 * c_cond, config["c_clip_text_pooled"]),
        **linear("clip_img_mapper", 4 * c_cond, config["c_clip_img"]),
        **linear("embedding.1", widths[0], PRIOR, 1, 1),
        **levels(config, T_CONDS_C),
    }
    for i in range(1, len(widths)):
        shapes.update(linear(f"down_downscalers.{i}.1.blocks.0", widths[i], widths[i - 1], 1, 1))
        shapes.update(linear(f"up_upscalers.{len(widths) - 1 - i}.1.blocks.1", widths[i - 1], widths[i], 1, 1))
    return {**shapes, **linear("clf.1", PRIOR, widths[0], 1, 1)}


def stage_b_shapes(config: dict = STAGE_B) -> Shapes:
    c_cond, widths = config["c_cond"], config["c_hidden"]
    shapes: Shapes = {}
    for name, c_in in (("effnet_mapper", PRIOR), ("pixels_mapper", PIXELS)):
        shapes.update(linear(f"{name}.0", 4 * widths[0], c_in, 1, 1))
        shapes.update(linear(f"{name}.2", widths[0], 4 * widths[0], 1, 1))
    shapes.update(
        {
            **linear("clip_mapper", 4 * c_cond, config["c_clip"]),
            **linear("embedding.1", widths[0], 16, 1, 1),
            **levels(config, T_CONDS_B),
        }
    )
    for i in range(1, len(widths)):
        shapes.update(linear(f"down_downscalers.{i}.1", widths[i], widths[i - 1], 2, 2))
        up = f"up_upscalers.{len(widths) - 1 - i}.1"
        shapes.update({f"{up}.weight": (widths[i], widths[i - 1], 2, 2), f"{up}.bias": (widths[i - 1],)})
    return {**shapes, **linear("clf.1", 16, widths[0], 1, 1)}


def stage_a_shapes(config: dict = STAGE_A) -> Shapes:
    wide, middle = config["c_hidden"], config["bottleneck_blocks"]
    narrow = wide // 2

    def res(key: str, c: int) -> Shapes:
        return {
            f"{key}.gammas": (6,),
            **linear(f"{key}.depthwise.1", c, 1, 3, 3),
            **linear(f"{key}.channelwise.0", 4 * c, c),
            **linear(f"{key}.channelwise.2", c, 4 * c),
        }

    shapes = {
        **linear("in_block.1", narrow, 12, 1, 1),
        **res("down_blocks.0", narrow),
        **linear("down_blocks.1", wide, narrow, 4, 4),
        **res("down_blocks.2", wide),
        **linear("down_blocks.3.0", 4, wide, 1, 1, bias=False),
        **batch_norm("down_blocks.3.1", 4),
        "vquantizer.codebook.weight": (config["codebook_size"], 4),
        **linear("up_blocks.0.0", wide, 4, 1, 1),
    }
    for i in range(1, middle + 1):
        shapes.update(res(f"up_blocks.{i}", wide))
    up = f"up_blocks.{middle + 1}"
    return {
        **shapes,
        f"{up}.weight": (wide, narrow, 4, 4),
        f"{up}.bias": (narrow,),
        **res(f"up_blocks.{middle + 2}", narrow),
        **linear("out_block.0", 12, narrow, 1, 1),
    }


def trunk_shapes(config: dict, c_in: int = 3) -> Shapes:
    """An EfficientNet-V2 trunk: three fused stages, then three with squeeze-and-excitation."""

    def conv(key: str, c_out: int, c: int, kernel: int) -> Shapes:
        return {**linear(f"{key}.0", c_out, c, kernel, kernel, bias=False), **batch_norm(f"{key}.1", c_out)}

    shapes, c = conv("backbone.0", config["c_stem"], c_in, 3), config["c_stem"]
    for stage, (width, repeats, expansion) in enumerate(zip(config["widths"], config["repeats"], EXPANSIONS), 1):
        for i in range(repeats):
            start, hidden = f"backbone.{stage}.{i}.block", c * expansion
            if expansion == 1:
                shapes.update(conv(f"{start}.0", width, c, 3))
            elif stage <= 3:
                shapes.update({**conv(f"{start}.0", hidden, c, 3), **conv(f"{start}.1", width, hidden, 1)})
            else:
                shapes.update(
                    {
                        **conv(f"{start}.0", hidden, c, 1),
                        **conv(f"{start}.1", hidden, 1, 3),
                        **linear(f"{start}.2.fc1", c // 4, hidden, 1, 1),
                        **linear(f"{start}.2.fc2", hidden, c // 4, 1, 1),
                        **conv(f"{start}.3", width, hidden, 1),
                    }
                )
            c = width
    return {**shapes, **conv("backbone.7", config["c_features"], c, 1)}


def encoder_shapes(config: dict = ENCODER) -> Shapes:
    return {
        **trunk_shapes(config),
        **linear("mapper.0", PRIOR, config["c_features"], 1, 1, bias=False),
        **batch_norm("mapper.1", PRIOR, affine=False),
    }


def previewer_shapes(config: dict = PREVIEWER) -> Shapes:
    c, half, quarter = (config["c_hidden"] // n for n in (1, 2, 4))
    plan = (
        (PRIOR, c, 1),
        (c, c, 3),
        (c, half, 2),
        (half, half, 3),
        (half, quarter, 2),
        (quarter, quarter, 3),
        (quarter, quarter, 2),
        (quarter, quarter, 3),
    )
    shapes: Shapes = {}
    for i, (c_in, c_out, kernel) in enumerate(plan):
        # Kernels of 2 are transposed convolutions, whose weights begin with the input channels.
        rows, columns = (c_in, c_out) if kernel == 2 else (c_out, c_in)
        shapes.update({f"blocks.{3 * i}.weight": (rows, columns, kernel, kernel), f"blocks.{3 * i}.bias": (c_out,)})
        shapes.update(batch_norm(f"blocks.{3 * i + 2}", c_out))
    return {**shapes, **linear("blocks.24", 3, quarter, 1, 1)}


def controlnet_shapes(config: dict = CONTROLNET) -> Shapes:
    shapes, c = trunk_shapes(ENCODER, config["c_in"]), ENCODER["c_features"]
    for i in range(len(config["proj_blocks"])):
        shapes.update(
            {
                **linear(f"projections.{i}.0", c, c, 1, 1, bias=False),
                **linear(f"projections.{i}.2", config["c_proj"], c, 1, 1, bias=False),
            }
        )
    return shapes


def tower(start: str, config: dict) -> Shapes:
    c, shapes = config["hidden_size"], {}
    for i in range(config["num_hidden_layers"]):
        key = f"{start}.encoder.layers.{i}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes.update(linear(f"{key}.self_attn.{name}", c, c))
        wide = config["intermediate_size"]
        shapes.update(
            {
                **layer_norm(f"{key}.layer_norm1", c),
                **linear(f"{key}.mlp.fc1", wide, c),
                **linear(f"{key}.mlp.fc2", c, wide),
                **layer_norm(f"{key}.layer_norm2", c),
            }
        )
    return shapes


def text_shapes(config: dict = TEXT) -> Shapes:
    c, start = config["hidden_size"], "text_model"
    return {
        f"{start}.embeddings.token_embedding.weight": (config["vocab_size"], c),
        f"{start}.embeddings.position_embedding.weight": (config["max_position_embeddings"], c),
        **tower(start, config),
        **layer_norm(f"{start}.final_layer_norm", c),
        **linear("text_projection", config["projection_dim"], c, bias=False),
    }


def vision_shapes(config: dict = VISION) -> Shapes:
    c, start, patch = config["hidden_size"], "vision_model", config["patch_size"]
    return {
        f"{start}.embeddings.class_embedding": (c,),
        f"{start}.embeddings.patch_embedding.weight": (c, config["num_channels"], patch, patch),
        f"{start}.embeddings.position_embedding.weight": ((config["image_size"] // patch) ** 2 + 1, c),
        **layer_norm(f"{start}.pre_layrnorm", c),
        **tower(start, config),
        **layer_norm(f"{start}.post_layernorm", c),
        **linear("visual_projection", config["projection_dim"], c, bias=False),
    }


def guide_shapes(c: int = STAGE_C["c_hidden"][0], inner: int = 32, groups: int = 16) -> Shapes:
    """UltraPixel's four guide nets under the published names, those of distributed training before them."""
    shapes: Shapes = {}
    for number in ("64.0", "64.1", "65.0", "65.1"):
        start = f"module.{number}."
        block = f"{start}transformer_encoder.layers.0."
        shapes.update(linear(f"{start}input_layer", inner, c, 1, 1))
        shapes.update(linear(f"{start}tokenizer.prefc", inner, inner))
        shapes.update({f"{start}tokenizer.posemb": (1024, inner), f"{start}wtokens": (2 * groups, inner)})
        for name, rows in (("0.fn.to_q.1", 1), ("0.fn.to_kv.1", 2), ("1.fn.net.0", 1), ("1.fn.net.3", 1)):
            shapes.update(linear(f"{block}{name}", rows * inner, inner))
        for name in (f"{block}0.norm", f"{block}1.norm", f"{start}wtoken_postfc.wb0.0", f"{start}wtoken_postfc.wb1.0"):
            shapes.update({f"{name}.weight": (inner,), f"{name}.bias": (inner,)})
        for layer, rows in (("wb0", 256), ("wb1", inner)):
            shapes[f"{start}base_params.{layer}"] = (rows + 1, inner)
            shapes.update(linear(f"{start}wtoken_postfc.{layer}.1", rows, inner))
        shapes.update(linear(f"{start}output_layer", c, inner, 1, 1))
        shapes.update(linear(f"{start}toout.0", c // 4, 2 * c))
        shapes.update(linear(f"{start}toout.2", c, c // 4))
        for name in ("mapp_t.mapper", "hr_norm.mapping.mapper"):
            shapes.update(linear(f"{start}{name}", 2 * c, 64))
        for name in ("alpha", "gamma"):  # in the published file, and used nowhere
            shapes.update(linear(f"{start}hr_norm.{name}", c, c, 1, 1))
    return shapes
