"""The draft board: what it shows, what it hands on, and that a chosen draft is the same picture alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import check_sentence
from world import Studio, of_range

SEED, COUNT = 20, 4
BOARD = "CascadeStudio_DraftBoard"


@pytest.fixture(scope="module")
def drafts(studio) -> dict[str, Any]:
    return studio.sample_prior(studio.canvas(320, 256, batch=COUNT)[0], seed=SEED, steps=2)


def board(studio: Studio, prior: dict[str, Any], **inputs: Any) -> Any:
    graph = studio.graph()
    node = graph.add(BOARD, prior=prior, vae=studio.parts.stage_c_vae, **inputs)
    result = graph.execute(node[0], node[1])
    assert result.success, result.error
    return result, node.name


def test_the_sheet(studio, drafts):
    result, name = board(studio, drafts)
    sheet = result.values[(name, 1)]
    shown = result.ui[name]["cascade_studio_drafts"][0]
    assert sheet.shape == (1, shown["height"], shown["width"], 3)
    assert [draft["number"] for draft in shown["drafts"]] == [1, 2, 3, 4]
    assert [draft["seed"] for draft in shown["drafts"]] == [str(SEED + index) for index in range(COUNT)]
    assert shown["widget"] == "chosen" and not any(draft["chosen"] for draft in shown["drafts"])
    pictures = studio.call("CascadeStudio_DecodePreview", prior=drafts, vae=studio.parts.stage_c_vae)
    for picture, draft in zip(pictures, shown["drafts"]):
        left, top = draft["left"], draft["top"]
        found = sheet[0, top : top + draft["height"], left : left + draft["width"]]
        assert (found - picture).abs().max() <= 1 / 255
        caption = sheet[0, top + draft["height"] + 4 : top + draft["height"] + 20, left : left + draft["width"]]
        assert caption.max() > 0.4, "number and seed stand below it"
    (image,) = result.ui[name]["images"]
    assert image["type"] == "temp" and (studio.host.base / "temp" / image["filename"]).is_file()


@pytest.mark.parametrize("columns, wide", [(1, False), (4, True)])
def test_columns(studio, drafts, columns, wide):
    result, name = board(studio, drafts, columns=columns)
    _, height, width, _ = result.values[(name, 1)].shape
    assert (width > height) is wide


def test_nothing_chosen_stops(studio, drafts):
    """The board is shown, and nothing after it runs."""
    graph = studio.graph()
    node = graph.add(BOARD, prior=drafts, vae=studio.parts.stage_c_vae)
    sampled = graph.add(
        "CascadeStudio_SampleDecoder", model=studio.parts.decoder, prior=node[0], steps=1, **studio.prompts
    )
    result = graph.execute(sampled[0], node[1])
    assert result.success and (sampled.name, 0) not in result.values
    assert result.values[(node.name, 1)].ndim == 4 and result.ui[node.name]["images"]


def test_all_are_handed_on_when_asked(studio, drafts):
    result, name = board(studio, drafts, stop_here=False)
    handed = result.values[(name, 0)]
    assert torch.equal(handed["samples"], drafts["samples"]) and handed["batch_index"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "chosen, indices", [("3", [2]), ("1,3", [0, 2]), ("4 2", [3, 1]), ("2-4, 3", [1, 2, 3]), ("１，３", [0, 2])]
)
def test_only_the_chosen_are_handed_on(studio, drafts, chosen, indices):
    result, name = board(studio, drafts, chosen=chosen)
    handed = result.values[(name, 0)]
    assert torch.equal(handed["samples"], drafts["samples"][indices]) and handed["batch_index"] == indices
    assert handed["cascade_studio_canvas"] == drafts["cascade_studio_canvas"]
    marked = [draft["number"] - 1 for draft in result.ui[name]["cascade_studio_drafts"][0]["drafts"] if draft["chosen"]]
    assert marked == sorted(indices)


def test_a_chosen_draft_becomes_the_same_picture(studio, drafts):
    """Stage B of the chosen ones alone is Stage B of the whole batch, and Stage C of the shown seed is the draft."""
    every = studio.sample_decoder(drafts, seed=SEED, steps=2)["samples"]
    result, name = board(studio, drafts, chosen="2,4")
    handed = result.values[(name, 0)]
    assert of_range(studio.sample_decoder(handed, seed=SEED, steps=2)["samples"], every[[1, 3]]) <= 1e-5
    seed = int(result.ui[name]["cascade_studio_drafts"][0]["drafts"][3]["seed"])
    again = studio.sample_prior(studio.canvas(320, 256)[0], seed=seed, steps=2)["samples"]
    assert of_range(again, drafts["samples"][3:]) <= 1e-5


def test_a_board_of_a_board(studio, drafts):
    """Numbers are those of the board that is looked at, seeds stay those of the pictures."""
    result, name = board(studio, drafts, chosen="2,4")
    second, name = board(studio, result.values[(name, 0)], chosen="2")
    assert second.values[(name, 0)]["batch_index"] == [3]
    shown = second.ui[name]["cascade_studio_drafts"][0]["drafts"]
    assert [draft["seed"] for draft in shown] == [str(SEED + 1), str(SEED + 3)]


def test_latents_of_other_nodes_have_no_seed(studio):
    """Core's sampler says nothing of its seed; the board then shows numbers alone. Masks go with their pictures."""
    other = {
        "samples": torch.randn(2, 16, 6, 6),
        "noise_mask": torch.stack([torch.zeros(1, 6, 6), torch.ones(1, 6, 6)]),
    }
    result, name = board(studio, other, chosen="2")
    assert [draft["seed"] for draft in result.ui[name]["cascade_studio_drafts"][0]["drafts"]] == [None, None]
    assert result.values[(name, 0)]["noise_mask"].eq(1).all()


@pytest.mark.parametrize(
    "chosen, words",
    [("5", ["'5'", "1 to 4"]), ("0", ["'0'", "1 to 4"]), ("3-2", ["'3-2'"]), ("first", ["'first'", "1,3"])],
)
def test_wrong_choices_are_explained(studio, drafts, chosen, words):
    graph = studio.graph()
    node = graph.add(BOARD, prior=drafts, vae=studio.parts.stage_c_vae, chosen=chosen)
    check_sentence(graph.error(node[1]), *words)


def test_wrong_wires_are_explained(studio):
    graph = studio.graph()
    node = graph.add(BOARD, prior=studio.canvas()[1], vae=studio.parts.stage_c_vae)
    check_sentence(graph.error(node[1]), "Draft Board", "Stage C latent")
    graph = studio.graph()
    node = graph.add(BOARD, prior=studio.prior_latent, vae=studio.parts.stage_a)
    check_sentence(graph.error(node[1]), "Draft Board", "stage_c_vae")
    graph = studio.graph()
    node = graph.add(BOARD, prior=studio.prior_latent, vae=None)
    check_sentence(graph.error(node[1]), "Draft Board", "no file", "stage_c_vae")


def test_choosing_does_not_sample_the_drafts_again(studio):
    executor, graph = studio.host.executor(), studio.graph()
    prior = graph.add(
        "CascadeStudio_SamplePrior",
        model=studio.parts.prior,
        latent=studio.canvas(batch=2)[0],
        steps=2,
        **studio.prompts,
    )
    node = graph.add(BOARD, prior=prior[0], vae=studio.parts.stage_c_vae)
    assert prior.name in graph.execute(node[1], executor=executor).executed
    graph.prompt[node.name]["inputs"]["chosen"] = "1"
    again = graph.execute(node[0], executor=executor)
    assert prior.name not in again.executed and node.name in again.executed
    assert again.values[(node.name, 0)]["samples"].shape[0] == 1
