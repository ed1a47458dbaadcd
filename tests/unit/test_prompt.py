"""The prompt language: BREAK and AVG, and nothing else."""

from __future__ import annotations

import pytest

from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.inputs.prompt import Prompt, group_by_weight, parse_prompt


@pytest.mark.parametrize(
    "text",
    ["", " a cat ", "a (red:1.3) cat, [blue]", "breakfast BREAKING AVGAS", "Rock AND Roll", "at 12:30", "a\nb: 0.5"],
)
def test_plain_text_comes_back_as_it_is(text):
    assert parse_prompt(text) == (Prompt((text,)),)


def test_breaks():
    assert parse_prompt("a cat BREAK a dog\nBREAK") == (Prompt(("a cat", "a dog", "")),)


def test_averages():
    assert parse_prompt("a cat AVG a dog:0.5") == (Prompt(("a cat",)), Prompt(("a dog",), 0.5))
    assert parse_prompt("a (cat:1.2) BREAK x : 2 AVG y:-.5") == (
        Prompt(("a (cat:1.2)", "x"), 2.0),
        Prompt(("y",), -0.5),
    )
    assert parse_prompt("a (cat:1.2) AVG b") == (Prompt(("a (cat:1.2)",)), Prompt(("b",)))


def test_weights_that_leave_nothing():
    with pytest.raises(WrongInput, match="more than 0 together"):
        parse_prompt("a:1 AVG b:-1")


def test_spans_by_weight():
    assert group_by_weight([1.0, 1.3, 1.3, 1.0, 0.5, 1.3]) == {1.3: [1, 2, 5], 0.5: [4]}
    assert group_by_weight([1.0, 1.0]) == {}
