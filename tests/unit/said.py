"""Texts of the server as the page says them: web/js/templates.js, run by Node.js."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from harness import REPOSITORY


def say(texts: list[str], table: dict[str, dict[str, str]]) -> list[str]:
    """The texts as the page says them."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not here, and the page's side is JavaScript.")
    module = (REPOSITORY / "web" / "js" / "templates.js").as_uri()
    code = (
        f"import {{ makeTranslator }} from {json.dumps(module)}; let text = ''; process.stdin.on('data', (part) => "
        "text += part).on('end', () => { const [texts, table] = JSON.parse(text); "
        "process.stdout.write(JSON.stringify(texts.map(makeTranslator(table)))); });"
    )
    command = [node, "--input-type=module", "-e", code]
    done = subprocess.run(command, input=json.dumps([texts, table]), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
