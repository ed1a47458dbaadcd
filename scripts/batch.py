#!/usr/bin/env python3
"""A batch from Python: python3 batch.py OUT_DIR SERVER[,SERVER ...] — the same as `studio.py batch`, as a function."""

from __future__ import annotations

import json
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PACK))
import studio  # noqa: E402

studio.load_pack()
from cascade_studio.commands.batch import Batch, run_batch  # noqa: E402
from cascade_studio.commands.messages import Stop  # noqa: E402


def main(out: Path, servers: str) -> int:
    """Six pictures: three things, each in two colours."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        {"prompt": [f"{thing} on a blue background", f"{thing} on a green background"], "seed": 1, "#mine": thing}
        for thing in ("red apple", "robot", "frog")
    ]
    listed = out.with_suffix(".jsonl")
    listed.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    workflow = PACK / "workflows" / "api" / "Stable Cascade - first picture.json"
    try:
        outcome = run_batch(Batch(rows=listed, out=out, workflow=workflow, servers=servers))
    except Stop as stop:
        sys.stderr.write(f"{stop}\n")
        return 1
    sys.stdout.write(outcome.describe() + "\n")
    return 0 if outcome.complete else 3


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
