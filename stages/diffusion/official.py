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
