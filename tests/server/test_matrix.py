"""Everything that artists chain, on real servers: stopped, changed and run again, it gives what a fresh server
gives.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import LATENT, SAMPLE, matrix, write_files
from safetensors.torch import load_file

from tools.client import PromptRun
from tools.env import current_setup
from tools.server import Base, HostServer


def specs_of(server: HostServer) -> Any:
    info = server.client.get("/object_info")
    return lambda kind: info[kind]["input"]


def latent(server: HostServer, run: PromptRun) -> torch.Tensor:
    """What SaveLatent wrote."""
    (saved,) = run.outputs[LATENT]["latents"]
    return load_file(server.base.path / "output" / saved["subfolder"] / saved["filename"])["latent_tensor"]


def picture(server: HostServer, run: PromptRun) -> bytes:
    from PIL import Image

    (image,) = run.outputs["save picture"]["images"]
    with Image.open(server.base.path / "output" / image["subfolder"] / image["filename"]) as opened:
        return opened.tobytes()


@pytest.fixture(scope="module")
def fresh(server, family_models: Path) -> HostServer:
    """A second server, with the same files, that has done nothing before."""
    base = Base()
    try:
        shutil.copytree(family_models, base.models, dirs_exist_ok=True)
        write_files(base.models, base.path / "input")
        with HostServer(current_setup(), base, cpu=True) as running:
            yield running
    finally:
        base.close()


def test_stopped_changed_and_run_again(server, fresh):
    write_files(server.base.models, server.base.path / "input")
    specs, pressed = specs_of(server), []

    def listen(event: str, data: dict[str, Any], run: PromptRun) -> None:
        if event == "progress" and data.get("node") == SAMPLE and data["value"] >= 2 and not pressed:
            pressed.append(data["value"])
            server.client.interrupt()

    stopped = server.run(matrix(specs, steps=1000), listen=listen, check=False)
    assert stopped.status == "interrupted" and pressed and stopped.progress[SAMPLE][-1][0] < 900
    changed = matrix(specs)
    again, anew = server.run(changed), fresh.client.run(changed)
    kept = {"load", "our LoRA", "stacked LoRA", "core's LoRA", "region", "our net", "core's net"}
    assert kept <= set(again.cached) and not anew.cached and SAMPLE not in again.cached
    assert torch.equal(latent(server, again), latent(fresh, anew)), "bit for bit"
    assert picture(server, again) == picture(fresh, anew)
    assert len(again.images()) >= 1
