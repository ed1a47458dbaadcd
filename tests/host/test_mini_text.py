"""The trainable CLIP twins of the Mini recipe compute what the host's classes compute with the same tensors."""

from __future__ import annotations

import importlib
import random

import harness
import pytest
import torch

from cascade_studio.stages.files.clip import TextConfig, VisionConfig

TEXT = TextConfig(
    hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=2, projection_dim=128
)
VISION = VisionConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=1,
    projection_dim=128,
    image_size=64,
    patch_size=16,
)
PROMPTS = ["red apple", "", "a slice of pizza, on a yellow background", "über größe 🍕 l'été"]


@pytest.fixture(autouse=True)
def host_path(monkeypatch):
    monkeypatch.setenv("CASCADE_STUDIO_HOST_PATH", str(harness.host_root()))


def shaken(net: torch.nn.Module) -> torch.nn.Module:
    """Every tensor random, so that no bias or norm is idle."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def test_text_twin_is_the_hosts_encoder(host):
    import comfy.sdxl_clip

    from training.mini.captions import batch_tokens
    from training.mini.towers import TextTower

    tower = shaken(TextTower(TEXT))
    options = {
        "clip_g_model_config": {
            name: getattr(TEXT, name)
            for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
        }
    }
    theirs = comfy.sdxl_clip.StableCascadeClipModel(dtype=torch.float32, model_options=options)
    missing, unexpected = theirs.clip_g.transformer.load_state_dict(tower.state_dict(), strict=False)
    assert not missing and not unexpected
    tokenizer = comfy.sdxl_clip.StableCascadeTokenizer()
    for prompt in PROMPTS:
        pairs = tokenizer.tokenize_with_weights(prompt)
        ids = batch_tokens([[prompt]] if prompt else [[]])
        assert ids[0].tolist() == [token for token, _ in pairs["g"][0]]
        with torch.no_grad():
            hidden, pooled = theirs.encode_token_weights(pairs)[:2]
            own_hidden, own_pooled = tower(ids)
        assert (own_hidden - hidden).abs().max() <= 1e-4 * hidden.std()
        assert (own_pooled - pooled).abs().max() <= 1e-4 * pooled.std()


def test_shorter_padding_leaves_the_words_alone(host):
    from training.mini.captions import batch_tokens
    from training.mini.towers import TextTower

    tower, prompts = shaken(TextTower(TEXT)), [[prompt] for prompt in PROMPTS if prompt]
    with torch.no_grad():
        (short, short_pooled), (long, long_pooled) = tower(batch_tokens(prompts, 24)), tower(batch_tokens(prompts))
    assert (short - long[:, :24]).abs().max() <= 1e-5
    assert (short_pooled - long_pooled).abs().max() <= 1e-5


def test_fragments_tokenise_like_the_whole_caption(host):
    from training.mini.captions import HELD_TEMPLATES, Speaker, batch_tokens, join_caption
    from training.mini.data import read_split
    from training.mini.subjects import COLOURS

    rng, (subjects, prompts) = random.Random(0), read_split()
    speaker = Speaker(subjects)
    captions = [speaker.caption(rng.randrange(len(subjects)), rng.choice(list(COLOURS)), rng) for _ in range(60)]
    assert torch.equal(batch_tokens(captions), batch_tokens([[join_caption(fragments, "")] for fragments in captions]))
    assert len(subjects) >= 1200 and len(prompts) == 200
    trained = {tuple(fragments) for fragments in captions}
    assert not trained & {tuple(template) for template in HELD_TEMPLATES}
    for prompt in prompts:
        assert prompt["background"] in subjects[prompt["subject"]].held


def test_vision_twin_is_the_hosts_tower(host):
    import comfy.clip_model
    import comfy.ops

    from training.mini.towers import VisionTower, clip_normalise

    tower = shaken(VisionTower(VISION))
    config = {**VISION.__dict__, "model_type": "clip_vision_model"}
    theirs = comfy.clip_model.CLIPVisionModelProjection(config, torch.float32, "cpu", comfy.ops.manual_cast).eval()
    theirs.load_state_dict(tower.state_dict())
    image = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pixels = comfy.clip_model.clip_preprocess(image, size=64)
        wanted = theirs(pixel_values=pixels, intermediate_output=-2)[2]
        own = tower(clip_normalise((255 * image).round().movedim(-1, 1) / 255))
    assert (own - wanted).abs().max() <= 1e-4 * wanted.std()


def test_float8_token_table_loads_as_it_was_trained(host, pack, tmp_path):
    """The shipped table has eight bits; what the host computes is the trained tower with the rounded table."""
    from safetensors.torch import save_file

    from cascade_studio.stages.files.header import MARKER, marker_text
    from training.mini.captions import batch_tokens
    from training.mini.language import settle_table
    from training.mini.towers import TextTower

    tower = shaken(TextTower(TEXT)).half().float()
    table = tower.text_model.embeddings.token_embedding.weight
    known = torch.tensor(sorted(set(batch_tokens([[prompt] for prompt in PROMPTS if prompt]).flatten().tolist())))
    rounded = settle_table(table.detach(), known)
    assert (rounded[known] - table.detach()[known]).abs().max() <= 0.07 * table.abs().max()
    unseen = torch.ones(len(table), dtype=torch.bool).index_fill(0, known, False)
    assert (rounded[unseen] == rounded[unseen][0]).all()
    with torch.no_grad():
        table.copy_(rounded)
    tensors = {
        key: value.to(torch.float8_e4m3fn if key.endswith("token_embedding.weight") else torch.float16)
        for key, value in tower.state_dict().items()
    }
    path = tmp_path / "text.safetensors"
    save_file(tensors, path, metadata={MARKER: marker_text("text_encoder", TEXT)})
    loader = importlib.import_module(f"{pack.__name__}.nodes.host.models.clip")
    clip = loader.load_text_encoder(str(path), "fp32")
    for prompt in PROMPTS[:3]:
        hidden, pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True)
        with torch.no_grad():
            own_hidden, own_pooled = tower(batch_tokens([[prompt]] if prompt else [[]]))
        assert (hidden - own_hidden).abs().max() <= 1e-3 * own_hidden.std()
        assert (pooled - own_pooled).abs().max() <= 1e-3 * own_pooled.std()
