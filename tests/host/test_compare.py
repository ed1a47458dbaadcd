"""Compare Pictures: it hands both batches to the page as temporary files, unchanged, and says which is which."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from graphs import Graph
from PIL import Image


def shown(host, before: torch.Tensor, after: torch.Tensor) -> dict:
    graph = Graph(host)
    node = graph.add("CascadeStudio_Compare", before=before, after=after)
    result = graph.execute()
    return result.ui[node.name]


def pixels(host, place: dict) -> numpy.ndarray:
    assert place["type"] == "temp"
    path = Path(host.folder_paths.get_temp_directory(), place["subfolder"], place["filename"])
    with Image.open(path) as picture:
        return numpy.array(picture)


def test_pictures_of_different_sizes_and_batches_are_shown(host):
    before, after = torch.rand(2, 40, 64, 3), torch.rand(1, 24, 32, 3)
    output = shown(host, before, after)
    assert [len(output[name]) for name in ("before", "after", "images")] == [2, 1, 3]
    assert output["images"] == [*output["before"], *output["after"]], "without the extension the host shows all of them"
    given = [*before, *after]
    for picture, place in zip(given, output["images"]):
        assert (pixels(host, place) == (picture.numpy() * 255).astype(numpy.uint8)).all()


def test_the_inputs_are_not_changed(host):
    picture = torch.rand(1, 16, 16, 3)
    kept = picture.clone()
    shown(host, picture, picture)
    assert torch.equal(picture, kept)
