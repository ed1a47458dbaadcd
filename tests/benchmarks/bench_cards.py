"""What streams on cards of several sizes, predicted: the host's rule for loading, with our plan and published sizes.

    python3 dev.py run tests/benchmarks/bench_cards.py

The host keeps weights on a card as far as its memory goes beside what a pass is said to need (its
``model_management.load_models_gpu``), and copies the others there at every step. Nothing is run.
"""

from __future__ import annotations

import sys

from cascade_studio.stages.files.kinds import KINDS
from cascade_studio.stages.nets.memory import activation_memory

GIB = 1024**3
CARDS = (3, 4, 6, 8, 10, 12, 16)
PRESETS = {"lite": ("1B", 1_030_785_040, "700M", 699_471_248), "full": ("3.6B", 3_589_103_632, "1.5B", 1_562_941_136)}
CONTEXT = 0.3 * GIB  # of the driver
RESERVED = 0.4 * GIB  # EXTRA_RESERVED_VRAM of the host; on Windows it is 0.6
LEAST = 0.8 * GIB + RESERVED  # minimum_inference_memory
LINK = 12e9  # bytes/s of PCIe 3 x16, as measured by those who copy
STEPS = 20, 10


def stream(card: float, parameters: int, needed: int) -> float:
    """Bytes of bf16 weights that are copied at every step on a card of ``card`` GiB."""
    free = card * GIB - CONTEXT
    kept = max(free - max(LEAST, needed + RESERVED), min(0.4 * free, free - LEAST), 0)
    return max(0.0, 2 * parameters - kept)


def rows(pixels: int) -> list[str]:
    """Lines of the table for pictures of ``pixels`` a side."""
    grid, side = pixels * 24 // 1024, pixels // 4
    found = []
    for name, (size_c, count_c, size_b, count_b) in PRESETS.items():
        for card in CARDS:
            c = stream(card, count_c, activation_memory(KINDS["stage_c"].published[size_c], 2, grid, grid, 2, (1, 1)))
            b = stream(
                card, count_b, activation_memory(KINDS["stage_b"].published[size_b], 2, side, side, 2, (1, 2, 4, 8))
            )
            more = (STEPS[0] * c + STEPS[1] * b) / LINK
            found.append(f"| {card} GB | {name} | {pixels} | {c / 1e9:.1f} | {b / 1e9:.1f} | {more:.0f} |")
    return found


def main() -> None:
    sys.stdout.write("| card | models | picture | Stage C streams GB | Stage B streams GB | seconds more |\n")
    sys.stdout.write("| --- | --- | --- | --- | --- | --- |\n")
    for pixels in (1024, 2048):
        sys.stdout.write("\n".join(rows(pixels)) + "\n")


if __name__ == "__main__":
    main()
