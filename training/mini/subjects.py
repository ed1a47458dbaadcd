"""What Mini can be asked for: subjects, the colours behind them, and the languages that name both."""

from __future__ import annotations

from dataclasses import dataclass

LANGUAGES = ("en", "de", "fr", "es", "it", "pt")
COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "black": (18, 18, 20),
    "gray": (128, 128, 130),
    "red": (214, 40, 40),
    "orange": (245, 130, 32),
    "yellow": (250, 215, 50),
    "green": (50, 160, 70),
    "teal": (30, 170, 170),
    "blue": (40, 90, 215),
    "purple": (130, 60, 180),
    "pink": (245, 150, 190),
    "brown": (125, 80, 45),
}
"""Background colours by the name that captions use, in sRGB."""
PLAIN = "white"
"""The background of captions that name none."""


@dataclass(frozen=True)
class Subject:
    """One thing to paint. ``labels`` by language; ``held`` are background colours it is never trained on."""

    code: str
    labels: dict[str, str]
    tags: tuple[str, ...]
    held: tuple[str, ...]
