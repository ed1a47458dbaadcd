"""What the client makes of a run's outputs."""

from __future__ import annotations

from itertools import permutations

from tools.client import PromptRun


def test_pictures_come_in_the_order_of_the_nodes_whatever_ran_first():
    """The server's order is chance: a workflow with two pictures would swap them from one process to the next."""
    saved = {
        node: {"images": [{"filename": node, "type": "temp" if node == "3" else "output"}]}
        for node in ("3", "9", "10", "12:4")
    }
    for order in permutations(saved):
        run = PromptRun("x", outputs={node: saved[node] for node in order})
        assert [image["filename"] for image in run.images()] == ["9", "10", "12:4", "3"]
