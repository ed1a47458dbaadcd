"""What loading a model file holds in memory at most, and how much it reads: our loaders beside the host's own.

    python3 dev.py run tests/benchmarks/measure_loading.py [--files NAME ...] [--formats NAME ...]

Files in the published format, of random numbers, are written once into a temporary folder, and thrown away in the end
(2 GB of disk at a time). Each load runs in a process of its own on a processor, up to where the model could
compute, with nothing of the file in the system's cache. Told are, above what the process held before: the peak of all
resident memory (which counts pages of the mapped file, that the system takes back when it needs them), the peak of
memory that is no file's (which it cannot), what stays of each, and what was read: from disk, and by calls that copy.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.append(str(TESTS))

import torch  # noqa: E402
from own_memory import read_status, reset_peak  # noqa: E402

MIB = 2**20
FILES = ("stage_c", "stage_b", "text_encoder")
FORMATS = ("auto", "bf16", "fp8_e4m3fn")
LOADERS = ("ours", "host")
Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(name: str) -> Shapes:
    """The published file ``name`` of the lite models: keys and shapes."""
    from cascade_studio.stages.files.clip import TextConfig, tower_shapes
    from cascade_studio.stages.files.kinds import KINDS

    if name == "text_encoder":
        return tower_shapes(TextConfig())
    return shapes_of_net(name, KINDS[name].published[{"stage_c": "1B", "stage_b": "700M"}[name]])


def shapes_of_net(kind: str, config: Any) -> Shapes:
    """Official keys and shapes of a network of ``kind`` with ``config``."""
    from cascade_studio.stages.files.convert import to_official
    from cascade_studio.stages.files.header import MARKER
    from cascade_studio.stages.files.kinds import KINDS

    tensors = KINDS[kind].module(config, dtype=torch.bfloat16, device="meta").state_dict()
    return {key: tuple(tensor.shape) for key, tensor in to_official(tensors).items() if not key.endswith(MARKER)}


def write_noise(path: Path, shapes: Shapes, dtype: torch.dtype = torch.bfloat16) -> int:
    """A safetensors file of ``shapes`` full of small random numbers, written piece by piece; returns its bytes."""
    names = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
    header, position = {}, 0
    for key, shape in shapes.items():
        end = position + torch.Size(shape).numel() * dtype.itemsize
        header[key] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    noise = (0.02 * torch.randn(2**20 + 7, generator=torch.Generator().manual_seed(1))).to(dtype)
    piece = noise.view(torch.uint8).numpy().tobytes()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, position, len(piece)):
            file.write(piece[: position - start])
        file.flush()
        os.fsync(file.fileno())
    return path.stat().st_size


def forget(path: Path) -> None:
    """Take the pages of ``path`` out of the system's cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_counters() -> dict[str, int]:
    """What this process read so far: ``read_bytes`` from disk, ``rchar`` by calls that copy."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


@contextmanager
def watching(found: dict[str, int]) -> Iterator[None]:
    """Fill ``found`` with the peaks above now, what stays, and what was read, of what is done inside."""
    reset_peak()
    start, counters, highest, done = read_status(), read_counters(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            highest[0] = max(highest[0], read_status()["RssAnon"])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield
    done.set()
    thread.join()
    end, read = read_status(), read_counters()
    found["peak"] = max(end["VmHWM"], end["VmRSS"]) - start["VmRSS"]
    found["own_peak"] = max(highest[0], end["RssAnon"]) - start["RssAnon"]
    found["own"] = end["RssAnon"] - start["RssAnon"]
    found["mapped"] = end["RssFile"] - start["RssFile"]
    found["disk"] = read["read_bytes"] - counters["read_bytes"]
    found["copied"] = read["rchar"] - counters["rchar"]


def load_ours(path: str, name: str, dtype: str) -> Any:
    """The file's patcher by the loaders of our nodes."""
    from cascade_studio.nodes.host.models.clip import load_text_encoder
    from cascade_studio.nodes.host.models.load import load_diffusion

    return load_text_encoder(path, dtype).patcher if name == "text_encoder" else load_diffusion(path, name, dtype)


def load_hosts(path: str, name: str, dtype: str) -> Any:
    """The file's patcher by what the host's own loader nodes call."""
    import comfy.sd

    from cascade_studio.nodes.host.models.load import DTYPES

    options = {} if dtype == "auto" else {"dtype": DTYPES[dtype]}
    if name == "text_encoder":
        kind = comfy.sd.CLIPType.STABLE_CASCADE
        return comfy.sd.load_clip([path], clip_type=kind, model_options=options).patcher
    return comfy.sd.load_diffusion_model(path, model_options=options)


def measure(loader: str, path: str, name: str, dtype: str) -> dict[str, int]:
    """In a process of its own: what loading holds and reads."""
    import inprocess

    inprocess.Host(inprocess.prepare([flag for flag in inprocess.FLAGS if flag != "--fp32-unet"]))
    import comfy.model_management as management

    load: Callable[[str, str, str], Any] = {"ours": load_ours, "host": load_hosts}[loader]
    found: dict[str, int] = {}
    forget(Path(path))
    with watching(found):
        started = time.process_time()
        patcher = load(path, name, dtype)
        management.load_models_gpu([patcher])
        found["milliseconds"] = int(1000 * (time.process_time() - started))
    found["weights"] = sum(each.nbytes for each in patcher.model.state_dict().values())
    return found


def measure_apart(loader: str, path: Path, name: str, dtype: str) -> dict[str, int]:
    """As :func:`measure`, in a new process."""
    made = subprocess.run(
        [sys.executable, __file__, "--one", loader, str(path), name, dtype], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise RuntimeError(f"{loader} could not load {name} as {dtype}:\n{made.stderr[-2000:]}")
    return json.loads(made.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", choices=FILES, default=FILES)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(f"\n{json.dumps(measure(*options.one))}\n")
        return
    sys.stdout.write(
        "| file, MiB | format | loader | weights | peak | of it no file's | stays | mapped | from disk | copied "
        "| s of processor |\n" + "| --- " * 11 + "|\n"
    )
    with tempfile.TemporaryDirectory(prefix="cascade-studio-loading-") as folder:
        for name in options.files:
            path = Path(folder) / f"{name}.safetensors"
            size = write_noise(path, shapes_of(name))
            for dtype in options.formats:
                for loader in LOADERS:
                    found = measure_apart(loader, path, name, dtype)
                    keys = ("weights", "peak", "own_peak", "own", "mapped", "disk", "copied")
                    told = " | ".join(f"{found[key] / MIB:.0f}" for key in keys)
                    seconds = found["milliseconds"] / 1000
                    sys.stdout.write(f"| {name}, {size / MIB:.0f} | {dtype} | {loader} | {told} | {seconds:.1f} |\n")
                    sys.stdout.flush()
            path.unlink()


if __name__ == "__main__":
    main()
