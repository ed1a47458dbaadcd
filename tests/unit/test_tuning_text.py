"""Learned words: the encoder that they are trained through, and what is trained."""

from __future__ import annotations

from dataclasses import replace

import lessons
import pytest
import torch
from lessons import SHORT, randn
from letters import Letters

from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.files.clip import TextConfig
from cascade_studio.stages.training import words as text
from cascade_studio.stages.training.lora_layers import Lora
from cascade_studio.stages.training.trainer import Trainer
from training.mini.towers import TextTower as Twin

CONFIG = TextConfig(
    hidden_size=96, intermediate_size=128, num_hidden_layers=2, num_attention_heads=3, projection_dim=96
)


WORDS = Letters()


@pytest.fixture(scope="module")
def twin() -> Twin:
    """The recipe's text encoder, which tests/host/test_mini_text.py compares with the host's."""
    torch.manual_seed(0)
    return Twin(CONFIG).eval().requires_grad_(False)


def tower(twin: Twin, tokens=(("[x]", "a dog"),), **options):
    words = text.find_words(tokens, WORDS, CONFIG.vocab_size)
    learned = text.Words(words, twin.state_dict()[text.TABLE])
    return text.text_tower(CONFIG, twin.state_dict(), learned, **{"base": "fp32", **options}), learned, words


def test_captions_become_ids_with_learned_words():
    words = text.find_words([("[x]", "a dog a"), ("<y>", "cat"), ("hello", "")], WORDS, 49408)
    assert [(w.token, w.start) for w in words] == [(49408, (101, 103)), (49409, (103,)), (105, (105,))]
    assert [word.pattern for word in words] == [r"^(101\.</w>|103\.</w>)$", r"^(103\.</w>)$", ""]
    ids = text.token_ids("one [x],[X] and <y>", words, WORDS)
    assert ids.shape == (77,) and ids[:9].tolist() == [49406, 103, 49408, 101, 49408, 103, 49409, 49407, 49407]
    long = text.token_ids("w " * 200, words, WORDS)
    assert len(long) == 77 and long[75] == 101 and long[76] == 49407
    for wrong in (("", "dog"), ("two words", ""), ("[x]", " ")):
        with pytest.raises(WrongInput, match="needs words to start from"):
            text.find_words([wrong], WORDS, 49408)


def test_the_encoder_is_the_hosts(twin):
    net, _, words = tower(twin)
    ids = torch.stack([text.token_ids(caption, words, WORDS) for caption in ("a red apple", "")])
    hidden, pooled = net(ids)
    wanted, wanted_pooled = twin(ids)
    assert torch.allclose(hidden, wanted, atol=1e-4) and torch.allclose(pooled[:, 0], wanted_pooled, atol=1e-4)
    rough, _ = tower(twin, base="bf16")[0](ids)
    assert (rough - wanted).std() <= 0.05 * wanted.std()


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_the_layer_counts_from_the_end_as_clip_skip_does(twin, layer):
    """Two layers: the last, the first, and more than there are, which the host takes as the end behind the norm."""
    ids = text.token_ids("a red apple", [], WORDS)[None]
    hidden, pooled = tower(twin, layer=layer)[0](ids)
    seen = []
    hooks = [
        block.register_forward_hook(lambda *given: seen.append(given[2])) for block in twin.text_model.encoder.layers
    ]
    last, wanted_pooled = twin(ids)
    for hook in hooks:
        hook.remove()
    wanted = {-1: last, -2: seen[0], -3: twin.text_model.final_layer_norm(last)}[layer]
    assert torch.allclose(hidden, wanted, atol=1e-4) and torch.allclose(pooled[:, 0], wanted_pooled, atol=1e-4)


def test_a_new_word_starts_as_the_mean_of_others(twin):
    net, learned, words = tower(twin)
    table = twin.text_model.embeddings.token_embedding.weight
    assert torch.allclose(learned.vectors()[0], (table[101] + table[103]) / 2)
    ids = text.token_ids("see [x] run", words, WORDS)[None]
    before = net(ids)[0]
    with torch.no_grad():
        learned.offsets[0] += table[108] - learned.rows[0]
    plain = ids.where(ids != 49408, 108)
    assert torch.allclose(net(ids)[0], twin(plain)[0], atol=1e-4) and not torch.allclose(net(ids)[0], before, atol=1e-2)


def test_offsets_learn_together_with_the_lora(twin):
    net, learned, words = tower(twin)
    stage_c = lessons.net()
    lora = Lora(stage_c, 2, 2.0, (".attn",))
    rows = [
        {"latent": randn(16, 4, 4, seed=i), "ids": text.token_ids("the [x]" if i else "the", words, WORDS)}
        for i in range(4)
    ]
    objective = text.WordsObjective(stage_c, {"ids": text.token_ids("", words, WORDS)}, tower=net)
    both = torch.nn.ModuleDict({"lora": lora, "words": learned})
    run = Trainer(objective, both, rows, replace(SHORT, drop_text=0.0))
    run.update()
    assert learned.offsets.grad.abs().max() > 0 and learned.offsets.abs().max() > 0
    assert set(run.state_dict()["learned"]) >= {"words.offsets"} and "words.rows" not in run.state_dict()["learned"]
    assert all(p.grad is None for p in net.parameters()), "the rest of the encoder is frozen"
