"""A batch on real ComfyUI servers with Cascade Mini: the same bytes from three servers, through kills, as from one."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
from batches import Desk, await_that, start_driver
from harness import REPOSITORY
from PIL import Image

from cascade_studio.commands.batch import command
from cascade_studio.commands.batch.manifest import DONE
from cascade_studio.commands.messages import Stop
from mini import need
from tools.env import current_setup
from tools.png import text_chunks
from tools.server import Base, HostServer

WORKFLOW = REPOSITORY / "workflows" / "Stable Cascade - first picture.json"
PROMPTS = ("red apple on a blue background", "a robot on a gray background", "a frog on a purple background")
STAGE_C = "Sample Stage C (KSampler)"
FIRST_SECONDS = 240.0
"""How long a first picture may take on a busy machine."""


@pytest.fixture
def desk(tmp_path):
    need()
    made = Desk(tmp_path)
    made.workflow = WORKFLOW
    yield made
    made.close()


class Crew:
    """Three servers and the list of their addresses, which follows when one is started anew on another port."""

    def __init__(self, folder: Path, count: int = 3) -> None:
        self.listed = folder / "servers.txt"
        self.bases = [Base() for _ in range(count)]
        self.servers = [HostServer(current_setup(), base, cpu=True).start() for base in self.bases]
        self.starting: dict[int, threading.Thread] = {}
        self.tell()

    def tell(self) -> None:
        part = self.listed.with_suffix(".part")
        part.write_text("\n".join(server.client.url for server in self.servers), encoding="utf-8")
        part.replace(self.listed)

    def kill(self, chance: random.Random) -> None:
        """End a server as a power cut would; it starts again while the batch goes on. One of them always stays."""
        while len(running := [number for number in range(len(self.servers)) if not self._is_starting(number)]) < 2:
            time.sleep(0.1)
        number = chance.choice(running)
        if self.servers[number].process.poll() is None:  # else its number may be another program's by now
            os.killpg(self.servers[number].process.pid, signal.SIGKILL)
        self.starting[number] = threading.Thread(target=self._start_again, args=(self.servers[number],))
        self.starting[number].start()

    def _is_starting(self, number: int) -> bool:
        return number in self.starting and self.starting[number].is_alive()

    def _start_again(self, server: HostServer) -> None:
        server.stop()
        try:
            server.start()
        except Stop:  # a start that starved on a busy machine is not what is tested
            server.start()
        self.tell()

    def settle(self) -> None:
        """Wait until every server that was killed is there again."""
        for thread in self.starting.values():
            thread.join()

    def close(self) -> None:
        self.settle()
        for server in self.servers:
            server.stop()
        for base in self.bases:
            base.close()


@pytest.fixture(scope="module")
def crew(tmp_path_factory):
    need()
    made = Crew(tmp_path_factory.mktemp("crew"))
    yield made
    made.close()


def paint_through_kills(desk: Desk, crew: Crew, rows: Path, out: str, pictures: int, kills: int, seed: int) -> int:
    """Run the command until it is done; the driver, a server, or both at once are ended at random moments of the run.

    Returns how many moments there were: less than ``kills`` where the pictures were all painted before.
    """
    moments = 0
    chance = random.Random(seed)
    arguments: tuple[Any, ...] = (rows, "--out", desk.folder / out, "--workflow", WORKFLOW, "--sheet", 0)
    arguments = (*arguments, "--count", pictures // len(PROMPTS), "--servers", f"@{crew.listed}")
    driver = start_driver(desk.folder / f"{out}.log", *arguments)
    try:
        for written in sorted(chance.sample(range(pictures - 4), kills)):
            await_that(lambda least=written: len(desk.pictures(out)) >= least, FIRST_SECONDS)
            time.sleep(chance.uniform(0.0, 1.0))
            if driver.process.poll() is not None:
                break
            moments += 1
            kind = ("driver", "server", "both")[moments % 3]
            if kind != "driver":
                crew.kill(chance)
            if kind != "server":
                driver.kill()
                driver = start_driver(desk.folder / f"{out}.log", *arguments)
        assert driver.wait(20 * FIRST_SECONDS) == 0, driver.text[-3000:]
    finally:
        driver.kill()
    return moments


def check_same(desk: Desk, out: str, count: int) -> None:
    pictures = desk.pictures(out)
    assert len(pictures) == count and pictures == desk.pictures("one")
    assert command.main(["-", "--out", str(desk.folder / out), "--check"]) == 0


def test_three_servers_and_a_driver_that_are_killed_paint_the_bytes_of_one(server, crew, desk):
    rows = desk.rows("\n".join(PROMPTS))
    assert desk.run(rows, "one", servers=server.client.url, count=3).complete
    assert paint_through_kills(desk, crew, rows, "three", 9, kills=3, seed=19) == 3
    check_same(desk, "three", 9)
    for data in desk.pictures("three").values():
        texts = text_chunks(data)
        card = json.loads(texts["cascade_studio"])
        assert [stage["stage"] for stage in card["stages"]] == ["Stage C", "Stage B", "Stage A"] and card["models"]
        assert {"prompt", "workflow"} <= set(texts)
        prompt = json.loads(texts["prompt"]).values()
        (painted,) = [node["inputs"]["text"] for node in prompt if node["_meta"]["title"] == "Prompt"]
        shown = [value for node in json.loads(texts["workflow"])["nodes"] for value in node.get("widgets_values") or []]
        assert painted in shown, "the picture's workflow opens with the words of the picture"


@pytest.fixture(scope="module")
def sixty(server, tmp_path_factory):
    """Sixty pictures of one server that nobody disturbed."""
    made = Desk(tmp_path_factory.mktemp("sixty"))
    made.workflow = WORKFLOW
    assert made.run(made.rows("\n".join(PROMPTS)), "one", servers=server.client.url, count=20).complete
    yield made
    made.close()


@pytest.mark.soak
def test_sixty_pictures_through_a_hundred_kills(crew, sixty):
    """Sixty pictures again and again, until a hundred moments at which something was killed have come together."""
    moments, turn = 0, 0
    while moments < 100:
        rows, turn = sixty.folder / "rows.txt", turn + 1
        moments += paint_through_kills(sixty, crew, rows, f"run{turn}", 60, min(40, 100 - moments), seed=turn)
        sys.stderr.write(f"run {turn}: {moments} moments so far\n")
        check_same(sixty, f"run{turn}", 60)


def pixels(data: bytes) -> numpy.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return numpy.asarray(picture.convert("RGB"))


def test_drafts_finished_elsewhere_are_the_pictures_painted_in_one_go(server, desk):
    """At a size that is no multiple of the grid, so that the size has to come from the canvas."""
    rows = desk.rows(
        json.dumps({"prompt": PROMPTS[0], "seed": 4, "width": 200, "height": 248, "name": "apple"}), "r.jsonl"
    )
    url = server.client.url
    assert desk.run(rows, "whole", servers=url).complete
    assert desk.run(rows, "drafts", servers=url, stages="c").complete
    assert set(desk.pictures("drafts")) == {"apple.latent", "apple.png"}
    assert len(desk.pictures("drafts")["apple.latent"]) < 100_000
    assert desk.run(desk.folder / "drafts", "finals", servers=url, stages="ba", workflow=None).complete
    whole, final = (desk.pictures(out)["apple.png"] for out in ("whole", "finals"))
    assert pixels(whole).shape == (248, 200, 3) and numpy.array_equal(pixels(whole), pixels(final))
    assert b"LoadLatent" in final and "cascade_studio" in text_chunks(final)


def test_a_batch_has_the_pixels_of_its_seeds_painted_singly(server, desk):
    """On a processor, with one thread; other devices may choose other kernels for a batch."""
    rows, url = desk.rows(PROMPTS[2]), server.client.url
    assert desk.run(rows, "singly", servers=url, count=2).complete
    assert desk.run(rows, "batched", servers=url, count=2, batched=True).complete
    one, other = desk.pictures("singly"), desk.pictures("batched")
    assert len(one) == len(other) == 2 and sum(name.endswith("@2.png") for name in other) == 1
    for singly, batched in zip(sorted(one), sorted(other, key=len), strict=True):
        assert numpy.array_equal(pixels(one[singly]), pixels(other[batched]))


def test_a_server_that_refuses_a_value_sets_the_row_aside_with_its_words(server, desk):
    lines = [{"prompt": "a"}, {"prompt": "b", f"{STAGE_C}.steps": 0}, {"prompt": "c", f"{STAGE_C}.sampler": "none"}]
    outcome = desk.run(desk.rows("\n".join(map(json.dumps, lines)), "r.jsonl"), servers=server.client.url)
    assert outcome.counts[DONE] == 1 and outcome.counts["set aside"] == 2
    manifest = desk.manifest()
    told = dict(manifest.read("SELECT line, error FROM rows WHERE error IS NOT NULL"))
    manifest.close()
    assert "steps" in told[2] and "sampler" in told[3]


# Examples


def run_example(server: Any, *arguments: str) -> None:
    environment = {**os.environ, "COMFYUI_URL": server.client.url}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=FIRST_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_examples_paint_what_the_batch_paints(server, desk, tmp_path):
    examples = REPOSITORY / "scripts"
    run_example(server, sys.executable, str(examples / "paint.py"), PROMPTS[1], "7", str(tmp_path / "python.png"))
    for tool in ("curl", "jq"):
        assert shutil.which(tool), f"{tool} is needed: .ci/run installs it"
    run_example(server, "bash", str(examples / "paint.sh"), PROMPTS[1], "7", str(tmp_path / "curl.png"))
    run_example(server, sys.executable, str(examples / "batch.py"), str(tmp_path / "batch"), server.client.url)
    one, other = (pixels((tmp_path / name).read_bytes()) for name in ("python.png", "curl.png"))
    assert one.shape == (256, 256, 3) and one.std() > 5 and numpy.array_equal(one, other)
    assert len(list((tmp_path / "batch").glob("*.png"))) == 6
