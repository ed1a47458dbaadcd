"""Two ComfyUI servers with one empty models folder and one queue each: every byte comes once, both paint a picture."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from faulty_server import FaultyServer, File

from cascade_studio.commands.workflow.api_prompt import convert
from tools.client import PromptRun
from tools.demo import WORKFLOW
from tools.env import current_setup
from tools.server import Base, HostServer

FILES = {
    "prior": ("diffusion_models", "stage_c"),
    "decoder": ("diffusion_models", "stage_b"),
    "stage_a": ("vae", "stage_a"),
    "text_encoder": ("text_encoders", "clip_g"),
    "image_encoder": ("vae", "effnet_encoder"),
    "previewer": ("vae", "previewer"),
    "clip_vision": ("clip_vision", "clip_l_vision"),
}
KEPT = ("CASCADE_STUDIO_OFFLINE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "CASCADE_STUDIO_MIRRORS", "HF_HUB_CACHE")


@pytest.fixture
def shop(family_models, tmp_path, monkeypatch):
    """A server with the small family, and a user's catalogue that leads to it."""
    server, entries = FaultyServer(), []
    for role, (folder, name) in FILES.items():
        data = (family_models / folder / f"{name}.safetensors").read_bytes()
        server.files[role] = File(data)
        entries.append(
            {
                "key": f"small_{role}",
                "role": role,
                "name": f"small_{role}.safetensors",
                "folder": folder,
                "url": server.url(role),
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )
    preset = {"title": "The small family", "inputs": {role: f"small_{role}" for role in FILES}}
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"files": entries, "presets": {"small": preset}}), encoding="utf-8")
    monkeypatch.setenv("CASCADE_STUDIO_CATALOGUE", str(own))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in KEPT:
        monkeypatch.delenv(name, raising=False)
    yield server
    server.close()


def queue(server: HostServer, heard: list[dict[str, Any]]) -> PromptRun:
    """Run the bundled workflow with the preset; what the loader tells over the websocket goes to ``heard``."""
    converted = convert(json.loads(WORKFLOW.read_text(encoding="utf-8")), server.client.get("/object_info"))
    for name, node in converted.prompt.items():
        changes = {"steps": 1, "width": 128, "height": 128, "preset": "The small family"}
        for entry in changes.keys() & node["inputs"].keys():
            converted.set(name, entry, changes[entry])

    def listen(event: str, data: dict[str, Any], run: PromptRun) -> None:
        if event.startswith("cascade_studio."):
            heard.append({"event": event, **data})

    return server.client.run(converted.prompt, listen=listen)


@pytest.mark.soak
def test_two_servers_fetch_once_and_paint_twice(shop, tmp_path):
    models, bases = tmp_path / "shared", [Base(), Base()]
    for folder, _ in FILES.values():
        (models / folder).mkdir(parents=True, exist_ok=True)
    wanted = sum(len(file.data) for file in shop.files.values())
    shop.rate = wanted / 20
    try:
        servers = [HostServer(current_setup(), base, flags=base.add_models(models)) for base in bases]
        with servers[0] as first, servers[1] as second, ThreadPoolExecutor() as pool:
            heard: list[list[dict[str, Any]]] = [[], []]
            runs = list(pool.map(queue, (first, second), heard))
    finally:
        for base in bases:
            base.close()
    assert all(run.images() for run in runs)
    assert shop.sent == wanted and len(shop.requests) == len(FILES)
    assert sorted(path.name for path in models.rglob("*") if path.is_file()) == sorted(
        f"small_{role}.safetensors" for role in FILES
    )
    for told in heard:
        assert [message["state"] for message in told if message["event"] == "cascade_studio.plan"] == ["fetches"]
        assert told[-1]["finished"] and told[-1]["done"] == wanted
