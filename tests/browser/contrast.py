"""How well the letters of the pack's panels can be read, measured on the screen: WCAG 2's ratio of ink and ground."""

from __future__ import annotations

import io
from dataclasses import dataclass
from math import ceil, floor

import numpy
from browser.driver import FRAMES
from browser.page import Page
from PIL import Image

LETTERS = """
const pen = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d');
const read = (colour) => { pen.clearRect(0, 0, 1, 1); pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1);
  return [...pen.getImageData(0, 0, 1, 1).data]; };
const found = [];
for (const part of document.querySelectorAll('.cascade-studio *')) {
  const isChoice = part.tagName === 'SELECT';
  const own = [...part.childNodes].some((one) => one.nodeType === Node.TEXT_NODE && one.textContent.trim());
  if (part.disabled || part.tagName === 'OPTION' || !(own || isChoice)) continue;
  const range = document.createRange();
  range.selectNodeContents(part);
  const inset = isChoice ? 3 : 0;
  const { x, y, width, height } = (isChoice ? part : range).getBoundingClientRect();
  if (width < 2 || height < 2) continue;
  const seen = document.elementFromPoint(x + width / 2, y + height / 2);
  const panel = part.closest('.cascade-studio');
  if (!panel.contains(seen)) continue;
  const style = getComputedStyle(part);
  let alpha = 1;
  for (let one = part; one && one !== document.body; one = one.parentElement) alpha *= getComputedStyle(one).opacity;
  if (alpha === 0) continue; // not in sight before a pointer is over it
  const ink = read(part instanceof SVGElement ? style.fill : style.color);
  ink[3] = (ink[3] / 255) * alpha;
  const kind = [...panel.classList].find((one) => one.startsWith('cascade-studio-'));
  const name = `${kind} ${part.tagName} ${part.getAttribute('class') ?? ''}`;
  const words = (isChoice ? part.value : part.textContent).trim().slice(0, 40);
  found.push([`${name}: ${words}`, ink, [x + inset, y + inset, x + width - inset, y + height - inset]]);
}
return found;
"""
"""Body of a page's function: every piece of letters that is in sight, its ink with its opacity, and where it is."""

BLANK = (
    "document.head.append(Object.assign(document.createElement('style'), { id: 'blank', textContent:"
    " '.cascade-studio * { color: transparent !important; }"
    " .cascade-studio text { fill: transparent !important; }' }));" + FRAMES
)
DARKEST = 5
"""Percent of a ground's pixels that may be worse than what counts: an edge, the mark of a choice."""


@dataclass(frozen=True)
class Letters:
    """A piece of text in a panel, and the contrast of its ink and what it stands on."""

    name: str
    ratio: float


def luminance(colour: numpy.ndarray) -> numpy.ndarray:
    """Relative luminance (WCAG 2) of colours from 0 to 255, in the last axis."""
    parts = colour[..., :3] / 255
    linear = numpy.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ numpy.array([0.2126, 0.7152, 0.0722])


def contrast(ink: list[float], ground: numpy.ndarray) -> float:
    """The ratio of an ink (red, green, blue, opacity) and nearly the worst pixel of its ground."""
    shown = numpy.array(ink[:3]) * ink[3] + ground * (1 - ink[3])
    one, other = luminance(shown), luminance(ground)
    ratios = (numpy.maximum(one, other) + 0.05) / (numpy.minimum(one, other) + 0.05)
    return float(numpy.percentile(ratios, DARKEST))


def measure_letters(page: Page) -> list[Letters]:
    """Every piece of text in the panels that are in sight."""
    page.wait_still()
    pieces = page.browser.run(LETTERS)
    page.browser.run(BLANK)
    try:
        with Image.open(io.BytesIO(page.browser.picture())) as picture:
            screen = numpy.asarray(picture.convert("RGB"), float)
    finally:
        page.browser.run("document.getElementById('blank').remove()")
    measured = []
    for name, ink, (left, top, right, bottom) in pieces:
        ground = screen[max(0, ceil(top)) : floor(bottom), max(0, ceil(left)) : floor(right)]
        if ground.size:
            measured.append(Letters(name, contrast(ink, ground)))
    return measured
