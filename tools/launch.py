"""Runs a script, a module (-m) or code (-c) with the host's root before the pack's on ``sys.path``.

Usage: ``python launch.py HOST_ROOT (SCRIPT | -m MODULE | -c CODE) [ARGUMENT ...]``. Python itself would put the
working directory or the script's folder first, and the pack's ``nodes`` would then hide the host's ``nodes.py``.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

REPOSITORY = str(Path(__file__).resolve().parent.parent)


def arrange_path(host: str, *last: str) -> None:
    """Put the host's root first, the pack's second, whatever else was there next, and ``last`` at the end."""
    own = {"", ".", host, REPOSITORY, str(Path(__file__).resolve().parent), *last}
    others = [entry for entry in sys.path if entry not in own]
    sys.path[:] = [host, REPOSITORY, *others, *last]


def main(arguments: list[str]) -> None:
    host, kind, *rest = arguments
    sys.path.insert(0, REPOSITORY)
    __import__("studio").load_pack()
    if kind == "-c":
        arrange_path(host)
        code, *rest = rest
        sys.argv = ["-c", *rest]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    elif kind == "-m":
        arrange_path(host)
        module, *rest = rest
        sys.argv = [module, *rest]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        folder = str(Path(kind).resolve().parent)
        arrange_path(host, *([folder] if folder != REPOSITORY else []))
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
