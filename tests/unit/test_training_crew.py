"""How processes that train together part, and what one of them says when another has gone."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from cascade_studio.stages.training import distributed
from cascade_studio.stages.training.distributed import LostProcess, Processes, explain_loss

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from studio import load_pack
load_pack()
import torch
from cascade_studio.stages.training.distributed import from_environment
crew, _ = from_environment("cpu")
try:
    assert float(crew.sum(torch.ones(1))) == 2
    if sys.argv[1] == "lost" and crew.rank == 1:
        os._exit(3)
    if sys.argv[1] == "late" and crew.rank == 0:
        time.sleep(1)
    while sys.argv[1] == "lost":
        crew.sum(torch.ones(4))
    crew.part()
finally:
    crew.close()
"""


class Pair(Processes):
    """One of two processes whose exchanges are numbers of this process, by way of ``store``."""

    def __init__(self, store: torch.distributed.Store, rank: int) -> None:
        self.store, self.rank, self.size, self.device = store, rank, 2, torch.device("cpu")

    def wait(self) -> None:
        """Arrive at once."""


def start_two(mode: str) -> list[tuple[int, str]]:
    """Exit status and errors of both processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    made = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, mode],
            env={"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    return [(process.wait(), said) for process in made for said in [process.communicate(timeout=300)[1]]]


@pytest.mark.slow
def test_a_process_that_is_lost_is_told_and_the_other_ends_by_itself():
    (status, said), (other, _) = start_two("lost")
    assert (status, other) == (1, 3) and "LostProcess: Another process of this run has ended too early" in said


@pytest.mark.slow
def test_both_end_well_when_one_is_late():
    assert [status for status, _ in start_two("late")] == [0, 0]


def test_nobody_leaves_before_all_are_done():
    """The one that is done first waits for the other's word, not for a time."""
    store, left = torch.distributed.HashStore(), []
    first = threading.Thread(target=lambda: (Pair(store, 0).part(), left.append(0)))
    first.start()
    first.join(0.2)
    assert first.is_alive() and not left
    Pair(store, 1).part()
    first.join(30)
    assert left == [0]


def test_the_wait_for_others_has_an_end(monkeypatch):
    monkeypatch.setattr(distributed, "GOODBYE", 0.05)
    Pair(torch.distributed.HashStore(), 0).part()

    class Gone(torch.distributed.HashStore):
        """A store whose process has left."""

        def add(self, key: str, amount: int) -> int:
            raise RuntimeError("Broken pipe")

    Pair(Gone(), 1).part()


def test_a_broken_connection_is_a_sentence():
    with pytest.raises(LostProcess, match=r"ended too early \(Connection closed by peer\)"), explain_loss():
        raise RuntimeError("Connection closed by peer\nGLHF")
    with pytest.raises(KeyError), explain_loss():
        raise KeyError("other errors stay")


def test_the_sentence_holds_nothing_of_the_group():
    """Variables of the failed exchange would keep the group, and its threads, until the interpreter ends."""
    held = []

    class Group:
        """Stands for a group of PyTorch's."""

        def __del__(self) -> None:
            held.append("freed")

    def exchange() -> None:
        group = Group()
        raise RuntimeError(f"Connection reset by {type(group).__name__}")

    try:
        with explain_loss():
            exchange()
    except LostProcess:
        assert held == ["freed"]
