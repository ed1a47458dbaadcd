#!/usr/bin/env python3
"""Paint one picture by ComfyUI's HTTP interface: python3 paint.py "a robot on a gray background" 7 out.png

It needs Python alone. The prompt is a file of workflows/api/. COMFYUI_URL is the server (http://127.0.0.1:8188).
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

SERVER = os.environ.get("COMFYUI_URL", "http://127.0.0.1:8188")
PROMPT = Path(__file__).resolve().parent.parent / "workflows" / "api" / "Stable Cascade - first picture.json"


def ask(path: str, data: object = None) -> bytes:
    """GET ``path``, or POST ``data`` as JSON."""
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(SERVER + path, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def paint(text: str, seed: int) -> bytes:
    """The PNG of ``text`` and ``seed``."""
    prompt = json.loads(PROMPT.read_text(encoding="utf-8"))
    for node in prompt.values():
        if node.get("_meta", {}).get("title") == "Prompt":
            node["inputs"]["text"] = text
        if "seed" in node["inputs"]:
            node["inputs"]["seed"] = seed
    # Without a client_id, older servers tell nothing of a picture that they have painted before.
    number = json.loads(ask("/prompt", {"client_id": "paint", "prompt": prompt}))["prompt_id"]
    while True:
        entry = json.loads(ask(f"/history/{number}")).get(number)
        if entry:
            break
        time.sleep(0.2)
    if entry["status"]["status_str"] != "success":
        sys.exit(f"ComfyUI could not paint it: {json.dumps(entry['status']['messages'][-1])}")
    (file,) = [file for output in entry["outputs"].values() for file in output.get("images", ())]
    return ask("/view?" + urllib.parse.urlencode(file))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    Path(sys.argv[3]).write_bytes(paint(sys.argv[1], int(sys.argv[2])))
