"""ComfyUI servers that the batch starts itself, on this machine: found, started, started anew, ended."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..messages import Stop
from ..places import find_comfyui, find_free_port
from ..processes import end_group, own_group
from .address import Refused, Unreachable
from .server import Server, Stopped

READY_SECONDS = 300.0
KEPT_FILES = 64
"""Files that stay in a server's own output folder; what is older has been fetched long ago."""


@dataclass(frozen=True)
class Comfy:
    """How to start a ComfyUI: its folder, the Python that runs it, more flags."""

    root: Path
    python: str = sys.executable
    flags: tuple[str, ...] = ()

    @classmethod
    def find(cls, root: str | None = None, flags: Sequence[str] = ()) -> Comfy:
        """The one that was named, that of COMFYUI_PATH, or the one that this pack lies in."""
        folder = Path(root).expanduser().resolve() if root else find_comfyui(models=False)
        if folder is None or not (folder / "main.py").is_file():
            raise Stop(
                f"{'No ComfyUI is here' if folder is None else f'{folder} is no ComfyUI: it has no main.py'}. "
                "Name its folder with --comfyui, or running servers with --servers."
            )
        return cls(folder, os.environ.get("CASCADE_STUDIO_HOST_PYTHON") or sys.executable, tuple(flags))

    def count_devices(self) -> tuple[int, bool]:
        """How many NVIDIA or AMD cards torch sees, and whether it sees any accelerator."""
        code = (
            "import json, torch; n = torch.cuda.device_count(); x = getattr(torch, 'xpu', None); "
            "m = torch.backends.mps; x = bool(x and x.is_available()) or (m.is_built() and m.is_available()); "
            "print(json.dumps([n, bool(n or x)]))"
        )
        done = subprocess.run([self.python, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise Stop(f"torch does not start in {self.python}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        count, any_of_them = json.loads(done.stdout.strip().splitlines()[-1])
        return count, any_of_them


class LocalServer:
    """One ComfyUI process on a free loopback port. It ends when its starter does, however that ends."""

    def __init__(
        self, comfy: Comfy, flags: Sequence[str] = (), threads: int | None = None, home: Path | None = None
    ) -> None:
        self.comfy, self.flags, self.threads, self.home = comfy, tuple(flags), threads, home
        self.process: subprocess.Popen[bytes] | None = None
        self.server: Server | None = None
        self.folder: Path | None = None

    def start(self, stop: threading.Event | None = None) -> Server:
        """The running server, started anew where it has ended. Raises ``Stop`` with its last lines if it does not."""
        if self.server is not None and self.process is not None and self.process.poll() is None:
            return self.server
        self.stop()
        self.folder = Path(tempfile.mkdtemp(prefix="cascade-studio-batch-", dir=self.home))
        for name in ("output", "temp"):
            (self.folder / name).mkdir()
        port = find_free_port()
        guard = Path(__file__).resolve().parent.parent / "guard.py"
        command = [self.comfy.python, str(guard), "main.py", "--listen", "127.0.0.1", "--port", str(port)]
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [*command, *self._own_flags(), *self.comfy.flags, *self.flags],
                cwd=self.comfy.root,
                env=self._environment(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                **own_group(),
            )
        self.server = Server(f"http://127.0.0.1:{port}")
        self._wait(stop or threading.Event())
        return self.server

    def _own_flags(self) -> list[str]:
        options = self.comfy.root / "comfy" / "cli_args.py"
        known = options.read_text(encoding="utf-8") if options.is_file() else ""
        flags = ["--output-directory", str(self.folder / "output"), "--temp-directory", str(self.folder / "temp")]
        flags.append("--disable-auto-launch")
        return flags + (["--database-url", "sqlite:///:memory:"] if "--database-url" in known else [])

    def _environment(self) -> dict[str, str]:
        hidden = {"PYTHONPATH", "PYTHONSAFEPATH", "PYTHONHOME"}
        variables = {key: value for key, value in os.environ.items() if key not in hidden}
        if self.threads:
            variables.setdefault("OMP_NUM_THREADS", str(self.threads))
        return variables

    def _wait(self, stop: threading.Event) -> None:
        limit = time.monotonic() + READY_SECONDS
        while True:
            if stop.is_set():
                self.stop()
                raise Stopped
            if self.process.poll() is not None or time.monotonic() > limit:
                text, code = self.tail(), self.process.poll()
                self.stop()
                what = f"ended with code {code}" if code is not None else f"did not answer within {READY_SECONDS:.0f} s"
                raise Stop(f"ComfyUI in {self.comfy.root} {what}. Its last lines:\n{text}")
            try:
                self.server.ask("/system_stats")
                return
            except (Unreachable, Refused):
                stop.wait(0.2)

    def tail(self, lines: int = 15) -> str:
        """The last lines that the server wrote."""
        try:
            text = (self.folder / "log").read_text(encoding="utf-8", errors="replace")
        except (OSError, TypeError):
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def prune(self) -> None:
        """Remove the server's own copies of what was fetched, but for the last ones."""
        if self.folder is not None:
            files = [path for path in (self.folder / "output").rglob("*") if path.is_file()]
            for path in sorted(files, key=lambda path: path.stat().st_mtime)[:-KEPT_FILES]:
                path.unlink(missing_ok=True)

    def stop(self) -> None:
        """End the process and all that it started; remove its folder."""
        if self.process is not None:
            end_group(self.process)
            self.process.stdin.close()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.process = self.server = self.folder = None
