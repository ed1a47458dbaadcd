"""The prompt language: BREAK and AVG, and nothing else."""

from __future__ import annotations

import pytest

from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.inputs.prompt import Prompt, check_text, check_weights, group_by_weight, parse_prompt


@pytest.mark.parametrize(
    "text",
    ["", " a cat ", "a (red:1.3) cat, [blue]", "breakfast BREAKING AVGAS", "Rock AND Roll", "at 12:30", "a\nb: 0.5"],
)
def test_plain_text_comes_back_as_it_is(text):
    assert parse_prompt(text) == (Prompt((text,)),)


def test_breaks():
    assert parse_prompt("a cat BREAK a dog\nBREAK") == (Prompt(("a cat", "a dog", "")),)


@pytest.mark.parametrize(
    "text, parts",
    [
        ("a red apple, BREAK, white background", ("a red apple,", "white background")),
        ("a red apple,BREAK white background", ("a red apple,", "white background")),
        ("a red apple BREAK, white background", ("a red apple", "white background")),
        ("BREAK,BREAK", ("", "", "")),
    ],
)
def test_breaks_beside_commas(text, parts):
    assert parse_prompt(text) == (Prompt(parts),)


@pytest.mark.parametrize("text", ["ratio 16:9", "at 12:30", "chapter 3:4"])
def test_numbers_before_a_colon_are_text(text):
    assert parse_prompt(f"a cat AVG {text}") == (Prompt(("a cat",)), Prompt((text,)))
    assert parse_prompt(f"{text} :0.5 AVG a cat")[0] == Prompt((text,), 0.5)


def test_averages():
    assert parse_prompt("a cat AVG a dog:0.5") == (Prompt(("a cat",)), Prompt(("a dog",), 0.5))
    assert parse_prompt("a (cat:1.2) BREAK x : 2 AVG y:-.5") == (
        Prompt(("a (cat:1.2)", "x"), 2.0),
        Prompt(("y",), -0.5),
    )
    assert parse_prompt("a (cat:1.2) AVG b") == (Prompt(("a (cat:1.2)",)), Prompt(("b",)))


def test_weights_that_leave_nothing():
    for text in ("a:1 AVG b:-1", f"a:{'9' * 400} AVG b"):
        with pytest.raises(WrongInput, match="more than 0"):
            parse_prompt(text)


def test_brackets_have_a_limit():
    for text in ("(" * 100 + "a" + ")" * 100, "(" * 5000, ")" * 5000, "()" * 5000, r"\(" * 500 + "a" + r"\)" * 500):
        check_text(text)
    with pytest.raises(WrongInput, match="half of a character"):
        check_text("a \ud83e cat")
    with pytest.raises(WrongInput, match="101 deep"):
        check_text("(" * 101 + "a" + ")" * 101)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf")])
def test_weights_are_numbers(weight):
    check_weights([1.0, 0.0, -2.5])
    with pytest.raises(WrongInput, match="weight"):
        check_weights([1.0, weight])


def test_spans_by_weight():
    assert group_by_weight([1.0, 1.3, 1.3, 1.0, 0.5, 1.3]) == {1.3: [1, 2, 5], 0.5: [4]}
    assert group_by_weight([1.0, 1.0]) == {}
