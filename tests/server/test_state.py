"""What a page that was loaded anew asks: which prompt runs, and what the workflow in sight showed last."""

from __future__ import annotations

import json

from harness import REPOSITORY
from small_runs import prepared

WORKFLOW = REPOSITORY / "workflows" / "Stable Cascade - text to image.json"
ADDRESS = "/cascade_studio/state?workflow="


def test_the_last_run_of_a_workflow_is_told_to_whoever_asks(server):
    """What our nodes showed, by node; of another workflow nothing. Asking starts nothing."""
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    converted = prepared(server, workflow)
    run = server.run(converted.prompt, workflow=workflow)
    told = server.client.get(ADDRESS + workflow["id"])
    assert told["running"] is None and told["last"]["prompt_id"] == run.prompt_id
    kinds = {node: converted.prompt[node]["class_type"] for node in told["last"]["outputs"]}
    assert kinds and all(kind.startswith("CascadeStudio_") for kind in kinds.values())
    (sampler,) = [node for node, kind in kinds.items() if kind == "CascadeStudio_SamplePrior"]
    assert told["last"]["outputs"][sampler]["cascade_studio_report"][0]["seconds"] > 0
    assert server.client.get(ADDRESS + "another")["last"] is None and server.client.get(ADDRESS)["last"] is None
    queue = server.client.get("/queue")
    assert queue["queue_running"] == queue["queue_pending"] == []
