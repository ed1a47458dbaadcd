"""Processes that fetch and may be killed: imports everything once, then forks one for every job.

Reads one JSON object a line: ``{"start": JOB}`` answers with ``{"pid": N}``, ``{"wait": N}`` with ``{"status": S}``.
"""

from __future__ import annotations

import json
import os
import sys

import cascade_studio.stages.files.identify  # noqa: F401 - else imported while it may be killed
from cascade_studio.nodes.checkpoints.catalogue import Entry
from cascade_studio.nodes.checkpoints.errors import CheckpointError
from cascade_studio.nodes.checkpoints.fetch import fetch_plan
from cascade_studio.nodes.checkpoints.find import Finder, models_roots
from cascade_studio.nodes.checkpoints.plan import make_plan
from cascade_studio.nodes.checkpoints.settings import FetchSettings


def fetch(job: dict) -> int:
    plan = make_plan([Entry(**job["entry"])], Finder(models_roots(job["models"])))
    try:
        fetch_plan(plan, FetchSettings(**job["settings"]))
    except CheckpointError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def main() -> None:
    for line in sys.stdin:
        command = json.loads(line)
        if "start" in command:
            pid = os.fork()
            if pid == 0:
                os._exit(fetch(command["start"]))
            answer = {"pid": pid}
        else:
            answer = {"status": os.waitpid(command["wait"], 0)[1]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
