"""What LoRAs do to prompts: changed text layers, moved and added tokens, bundled embeddings; and hooks with
schedules.
"""

from __future__ import annotations

import logging

import pytest
import torch
from family import tensor_for, weights_for
from family_shapes import text_shapes
from forward import attention_shapes, comfyui, low_rank, noise
from graphs import check_sentence
from world import Studio, changed, relative

WIDTH = 64
TABLE = "text_model.embeddings.token_embedding.weight"
PROMPT = "a photo of {} in the snow"
DOG = "^dog</w>"


def encode(studio: Studio, clip, text: str) -> torch.Tensor:
    """Tokens and pooled text of a prompt in one tensor."""
    cond, extra = studio.text(text, clip)[0]
    return torch.cat([cond.flatten(), extra["pooled_output"].flatten()])


def write_tokens(studio: Studio, name: str, rows: dict[int, torch.Tensor], **others: torch.Tensor) -> str:
    return studio.write(
        f"loras/{name}",
        {
            "embeddings.embeddings": torch.stack(list(rows.values())),
            "embeddings.indices": torch.tensor(list(rows)),
            **others,
        },
    )


def load(studio: Studio, name: str, **inputs):
    """``(clip, report)``"""
    return studio.call("CascadeStudio_LoadLora", range(2, 4), lora=name, clip=studio.parts.clip, **inputs)


def ids_of(studio: Studio, text: str) -> list[int]:
    return [token for token, _ in studio.parts.clip.tokenize(text)["g"][0]]


def reference(studio: Studio, name: str, rows: dict[int, torch.Tensor]):
    """A text encoder whose table has ``rows`` added."""
    weights = {key: value.half().float() for key, value in weights_for(text_shapes()).items()}
    for index, row in rows.items():
        weights[TABLE][index] += row
    file = studio.write(f"text_encoders/{name}", weights)
    return studio.call("CascadeStudio_LoadTextEncoder", text_encoder=file, dtype="fp32")


def test_text_layers(studio):
    layer = "lora_prior_te_text_model_encoder_layers_1_mlp_fc1"
    name = studio.write(
        "loras/t_text", {f"{layer}.lora_up.weight": noise(256, 2), f"{layer}.lora_down.weight": noise(2, 64)}
    )
    clip, report = load(studio, name)
    before = encode(studio, studio.parts.clip, PROMPT.format("a cat"))
    assert changed(encode(studio, clip, PROMPT.format("a cat")), before) and "1 layer of the text encoder" in report
    core = studio.call(
        "LoraLoader",
        1,
        model=studio.parts.prior,
        clip=studio.parts.clip,
        lora_name=name,
        strength_model=1.0,
        strength_clip=1.0,
    )
    assert torch.equal(encode(studio, clip, PROMPT), encode(studio, core, PROMPT))
    assert torch.equal(encode(studio, studio.parts.clip, PROMPT.format("a cat")), before)


def test_moved_tokens(studio):
    """An offset is added to its row of the table, in the host's patcher, and leaves other words alone."""
    dog = ids_of(studio, "dog")[1]
    clip, report = load(studio, write_tokens(studio, "t_moved", {dog: noise(WIDTH), 320: noise(WIDTH, seed=1)}))
    before = encode(studio, studio.parts.clip, PROMPT.format("dog"))
    expected = reference(studio, "t_moved", {dog: noise(WIDTH), 320: noise(WIDTH, seed=1)})
    assert relative(encode(studio, clip, PROMPT.format("dog")), encode(studio, expected, PROMPT.format("dog"))) <= 1e-4
    assert changed(encode(studio, clip, PROMPT.format("dog")), before) and "Moves 2 tokens" in report
    assert torch.equal(encode(studio, clip, "cats"), encode(studio, studio.parts.clip, "cats"))
    assert torch.equal(encode(studio, studio.parts.clip, PROMPT.format("dog")), before), "the table is as it was"


def test_added_token(studio):
    """[fernando] starts as a dog, as it was trained, and is then what training made of it."""
    offset = noise(WIDTH, seed=2)
    name = write_tokens(studio, "t_added", {49408: offset})
    clip, report = load(studio, name, tokens=f"[fernando] = {DOG}")
    assert "Adds 1 token to the prompt" in report and "Write [fernando]" in report and DOG in report
    dog = ids_of(studio, "dog")[1]
    expected = encode(studio, reference(studio, "t_added", {dog: offset}), PROMPT.format("dog"))
    for word in ("[fernando]", "[Fernando]"):
        assert relative(encode(studio, clip, PROMPT.format(word)), expected) <= 1e-4
    for text in (PROMPT.format("dog"), "", "fernando"):
        assert torch.equal(encode(studio, clip, text), encode(studio, studio.parts.clip, text)), "other prompts stay"
    plain = encode(studio, studio.parts.clip, PROMPT.format("[fernando]"))
    assert changed(plain, expected), "without the LoRA it is a word like any other"
    weaker, _ = load(studio, name, tokens=f"[fernando] = {DOG}", strength_clip=0.5)
    assert changed(encode(studio, weaker, PROMPT.format("[fernando]")), expected)


def test_added_tokens_work_with_weights_and_punctuation(studio):
    clip, _ = load(
        studio, write_tokens(studio, "t_weighted", {49408: noise(WIDTH, seed=2)}), tokens="[fernando]=^dog</w>"
    )
    tokens = clip.tokenize("([fernando]:1.4), with his friends")["g"][0]
    vectors = [(token, weight) for token, weight in tokens if torch.is_tensor(token)]
    assert len(vectors) == 1 and vectors[0][1] == 1.4 and len(tokens) == 77
    assert tokens[0][0] == 49406 and tokens[2][0] == ids_of(studio, ",")[1]
    assert changed(encode(studio, clip, "([fernando]:1.4) here"), encode(studio, clip, "[fernando] here"))


def test_tokens_without_names(studio):
    """A file with two tokens that nobody named can be used, and tells how."""
    rows = {49408: noise(WIDTH, seed=2), 49409: noise(WIDTH, seed=3)}
    clip, report = load(studio, write_tokens(studio, "t_unnamed", rows))
    assert "Write [token1]" in report and "Write [token2]" in report and "starting from zero" in report
    tokens = clip.tokenize("[token2] [token1]")["g"][0]
    assert torch.equal(tokens[1][0], rows[49409]) and torch.equal(tokens[2][0], rows[49408])
    named, _ = load(studio, "t_unnamed.safetensors", tokens="<one>")
    assert torch.equal(named.tokenize("[token2] <one>")["g"][0][2][0], rows[49408])


def test_bundled_embeddings(studio):
    name = studio.write(
        "loras/t_bundled",
        {"bundle_emb.sks.clip_g": noise(2, WIDTH), **comfyui(low_rank(attention_shapes(studio.parts.prior)))},
    )
    graph = studio.graph()
    node = graph.add("CascadeStudio_LoadLora", lora=name, clip=studio.parts.clip, prior=studio.parts.prior)
    clip, report = graph.run(node[2], node[3])
    assert "Brings the embedding sks" in report
    found = [token for token, _ in clip.tokenize("a sks dog, skss")["g"][0] if torch.is_tensor(token)]
    assert len(found) == 2 and torch.equal(torch.stack(found), noise(2, WIDTH))
    assert changed(encode(studio, clip, "a sks dog"), encode(studio, studio.parts.clip, "a sks dog"))


def test_two_loras_bring_their_words(studio):
    graph, stack = studio.graph(), {}
    for word, seed in (("[one]", 4), ("[two]", 5)):
        file = write_tokens(studio, f"t_word_{seed}", {49408: noise(WIDTH, seed=seed)})
        stack = {"stack": graph.add("CascadeStudio_LoraStack", lora=file, tokens=word, **stack)[0]}
    clip = graph.run(graph.add("CascadeStudio_ApplyLoraStack", clip=studio.parts.clip, **stack)[2])
    found = [token for token, _ in clip.tokenize("[two] and [one]")["g"][0] if torch.is_tensor(token)]
    assert torch.equal(found[0], noise(WIDTH, seed=5)) and torch.equal(found[1], noise(WIDTH, seed=4))


@pytest.mark.parametrize(
    "tokens, words",
    [
        ("[a] = ^dog</w>\n[b]", "names 2 words"),
        ("[a] = (", "no valid pattern"),
        ("two words", "has a space"),
        ("[a] = ^nosuchthing$", "no token of the text encoder"),
    ],
)
def test_errors(studio, tokens, words):
    name = write_tokens(studio, "t_errors", {49408: noise(WIDTH)})
    graph = studio.graph()
    node = graph.add("CascadeStudio_LoadLora", lora=name, clip=studio.parts.clip, tokens=tokens)
    check_sentence(graph.error(node[2]), words)


# Hooks


def hooks_for(studio: Studio, name: str, model=None, **inputs):
    given = {"lora": name, "model": model or studio.parts.prior, **inputs}
    return studio.call("CascadeStudio_LoadHookLora", range(2), **given)


def with_hooks(studio: Studio, hooks) -> dict:
    positive, negative = studio.call(
        "PairConditioningSetProperties",
        range(2),
        positive_NEW=studio.positive,
        negative_NEW=studio.negative,
        strength=1.0,
        set_cond_area="default",
        hooks=hooks,
    )
    return {"positive": positive, "negative": negative}


def sample(studio: Studio, model=None, steps: int = 2, **prompts) -> torch.Tensor:
    latent = studio.canvas()[0]
    return studio.core_sample(model or studio.parts.prior, latent, seed=3, steps=steps, **prompts)


@pytest.fixture(scope="module")
def official_file(studio) -> str:
    from forward import official

    return studio.write("loras/t_hook", official(low_rank(attention_shapes(studio.parts.prior), size=2.0)))


def test_hook_is_the_loader_on_a_prompt(studio, official_file):
    """Also from the official layout, which the host's own hook node cannot read; nothing stays behind."""
    before = sample(studio)
    hooks, report = hooks_for(studio, official_file)
    loaded = studio.call("CascadeStudio_LoadLora", lora=official_file, prior=studio.parts.prior)
    result = sample(studio, **with_hooks(studio, hooks))
    assert relative(result, sample(studio, loaded)) <= 1e-4 and changed(result, before)
    one = {**studio.prompts, "positive": with_hooks(studio, hooks)["positive"]}
    assert changed(sample(studio, **one), result) and changed(sample(studio, **one), before)
    assert torch.equal(sample(studio), before) and "16 layers of Stage C" in report


def test_hook_schedule(studio, official_file):
    """Keyframes: off is no LoRA, on is the LoRA, and half of the way lies between."""
    hooks, _ = hooks_for(studio, official_file)

    def scheduled(*frames: tuple[float, float]) -> torch.Tensor:
        graph, previous = studio.graph(), {}
        for strength, start in frames:
            node = graph.add("CreateHookKeyframe", strength_mult=strength, start_percent=start, **previous)
            previous = {"prev_hook_kf": node[0]}
        timed = graph.run(graph.add("SetHookKeyframes", hooks=hooks, hook_kf=previous["prev_hook_kf"])[0])
        return sample(studio, steps=3, **with_hooks(studio, timed))

    before, always = sample(studio, steps=3), sample(studio, steps=3, **with_hooks(studio, hooks))
    assert relative(scheduled((0.0, 0.0)), before) <= 1e-5
    assert relative(scheduled((1.0, 0.0)), always) <= 1e-5
    late = scheduled((0.0, 0.0), (1.0, 0.4))
    assert changed(late, before) and changed(late, always)


def test_hooks_leave_the_other_stage_alone(studio, official_file, caplog):
    """The same prompts go to Stage B, whose layers have the same names: no change there, and nothing in the log."""
    hooks, _ = hooks_for(studio, official_file)
    plain = studio.sample_decoder(studio.prior_latent, steps=1, seed=2)["samples"]
    with caplog.at_level(logging.WARNING):
        result = studio.sample_decoder(studio.prior_latent, steps=1, seed=2, **with_hooks(studio, hooks))["samples"]
    assert relative(result, plain) <= 1e-5
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_hooks_on_stage_b_and_their_neutral_settings(studio):
    file = studio.write("loras/t_hook_b", comfyui(low_rank(attention_shapes(studio.parts.decoder), size=30.0)))
    hooks, report = hooks_for(studio, file, studio.parts.decoder)
    plain = studio.sample_decoder(studio.prior_latent, steps=1, seed=2)["samples"]
    result = studio.sample_decoder(studio.prior_latent, steps=1, seed=2, **with_hooks(studio, hooks))["samples"]
    assert not torch.equal(result, plain) and "layers of Stage B" in report
    assert (
        hooks_for(studio, file, studio.parts.decoder, strength_model=0.0, strength_clip=0.0, prev_hooks=hooks)[0]
        is hooks
    )
    both = hooks_for(studio, file, studio.parts.decoder, prev_hooks=hooks)[0]
    assert len(both.hooks) == 2 and len(hooks.hooks) == 1, "the hooks that came in are left as they are"


def test_hooks_change_the_text_encoder(studio):
    layer = "lora_prior_te_text_model_encoder_layers_0_mlp_fc1"
    change = low_rank(attention_shapes(studio.parts.prior))
    dog = ids_of(studio, "dog")[1]
    name = studio.write(
        "loras/t_hook_text",
        {
            **comfyui(change),
            f"{layer}.lora_up.weight": tensor_for("up", (256, 2)),
            f"{layer}.lora_down.weight": tensor_for("down", (2, 64)),
            "embeddings.embeddings": noise(1, WIDTH),
            "embeddings.indices": torch.tensor([dog]),
        },
    )
    hooks, _ = hooks_for(studio, name, clip=studio.parts.clip)
    hooked = studio.call("SetClipHooks", clip=studio.parts.clip, apply_to_conds=False, schedule_clip=False, hooks=hooks)
    loaded = studio.call("CascadeStudio_LoadLora", 2, lora=name, prior=studio.parts.prior, clip=studio.parts.clip)
    text = PROMPT.format("dog")
    assert relative(encode(studio, hooked, text), encode(studio, loaded, text)) <= 1e-4
    assert changed(encode(studio, hooked, text), encode(studio, studio.parts.clip, text))
