"""``python3 dev.py run -m tools.authoring``: rewrites workflows/ with api/, subgraphs/, locales/ and help pictures."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from cascade_studio.commands.messages import Stop, say, speak_plainly
from cascade_studio.commands.workflow.api_prompt import convert

from .. import help_pages, locales
from ..env import REPOSITORY, current_setup
from ..server import Base, HostServer
from . import pictures
from .blueprints import blueprint
from .recipes import BLOCKS, RECIPES
from .write import workflow

WORKFLOWS, SUBGRAPHS = REPOSITORY / "workflows", REPOSITORY / "subgraphs"
PROMPTS = WORKFLOWS / "api"


def as_text(content: dict[str, Any]) -> str:
    """JSON as the repository keeps it."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def render_files(definitions: dict[str, Any]) -> dict[Path, dict[str, Any]]:
    """The content of every file that the recipes give."""
    found = {WORKFLOWS / f"{name}.json": workflow(recipe(), definitions) for name, recipe in RECIPES.items()}
    found.update({PROMPTS / path.name: convert(content, definitions).prompt for path, content in found.items()})
    for block in (recipe() for recipe in BLOCKS):
        found[SUBGRAPHS / f"{block.name}.json"] = blueprint(block, definitions)
    return found


def main() -> int:
    """Write what changed; returns the exit code."""
    base = Base()
    try:
        with HostServer(current_setup(), base, cpu=True) as server:
            definitions = server.client.get("/object_info")
            found = {**render_files(definitions), **locales.render_locales(definitions)}
    except Stop as stop:
        say(str(stop))
        return 1
    finally:
        base.close()
    write_changed({path: as_text(content) for path, content in found.items()})
    write_changed(help_pages.render_help())
    write_changed(pictures.of_files(list(RECIPES)))
    return 0


def write_changed(texts: dict[Path, str]) -> None:
    """Write the files whose content is another one, and say which."""
    changed = {
        path: text for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    }
    for path, text in changed.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    folders = Counter(path.relative_to(REPOSITORY).parts[:2] for path in changed)
    for folder, number in folders.items():
        say(f"Written: {number} in {'/'.join(folder)}" if number > 1 else f"Written: {'/'.join(folder)}")


if __name__ == "__main__":
    speak_plainly()
    sys.exit(main())
