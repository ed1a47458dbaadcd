"""What Mini is told: everyday words, languages and colours, each reaching one subject; and what measures it."""

from __future__ import annotations

import json
import os
import random
import re
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import harness
import pytest
import torch

from cascade_studio.stages.training.optimiser import EMA, Optimiser
from tools.small import MINI_PRIOR_CFG, MINI_PRIOR_STEPS
from training.mini import evaluate, guidance, sizes
from training.mini.captions import (
    COLOUR_TEMPLATES,
    END,
    HELD_TEMPLATES,
    PLAIN_TEMPLATES,
    SHADES,
    START,
    Speaker,
    join_caption,
    tokens,
    word_tokens,
)
from training.mini.compose import GROUNDS, random_colour
from training.mini.data import read_split
from training.mini.decoder import Critic
from training.mini.generators import repeat_common
from training.mini.language import TunedText, list_known_tokens, settle_table
from training.mini.phrases import PHRASES, make_phrase, split_phrase
from training.mini.pilot import GRIDS, SmallDecoder
from training.mini.subjects import COLOURS, LANGUAGES, PLAIN
from training.mini.towers import TextTower
from training.mini.vocabulary import NewWordsPart, WordsPart, hold_rows, list_english_tokens
from training.mini.words import (
    FOREIGN_TEMPLATES,
    HELD_FOREIGN,
    C,
    N,
    P,
    S,
    colour_words,
    everyday,
    nominative,
    predicative,
    speak,
)

SUBJECTS, PROMPTS = read_split()
LABELS = [subject.labels["en"] for subject in SUBJECTS]


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    os.environ.setdefault("CASCADE_STUDIO_HOST_PATH", str(harness.host_root()))
    return Speaker(SUBJECTS)


def owner(speaker: Speaker, name: str, language: str = "en") -> str:
    """The label of the one subject that has this name."""
    found = [LABELS[i] for i, names in enumerate(speaker.names) if name in names[language]]
    assert len(found) == 1, (name, found)
    return found[0]


def test_everyday_words_reach_the_subject_that_they_are_written_for(speaker):
    assert len(everyday()) >= 300 and set(everyday()) <= set(LABELS)
    for label, words in everyday().items():
        for word in (label, *words):
            assert owner(speaker, word) == label


@pytest.mark.parametrize(
    "word, language, label",
    [
        ("apple", "en", "red apple"), ("car", "en", "automobile"), ("man", "en", "man"), ("bird", "en", "bird"),
        ("apfel", "de", "red apple"), ("pomme", "fr", "red apple"), ("manzana", "es", "red apple"),
        ("mela", "it", "red apple"), ("maçã", "pt", "red apple"), ("hund", "de", "dog"), ("perro", "es", "dog"),
        ("voiture", "fr", "automobile"), ("casa", "it", "house"),
    ],
)  # fmt: skip
def test_plain_nouns_name_the_commonest_thing(speaker, word, language, label):
    assert owner(speaker, word, language) == label


def test_no_name_means_two_subjects_and_every_subject_has_one_in_every_language(speaker):
    for language in LANGUAGES:
        names = [name for entry in speaker.names for name in entry[language]]
        assert len(names) == len(set(names))
        assert all(entry[language] for entry in speaker.names)
    assert sum(len(entry["en"]) for entry in speaker.names) > 2 * len(SUBJECTS)
    assert not {name for entry in speaker.names for name in entry["en"]} & set(COLOURS)


def test_free_prompts_name_their_subject_by_a_word_that_is_learned(speaker):
    asked = json.loads(evaluate.FREE.read_text(encoding="utf-8"))
    assert len(asked) == 60 == len({prompt["subject"] for prompt in asked})
    for prompt in asked:
        assert LABELS[prompt["subject"]] == prompt["name"]
        noun = prompt["prompt"].split(" on ")[0].removeprefix("a ").removeprefix("an ").removeprefix("the ")
        assert owner(speaker, noun) == prompt["name"]


def test_captions_say_words_that_the_token_table_knows(speaker):
    """Of every language and template; those that are held back for measuring are never said."""
    rng, known, said = random.Random(0), set(list_known_tokens(speaker).tolist()), []
    for _ in range(3000):
        index = rng.randrange(len(SUBJECTS))
        said.append(speaker.caption(index, random_colour(SUBJECTS[index], rng, shades=0.2), rng, bare=rng.random()))
        assert set(tokens(said[-1])) <= known
    fragments = {part for fragments in said for part in fragments}
    for template in (*HELD_TEMPLATES, *HELD_FOREIGN.values()):
        assert any(part not in fragments for part in template if "{" not in part), template
    for language in LANGUAGES[1:]:
        own = {part for template in FOREIGN_TEMPLATES[language] for part in template if "{" not in part}
        assert own & fragments, language
    assert set(SHADES) & fragments and {"grey", "turquoise"} <= fragments
    assert any(len(fragments) == 1 for fragments in said), "a name alone"


def test_phrases_vary_and_never_use_the_words_that_measure():
    """Of the wordings that measure, no word longer than "me" is in a phrase, unless a template has it as well."""
    known = {word for language in LANGUAGES for colour in COLOURS for word in colour_words(colour, language)}
    templates = (*PLAIN_TEMPLATES, *COLOUR_TEMPLATES, *(each for some in FOREIGN_TEMPLATES.values() for each in some))
    known |= {word for template in templates for part in template for word in part.split()}
    for language in LANGUAGES:
        held = HELD_TEMPLATES if language == "en" else (HELD_FOREIGN[language],)
        said = {word for part in PHRASES[language].fragments() for word in part.split()}
        for template in held:
            own = {word for part in template if "{" not in part for word in part.split() if len(word) > 2}
            own -= known
            assert not own & said, (language, own & said)
        rng = random.Random(0)
        made = {tuple(make_phrase(language, rng)) for _ in range(2000)}
        assert len(made) > 1500 and all(phrase.count(S) == 1 for phrase in made)
        assert all(sum(phrase.count(colour) for colour in (C, N, P)) == 1 for phrase in made)
        assert not any({C, N, P} & set(make_phrase(language, rng, named=False)) for _ in range(200))


def test_phrases_are_many_and_split_at_the_colour():
    assert set(PHRASES) == set(LANGUAGES)
    for language, phrases in PHRASES.items():
        kinds = {**vars(phrases)}
        assert all(len(set(texts)) == len(texts) >= 30 for texts in kinds.values()), language
        for kind, texts in kinds.items():
            said = [sum(part in (C, N, P) for part in text) for text in texts]
            assert set(said) == {int(kind in ("behind", "firsts"))}, (language, kind)
        braces = {part for text in (*phrases.behind, *phrases.firsts) for part in text if "{" in part}
        assert braces == ({C, N, P} if language == "de" else {C}), language
    made = [make_phrase(language, rng) for rng in (random.Random(1),) for language in LANGUAGES * 500]
    assert not any(re.search(r"[,.;:!?] ?[,.;:!?]|[,;:]$", " ".join(phrase)) for phrase in made)
    assert split_phrase(", hintergrund ganz {colour!} und leer") == (", hintergrund ganz", P, "und leer")
    assert speak(["hintergrund", P, ":", S], "frosch", "blauem") == ["hintergrund", "blau", ":", "frosch"]


def test_held_out_colours_stay_held_out_in_every_shade():
    rng = random.Random(0)
    for subject in SUBJECTS[:40]:
        seen = {random_colour(subject, rng, shades=0.5) for _ in range(300)}
        assert not {name.split()[-1] for name in seen} & set(subject.held)
        assert seen & set(SHADES)
    assert set(GROUNDS) == {*COLOURS, *SHADES}
    values = torch.tensor(list(GROUNDS.values())).float()
    assert (torch.cdist(values, values) + 1000 * torch.eye(len(values))).min() > 15, "no two look the same"


def test_colours_are_said_in_every_language():
    for language in LANGUAGES:
        words = [colour_words(colour, language) for colour in COLOURS]
        assert all(words) and len({word for some in words for word in some}) == sum(map(len, words))
    assert colour_words("gray", "en") == ("gray", "grey") and colour_words("light blue", "fr") == ("light blue",)
    assert nominative("blauem") == "blauer" and nominative("rosa") == "rosa"
    german = [join_caption(template, "apfel", colour_words("blue", "de")[0]) for template in FOREIGN_TEMPLATES["de"]]
    assert "apfel auf blauem hintergrund" in german and "apfel, blauer hintergrund" in german
    assert all(
        "{" not in part for template in (*HELD_TEMPLATES, *HELD_FOREIGN.values()) for part in speak(template, "x", "y")
    )


def test_the_commonest_subjects_come_three_times_as_often():
    numbers = repeat_common(SUBJECTS, 3, 1)
    counts = torch.bincount(torch.tensor(numbers), minlength=len(SUBJECTS)).tolist()
    assert all(count == (3 if label in everyday() else 1) for count, label in zip(counts, LABELS, strict=True))


def test_white_may_be_left_unsaid(speaker):
    rng = random.Random(0)
    said = [" ".join(speaker.caption(0, PLAIN, rng)) for _ in range(400)]
    words = {word for language in LANGUAGES for word in colour_words(PLAIN, language)}
    named = sum(any(word in text.split() for word in words) for text in said) / len(said)
    assert named == pytest.approx(1 - Speaker.UNNAMED, abs=0.07)


@pytest.mark.parametrize("cells", GRIDS)
def test_the_pilots_decoder_takes_every_grid(cells):
    assert SmallDecoder()(torch.zeros(2, 16, cells, cells)).shape == (2, 3, 128, 128)


def test_the_critic_tells_how_far_two_pictures_are_apart():
    torch.manual_seed(0)
    critic, latent = Critic(10).eval(), torch.randn(3, 4, 64, 64)
    assert critic(latent).shape == (3, 10)
    near, far = latent + 0.05 * torch.randn_like(latent), torch.randn_like(latent)
    made = far.clone().requires_grad_()
    same, close, apart = (critic.distances(other, latent) for other in (latent, near, made))
    assert same.abs().max() < 1e-6 and (close < apart).all()
    apart.sum().backward()
    assert made.grad.abs().sum() > 0


def test_the_sheet_of_free_prompts_is_numbered_in_another_order(tmp_path, monkeypatch):
    class Painter:
        def __init__(self, place):
            pass

        def picture(self, prompts, seeds):
            return torch.zeros(len(prompts), 3, 32, 32)

    monkeypatch.setattr(evaluate, "Painter", Painter)
    evaluate.paint_free(evaluate.Place(tmp_path, torch.device("cpu")))
    key = json.loads((tmp_path / "free" / "free_key.json").read_text())
    names = (tmp_path / "free" / "free_names.txt").read_text().split("\n")[:-1]
    listed = [prompt["name"] for prompt in json.loads(evaluate.FREE.read_text(encoding="utf-8"))]
    assert sorted(key.values()) == names == sorted(listed)
    assert list(key.values()) not in (names, listed) and (tmp_path / "free" / "free.png").is_file()


def test_strangers_ask_for_every_subject_in_words_of_their_own():
    wordings = json.loads(evaluate.WORDINGS.read_text(encoding="utf-8"))
    assert set(wordings) == set(LANGUAGES) and len(wordings["en"]) == 40
    scenes = SimpleNamespace(subjects=SUBJECTS)
    for colour, language in product(COLOURS, LANGUAGES):
        asked = [{"subject": LABELS.index("frog"), "background": colour}] * 40
        said = evaluate.ask_as_strangers(scenes, asked, language)
        frog, ground = SUBJECTS[LABELS.index("frog")].labels[language], colour_words(colour, language)[0]
        assert len(set(said)) == len(wordings[language]) and not any("{" in text for text in said)
        assert all(frog in text and (ground in text or predicative(ground) in text) for text in said), said
    assert [predicative(word) for word in ("blauem", "orangem", "rosa")] == ["blau", "orange", "rosa"]
    shared = [text for language, some in wordings.items() for text in some if can_say(language, text)]
    assert len(shared) <= 20, "a fourth is what the training says as well, but for commas and capitals"


def can_say(language: str, wording: str) -> bool:
    """Whether a template or a phrase of the training has the words of ``wording``."""

    def words(*parts: str) -> str:
        return " ".join(re.findall(r"\w+|\{[^}]*\}", " ".join(parts).lower()))

    templates = (*PLAIN_TEMPLATES, *COLOUR_TEMPLATES) if language == "en" else FOREIGN_TEMPLATES[language]
    if words(wording) in {words(*template) for template in templates}:
        return True
    before, _, behind = words(wording).partition("{subject}")
    said = {kind: {words(*text) for text in texts} | {""} for kind, texts in vars(PHRASES[language]).items()}
    tails = product(said["middles"], said["behind"] - {""} if "{" in behind else {""}, said["endings"])
    starts = said["openings"] if "{" in behind else said["firsts"]
    return before.strip() in starts and behind.strip() in {words(*tail) for tail in tails}


def test_settings_are_chosen_on_other_pairs_than_the_held_out_prompts():
    scenes = SimpleNamespace(subjects=SUBJECTS, prompts=PROMPTS, rng=random.Random(3))
    pairs = guidance.draw_pairs(scenes, 300)
    asked = {(prompt["subject"], prompt["background"]) for prompt in PROMPTS}
    assert len(pairs) > 280 and len({index for index, _ in pairs}) == len(pairs) and not asked & {*pairs}
    assert all(colour in SUBJECTS[index].held for index, colour in pairs)
    assert (MINI_PRIOR_STEPS, MINI_PRIOR_CFG) in guidance.TRIED


def test_new_words_leave_what_english_captions_say():
    """After a step on all rows: held tokens say the same bit for bit, a new token does not."""
    torch.manual_seed(0)
    tower = TextTower(replace(sizes.TEXT, vocab_size=49408, num_hidden_layers=1))
    table = tower.text_model.embeddings.token_embedding.weight
    with torch.no_grad():
        table.copy_(settle_table(table, torch.tensor([7, 20, 4000, START, END])))
    tuned = TunedText(tower, torch.tensor([7, 20, 4000, START, END]))
    rows = hold_rows(tuned, torch.tensor([7, START, END]))
    optimiser = Optimiser([rows], 0.1, weight_decay=0.0)
    english, stranger = torch.tensor([[START, 7, tuned.stranger, END]]), torch.tensor([[START, 20, 7, END]])
    before = [tower(ids)[0] for ids in (english, stranger)]
    optimiser.step(sum(tuned(ids)[0].square().sum() for ids in (english, stranger, torch.tensor([[START, 4000, END]]))))
    after = TextTower(tower.config)
    after.load_state_dict(tuned.tensors())
    with torch.no_grad():
        assert torch.equal(after(english)[0], before[0]) and not torch.allclose(
            after(stranger)[0], before[1], atol=1e-3
        )
    assert [parameter.requires_grad for parameter in tuned.parameters()].count(True) == 1


def test_english_captions_are_all_held(speaker):
    """Every token of a label in English and of the held-out prompts."""
    held = set(list_english_tokens(SUBJECTS).tolist())
    said = [*LABELS, *(prompt["prompt"] for prompt in PROMPTS)]
    assert {token for text in said for token in word_tokens(text)} <= held


def test_the_text_encoder_that_ships_keeps_a_share_of_the_one_before():
    part = WordsPart.__new__(WordsPart)
    part.tuned = TunedText(
        TextTower(replace(sizes.TEXT, vocab_size=49408, num_hidden_layers=1)), torch.tensor([START, END])
    )
    part.before = {name: value.clone() for name, value in part.tuned.state_dict().items()}
    part.ema = EMA(part.tuned, 0.0)
    with torch.no_grad():
        for parameter in part.tuned.parameters():
            parameter.add_(1.0)
    part.ema.update(part.tuned)
    moved = part.average_text().state_dict()
    assert 0 < part.KEPT < 0.5
    assert all(torch.allclose(moved[name], value + 1 - part.KEPT, atol=1e-5) for name, value in part.before.items())
    part.KEPT = NewWordsPart.KEPT
    everything = part.average_text().state_dict()
    assert all(torch.allclose(everything[name], value + 1.0, atol=1e-5) for name, value in part.before.items())
