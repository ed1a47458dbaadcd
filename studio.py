#!/usr/bin/env python3
"""Cascade Studio from a terminal: ``python studio.py models list``, ``python studio.py train --config FILE``.

Run it with the Python of your ComfyUI; nothing has to be installed. ``python studio.py --help`` names every command.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if sys.version_info < (3, 10):
    sys.exit("Python %d.%d is too old: studio.py needs the Python of ComfyUI, 3.10 or newer." % sys.version_info[:2])

PACKAGE = "cascade_studio"


def load_pack() -> None:
    """Let ``import cascade_studio`` find the folder of this file, whatever its name is."""
    if PACKAGE not in sys.modules:
        spec = importlib.util.spec_from_file_location(PACKAGE, Path(__file__).resolve().with_name("__init__.py"))
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PACKAGE])


if __name__ == "__main__":
    load_pack()
    from cascade_studio.commands import main
    from cascade_studio.commands.messages import speak_plainly

    speak_plainly()
    sys.exit(main(sys.argv[1:]))
