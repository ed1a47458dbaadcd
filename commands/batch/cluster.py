"""Workers on a Ray cluster: one actor a card, which keeps its ComfyUI and models warm and speaks to it on loopback.

Every machine of the cluster has a ComfyUI and this pack, at the driver's path or where ``COMFYUI_PATH`` leads. Pictures
come back through Ray; nothing of a machine but Ray's own ports is open.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from ..messages import Stop
from ..places import PACK
from .address import Refused, Unreachable
from .local import Comfy, LocalServer
from .results import PaintedFile
from .server import Job, Lost, NotPainted, Painted, Server, Stopped
from .workers import MOST_STARTS, Painter

LOOK_SECONDS, WAIT_SECONDS, START_SECONDS, ALIVE_SECONDS = 5.0, 0.5, 600.0, 10.0
SLOTS = 2
PAINTED, FAILED, LOST, STOP = "painted", "failed", "lost", "stop"


class RemotePainter:
    """Lives in the actor: the ComfyUI of one card. It answers in plain values, whatever went wrong."""

    def __init__(self, root: str | None, flags: tuple[str, ...]) -> None:
        comfy = Comfy.find(root if root and os.path.isdir(root) and not os.environ.get("COMFYUI_PATH") else None, flags)
        accelerated = "--cpu" in flags or comfy.count_devices()[1]
        self.local = LocalServer(comfy, () if accelerated else ("--cpu",))
        self.server: Server | None = None
        self.stops: dict[str, threading.Event] = {}

    def start(self) -> tuple[str, Any]:
        """Start ComfyUI where it does not run; answers with the bytes of the card's memory."""
        try:
            self.server = self.local.start()
            return PAINTED, self.server.memory()
        except Stop as end:
            return STOP, str(end)
        except (Unreachable, Refused) as silence:
            return LOST, str(silence)

    def describe_nodes(self) -> dict[str, Any]:
        """The definitions of all nodes."""
        return self.server.describe_nodes()

    def lacks(self, classes: list[str]) -> list[str]:
        """Those of ``classes`` that are no node."""
        return self.server.lacks(classes)

    def paint(self, job: Job) -> tuple[str, Any]:
        """The files of one row and the seconds, or what went wrong."""
        try:
            done = self.server.paint(job, self.stops.setdefault(job.prompt_id, threading.Event()))
        except NotPainted as failure:
            return FAILED, str(failure)
        except (Lost, Unreachable) as loss:
            return LOST, str(loss)
        except Stopped:
            return LOST, "it was stopped"
        finally:
            self.stops.pop(job.prompt_id, None)
        self.local.prune()
        return PAINTED, ([(picture.name, picture.data) for picture in done.pictures], done.seconds)

    def cancel(self, prompt_id: str) -> None:
        """Stop a prompt."""
        if prompt_id in self.stops:
            self.stops[prompt_id].set()


def make_actor(ray: Any) -> Any:
    """The actor class. It is made here, not at the top, so that Ray sends its code instead of a name to import."""

    class ComfyActor:
        def __init__(self, pack: str, root: str | None, flags: tuple[str, ...]) -> None:
            sys.path.insert(0, os.environ.get("CASCADE_STUDIO_PACK", pack))
            __import__("studio").load_pack()
            from cascade_studio.commands.batch.cluster import RemotePainter

            self.painter = RemotePainter(root, flags)

        def call(self, name: str, *values: Any) -> Any:
            return getattr(self.painter, name)(*values)

    return ray.remote(ComfyActor)


class RayPainter:
    """The driver's side of one actor."""

    slots = SLOTS

    def __init__(self, ray: Any, actor: Any, comfy: Comfy, node: str, name: str, cards: int) -> None:
        self.ray, self.make, self.comfy, self.node, self.name, self.cards = ray, actor, comfy, node, name, cards
        self.actor: Any = None
        self.room: int | None = None
        self.starts, self.ready = 0, False

    def connect(self, stop: threading.Event) -> None:
        """Have the actor and its ComfyUI running; see :class:`.workers.Painter`."""
        if self.ready:
            return
        if self.actor is None:
            place = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(self.node, soft=False)
            share = {"num_gpus": 1, "num_cpus": 0} if self.cards else {"num_gpus": 0, "num_cpus": 1}
            options = self.make.options(**share, max_concurrency=2 * SLOTS, scheduling_strategy=place)
            self.actor = options.remote(str(PACK), str(self.comfy.root), self.comfy.flags)
        self.starts += 1
        if self.starts > MOST_STARTS:
            raise Stop(f"its ComfyUI ended {MOST_STARTS} times without a picture.")
        kind, answer = self._call(stop, START_SECONDS, "start")
        if kind == STOP:
            raise Stop(answer)
        if kind == LOST:
            raise Unreachable(answer)
        self.room, self.ready = answer, True

    def _call(self, stop: threading.Event, seconds: float, name: str, *values: Any, alive: Any = None) -> Any:
        """Ask the actor and wait. Raises :class:`Lost` where it has ended or does not answer in time."""
        errors, actor = self.ray.exceptions, self.actor
        if actor is None:
            raise Unreachable("its actor has ended")
        try:
            reference = actor.call.remote(name, *values)
            limit = time.monotonic() + seconds
            told = time.monotonic()
            while not self.ray.wait([reference], timeout=WAIT_SECONDS)[0]:
                if stop.is_set():
                    raise Stopped
                if time.monotonic() > limit:
                    raise Unreachable(f"it did not answer within {seconds:.0f} s; its card may be taken")
                if alive and time.monotonic() - told > ALIVE_SECONDS:
                    told = time.monotonic()
                    alive()
            return self.ray.get(reference)
        except (errors.RayActorError, errors.RayTaskError, errors.ActorUnschedulableError) as loss:
            self.actor, self.ready = None, False
            raise Unreachable(str(loss).strip().splitlines()[-1][:300]) from None

    def describe_nodes(self) -> dict[str, Any]:
        return self._call(threading.Event(), START_SECONDS, "describe_nodes")

    def lacks(self, classes: Iterable[str]) -> list[str]:
        return self._call(threading.Event(), START_SECONDS, "lacks", list(classes))

    def memory(self) -> int | None:
        return self.room

    def paint(self, job: Job, stop: threading.Event, alive: Callable[[], None]) -> Painted:
        try:
            kind, answer = self._call(stop, float("inf"), "paint", job, alive=alive)
        except Unreachable as loss:
            raise Lost(str(loss)) from None
        except Stopped:
            if self.actor is not None:
                self.actor.call.remote("cancel", job.prompt_id)
            raise
        if kind == FAILED:
            raise NotPainted(answer)
        if kind == LOST:
            self.ready = False
            raise Lost(answer)
        self.starts = 0
        files, seconds = answer
        return Painted([PaintedFile(*file) for file in files], seconds)

    def excuse(self) -> None:
        self.starts = max(0, self.starts - 1)

    def close(self) -> None:
        if self.actor is not None:
            self.ray.kill(self.actor)
            self.actor = None


class RayPool:
    """An actor for every card of the cluster, and where there is no card for ``count`` of each machine's processors.

    ``address``: of the cluster; ``auto`` finds the one that this machine belongs to, ``local`` starts one here.
    """

    def __init__(self, address: str, comfy: Comfy, count: int | None = None) -> None:
        try:
            import ray
            import ray.util.scheduling_strategies
        except ImportError:
            raise Stop(
                f"--ray needs Ray: {sys.executable} -m pip install ray, on every machine of the cluster. Without it, "
                "--servers takes ComfyUI servers that are running."
            ) from None
        self.ray, self.comfy, self.count = ray, comfy, count or 1
        try:
            options = {"include_dashboard": False} if address == "local" else {"address": address}
            ray.init(**options, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise Stop(
                f"No Ray cluster answers at '{address}' ({str(error).splitlines()[0]}). Start one with "
                "'ray start --head' and join it from the other machines with 'ray start --address HOST:6379'."
            ) from None
        self.actor = make_actor(ray)
        self._painters: dict[str, RayPainter] = {}
        self._looked = 0.0

    def refresh(self) -> Iterable[Painter]:
        if time.monotonic() - self._looked > LOOK_SECONDS or not self._painters:
            self._looked = time.monotonic()
            self._look()
        return list(self._painters.values())

    def _look(self) -> None:
        nodes = [node for node in self.ray.nodes() if node["Alive"]]
        with_cards = any(node["Resources"].get("GPU") for node in nodes)
        found = {}
        for node in nodes:
            cards = int(node["Resources"].get("GPU", 0))
            for number in range(cards if with_cards else self.count):
                name = (
                    f"{node['NodeManagerAddress']} {node['NodeID'][:6]} {'card' if with_cards else 'worker'} {number}"
                )
                found[name] = self._painters.get(name) or RayPainter(
                    self.ray, self.actor, self.comfy, node["NodeID"], name, cards
                )
        self._painters = found

    def close(self) -> None:
        for painter in self._painters.values():
            painter.close()
        self.ray.shutdown()
