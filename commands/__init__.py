"""What users run in a terminal, and the one table of it. A command is a module here with ``main(arguments) -> int``."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from .messages import say

COMMANDS = {
    "models": "list, plan, fetch and verify checkpoints",
    "train": "train a LoRA, words, a stage or a ControlNet from a configuration file",
    "batch": "paint many pictures from a list, on one machine or many",
}
COMES_WITH_COMFYUI = ("torch", "numpy", "safetensors", "transformers", "PIL")


def main(arguments: Sequence[str]) -> int:
    """Run the command that the first argument names; returns its exit code."""
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="studio.py",
        usage="studio.py COMMAND ...",
        description="Cascade Studio from a terminal. Run it with the Python of your ComfyUI.",
        epilog="\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
        + "\n\n'studio.py COMMAND --help' tells the rest.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of:")
    name = parser.parse_args(arguments[:1]).command
    try:
        return importlib.import_module(f".{name}", __name__).main(list(arguments[1:]))
    except ModuleNotFoundError as error:
        if error.name not in COMES_WITH_COMFYUI:
            raise
        say(
            f"studio.py {name}: this Python has no {error.name}. Run it with the Python of your ComfyUI, which has: "
            "on Windows portable python_embeded\\python.exe, else the one in ComfyUI's venv."
        )
        return 1
