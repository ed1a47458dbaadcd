"""The official sampling settings; without torch, so that tools which write workflows know them too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OfficialSettings:
    """How the official code samples a stage: steps, guidance scale, and shift of the schedule."""

    steps: int
    cfg: float
    shift: float

    @property
    def as_inputs(self) -> dict[str, float]:
        """Under the names of a sampler node's inputs, but for the shift, which is the model's."""
        return {"steps": self.steps, "cfg": self.cfg}


OFFICIAL = {"stage_c": OfficialSettings(20, 4.0, 2.0), "stage_b": OfficialSettings(10, 1.1, 1.0)}

OWN = "as they are"
"""The choice of settings that leaves the numbers alone."""


def list_tasks(stage: str) -> dict[str, dict[str, float]]:
    """What the choice of settings fills in, by task, under the names of a sampler node's inputs."""
    official = OFFICIAL[stage]
    numbers = {**official.as_inputs, "shift": official.shift, "denoise": 1.0}
    changes: dict[str, dict[str, dict[str, float]]] = {
        "stage_c": {"draft": {"steps": 10}, "fine": {"steps": 30}, "image to image": {"denoise": 0.6}},
        "stage_b": {"draft": {"steps": 6, "cfg": 1.0}, "fine": {"steps": 16}, "image to image": {}},
    }
    return {"official": numbers, **{task: {**numbers, **change} for task, change in changes[stage].items()}}
