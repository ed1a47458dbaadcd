"""A real ComfyUI server with the pack linked in: base folder, start, readiness, log, stop."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from cascade_studio.commands.messages import Stop
from cascade_studio.commands.places import find_free_port
from cascade_studio.commands.processes import end_group, own_group

from .client import Client, NoAnswer
from .env import REPOSITORY, Setup
from .links import identify_link, link_pack, unlink_pack

PACK = "cascade-studio"
FAILURES = ("IMPORT FAILED", "Cannot import", "Error while calling comfy_entrypoint")
READY_SECONDS = 300.0
MODEL_FOLDERS = (
    "checkpoints",
    "diffusion_models",
    "unet",
    "text_encoders",
    "clip",
    "clip_vision",
    "vae",
    "vae_approx",
    "controlnet",
    "loras",
    "embeddings",
)


class Base:
    """A ComfyUI base folder (models, custom_nodes, input, output, user, temp) with the pack linked in."""

    def __init__(self, folder: Path | None = None, pack: Path = REPOSITORY) -> None:
        self.temporary = folder is None
        self.path = Path(tempfile.mkdtemp(prefix="cascade-studio-")) if folder is None else folder.resolve()
        for name in ("models", "custom_nodes", "input", "output", "user", "temp"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        self.link = self.path / "custom_nodes" / PACK
        unlink_pack(self.link)
        link_pack(self.link.parent, pack, PACK)
        self.made = identify_link(self.link)

    @property
    def models(self) -> Path:
        """The models folder of this base."""
        return self.path / "models"

    def add_models(self, folder: Path) -> list[str]:
        """The flags that make ComfyUI look into another models folder first."""
        if not folder.is_dir():
            raise Stop(
                f"--model {folder} is not a folder. Give a ComfyUI models folder (with diffusion_models, "
                "text_encoders, vae ... inside)."
            )
        paths = {name: name for name in MODEL_FOLDERS if (folder / name).is_dir()}
        if not paths:
            raise Stop(
                f"--model {folder} holds none of ComfyUI's model folders ({', '.join(MODEL_FOLDERS[:7])} ...). "
                "Give the folder that contains them."
            )
        file = self.path / "models.yaml"
        entry = {"base_path": str(folder.resolve()), "is_default": True, **paths}
        file.write_text(json.dumps({"cascade_studio": entry}), encoding="utf-8")
        return ["--extra-model-paths-config", str(file)]

    def close(self) -> None:
        # A host that is started again at once has put its own link there before this one has ended.
        """Take the pack's link away, and the folder if it was a temporary one."""
        if identify_link(self.link) == self.made:
            unlink_pack(self.link)
        if self.temporary:
            shutil.rmtree(self.path, ignore_errors=True)


def has_accelerator(setup: Setup) -> bool:
    """Whether torch in this setup finds a GPU."""
    code = (
        "import torch; b = torch.backends.mps; "
        "print('yes' if torch.cuda.is_available() or (b.is_built() and b.is_available()) else 'no')"
    )
    result = subprocess.run(
        setup.command("-c", code),
        env=setup.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if result.returncode:
        raise Stop(
            f"torch does not start in {setup.python}: {(result.stderr.strip().splitlines() or ['?'])[-1]} "
            "Install ComfyUI's requirements there, or unset COMFYUI_PATH."
        )
    return result.stdout.strip().endswith("yes")


def host_flags(setup: Setup, base: Base, cpu: bool) -> list[str]:
    """The flags every server of ours is started with, as far as this host knows them."""
    flags = ["--base-directory", str(base.path), "--use-pytorch-cross-attention", "--disable-auto-launch"]
    flags += ["--cpu"] if cpu else []
    options = (setup.host.root / "comfy" / "cli_args.py").read_text(encoding="utf-8")
    if "--disable-api-nodes" in options:
        flags.append("--disable-api-nodes")
    if "--database-url" in options:
        flags += ["--database-url", "sqlite:///:memory:"]
    return flags


class HostServer:
    """ComfyUI in its own process on a free loopback port. Use it in a ``with`` block, which stops it in the end."""

    def __init__(self, setup: Setup, base: Base, *, cpu: bool = True, flags: Sequence[str] = ()) -> None:
        self.setup, self.base = setup, base
        self.flags = [*host_flags(setup, base, cpu), *flags]
        self.log_file = base.path / "server.log"
        self.process: subprocess.Popen | None = None
        self.client: Client | None = None

    @property
    def log(self) -> str:
        """All that the server has written so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.is_file() else ""

    def tail(self, lines: int = 25) -> str:
        """The last ``lines`` of the log."""
        return "\n".join(self.log.splitlines()[-lines:])

    def start(self) -> HostServer:
        """Start, wait until it answers, and check that the pack is loaded with its nodes."""
        for attempt in range(3):
            port = find_free_port()
            self._spawn(port)
            try:
                self._wait(port)
                self.check_pack()
                return self
            except Stop:
                taken = re.search(r"address already in use|Errno 98|Errno 48|WinError 10048", self.log, re.IGNORECASE)
                self.stop()
                if not taken or attempt == 2:
                    raise
            except BaseException:
                self.stop()
                raise
        raise AssertionError("unreachable")

    def _spawn(self, port: int) -> None:
        guard = str(REPOSITORY / "commands" / "guard.py")
        command = [
            str(self.setup.host_python),
            guard,
            "main.py",
            "--listen",
            "127.0.0.1",
            "--port",
            str(port),
            *self.flags,
        ]
        with open(self.log_file, "wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.setup.host.root,
                env=self.setup.environment(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                **own_group(),
            )

    def _wait(self, port: int) -> None:
        self.client = Client(f"http://127.0.0.1:{port}")
        limit = time.monotonic() + READY_SECONDS
        while True:
            if self.process.poll() is not None:
                raise Stop(
                    f"ComfyUI {self.setup.host.version} ended with code {self.process.returncode} before it "
                    f"was ready. Its last lines:\n{self.tail()}"
                )
            try:
                self.client.get("/system_stats")
                return
            except NoAnswer:
                if time.monotonic() > limit:
                    raise Stop(
                        f"ComfyUI {self.setup.host.version} did not answer within {READY_SECONDS:.0f} s. "
                        f"Its last lines:\n{self.tail()}"
                    ) from None
                time.sleep(0.25)

    def check_pack(self) -> None:
        """Raise ``Stop`` unless the pack was imported and its nodes are registered."""
        log = self.log
        ours = re.compile(rf"custom_nodes[\\/]{re.escape(PACK)}")
        bad = [line for line in log.splitlines() if ours.search(line) and any(sign in line for sign in FAILURES)]
        if bad:
            start = log.find("Traceback")
            detail = "\n" + log[start : start + 4000] if start >= 0 else ""
            raise Stop(f"ComfyUI {self.setup.host.version} could not load the pack: {bad[0].strip()}{detail}")
        if not self.pack_nodes():
            raise Stop(f"ComfyUI {self.setup.host.version} loaded no node of the pack. Its last lines:\n{self.tail()}")

    def pack_nodes(self) -> set[str]:
        """The ids of the pack's nodes that the server offers."""
        info = self.client.get("/object_info")
        return {name for name, node in info.items() if node.get("python_module") == f"custom_nodes.{PACK}"}

    def stop(self) -> None:
        """End the server and everything that it started."""
        if self.process is not None:
            end_group(self.process, patience=10.0)
            self.process.stdin.close()
            self.process = None

    def __enter__(self) -> HostServer:
        return self.start()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
