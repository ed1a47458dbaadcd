"""The nodes that an artist sees: one file an area, thin classes, literal ids."""

from __future__ import annotations

PREFIX = "CascadeStudio_"
"""How the ids of all our nodes begin."""

CARD = "cascade_studio"
"""The name of our text in a PNG file: the report card, as JSON."""
