"""Types of wires that only this pack has."""

from __future__ import annotations

from comfy_api.latest import io

Report = io.Custom("CASCADE_STUDIO_REPORT")
"""What the stages did so far: a tuple of ``host.report.StageReport``."""

Stitch = io.Custom("CASCADE_STUDIO_STITCH")
"""Where a cropped part of a picture belongs: a ``stages.inputs.inpaint.Stitch``."""
