"""`kill -9` at any moment, and several processes at once: the file is absent or exact, and nothing is fetched twice."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from downloads import Place, safetensors
from faulty_server import Fault

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="killing needs processes as POSIX has them")

ALLOWED = 1.05
SETTINGS = {"connections": 1, "backoff": 0.05, "stall": 5.0, "spare": 0, "parallel_from": 1, "piece": 512 << 10}
NORMAL, SOAK = 10, 200


class Nursery:
    """Starts processes that fetch, out of one that has imported everything."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def _ask(self, command: dict) -> dict:
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, place: Place, **settings) -> int:
        names = ("key", "role", "name", "folder", "url", "bytes", "sha256")
        job = {
            "entry": {name: getattr(place.entry, name) for name in names},
            "models": str(place.models),
            "settings": {**SETTINGS, **settings},
        }
        return self._ask({"start": job})["pid"]

    def wait(self, pid: int) -> int:
        """Its exit code; negative for the signal that ended it."""
        return os.waitstatus_to_exitcode(self._ask({"wait": pid})["status"])

    def kill(self, pid: int) -> int:
        os.kill(pid, signal.SIGKILL)
        return self.wait(pid)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.process.kill()
    made.process.wait()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def killed_and_completed(place: Place, nursery: Nursery, chance: random.Random, number: int) -> None:
    """One download that is killed at a random moment, and one more that completes it."""
    connections = chance.choice((1, 2))
    size = (16 << 20) * connections
    place.serve(safetensors(size, seed=number))
    place.models = place.models.with_name(f"models-{number}")
    place.server.forget()
    place.server.rate = size / connections
    moment = chance.uniform(0, 1.3)
    pid = nursery.start(place, connections=connections)
    wait_for(lambda: place.server.requests)
    time.sleep(moment)
    ended = nursery.kill(pid)
    assert ended in (0, -signal.SIGKILL)
    assert not place.target.exists() or place.target.read_bytes() == place.data
    place.server.rate = None
    place.fetch(connections=connections, parallel_from=1)
    place.assert_exact()
    assert place.server.sent <= ALLOWED * size, f"killed after {moment:.3f} s with {connections} connections"


@pytest.mark.parametrize("seed", range(NORMAL))
def test_a_kill_at_a_random_moment(place, nursery, seed):
    killed_and_completed(place, nursery, random.Random(seed), seed)


@pytest.mark.soak
def test_kills_at_many_random_moments(place, nursery):
    chance = random.Random()
    for number in range(SOAK):
        killed_and_completed(place, nursery, chance, number)
        place.target.unlink()


def test_killed_again_and_again_it_gets_there(place, nursery):
    size, kills = 16 << 20, 4
    place.serve(safetensors(size))
    place.server.rate = 16e6
    for number in range(kills):
        pid = nursery.start(place)
        wait_for(lambda wanted=(number + 1) * (3 << 20): place.server.sent >= wanted)
        assert nursery.kill(pid) == -signal.SIGKILL
    assert place.plan().missing[0].here >= kills * ((3 << 20) - 0.05 * size)
    place.server.rate = None
    place.fetch()
    place.assert_exact()
    assert place.server.sent <= (1 + 0.05 * kills) * size


def test_two_processes_fetch_a_file_once(place, nursery):
    place.serve(safetensors(2 << 20))
    place.server.rate = 4e6
    pids = [nursery.start(place), nursery.start(place)]
    assert [nursery.wait(pid) for pid in pids] == [0, 0]
    place.assert_exact()
    assert place.server.sent == len(place.data)


def test_who_waits_takes_over_when_the_other_is_killed(place, nursery):
    place.serve(safetensors(16 << 20))
    place.server.rate = 16e6
    first = nursery.start(place)
    wait_for(lambda: place.server.requests)
    second = nursery.start(place)
    wait_for(lambda: place.server.sent >= 6 << 20)
    assert nursery.kill(first) == -signal.SIGKILL
    assert nursery.wait(second) == 0
    place.assert_exact()
    assert place.server.sent <= ALLOWED * len(place.data)


@pytest.mark.soak
def test_a_gibibyte(place, nursery):
    """Cut twice and killed once; hashed while it comes."""
    size = 1 << 30
    place.serve(safetensors(size))
    place.server.script = lambda number, request: Fault(cut=5 << 20) if number in (3, 12) else None
    pid = nursery.start(place, connections=4, piece=16 << 20)
    wait_for(lambda: len(place.server.requests) >= 8)
    nursery.kill(pid)
    place.fetch(connections=4, parallel_from=1, stall=10.0)
    with place.target.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == place.entry.sha256
    assert place.server.sent <= ALLOWED * size
