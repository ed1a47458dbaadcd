"""A tour of a graphics card in nine minutes at most: full-size random weights, ours beside the host's own networks.

    python3 dev.py bench --device cuda            prints a table for docs/speed.md
    python3 dev.py bench --tiny                   the same on tiny networks on the processor, to see that it runs

What matters most comes first; what no longer fits into the time is named and left out.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from bench_card_host import dynamic, partial
from bench_counts import DTYPES, Case, plan_memory, shapes_of
from reference_nets import host_net, reference
from steps import choose_steps
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cascade_studio.stages.diffusion.reuse import OFF, PRESETS, RULES
from cascade_studio.stages.diffusion.sampling import OFFICIAL, logsnr, noise_condition, timesteps
from cascade_studio.stages.files.kinds import KINDS

MINUTES = 9
KEYS = {"Stage C": "stage_c", "Stage B": "stage_b", "Stage A": "stage_a"}
NETWORKS = (("Stage C", "3.6B"), ("Stage B", "1.5B"), ("Stage C", "1B"), ("Stage B", "700M"))
TINY = {
    "Stage C": {"c_hidden": (64, 64), "nhead": (2, 2), "c_cond": 64, "blocks": ((1, 2), (2, 1))},
    "Stage B": {"c_hidden": (32, 32, 64, 64), "nhead": (-1, -1, 2, 2), "c_cond": 64, "blocks": ((1,) * 4, (1,) * 4)},
    "Stage A": {"c_hidden": 32, "bottleneck_blocks": 2},
}


class Tour:
    """The device, the time that is left, and what is printed."""

    def __init__(self, device: str, tiny: bool):
        self.device, self.tiny = torch.device(device), tiny
        self.ends = time.monotonic() + MINUTES * 60

    def tell(self, text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def visit(self, name: str, section: Callable[[Tour], None], seconds: float) -> None:
        """Run a section if ``seconds`` are left; an error is told and ends the section only."""
        left = self.ends - time.monotonic()
        if left < seconds:
            self.tell(f"{name}: left out, {left:.0f} s are left")
            return
        self.tell(f"## {name}")
        try:
            section(self)
        except Exception as error:  # a section less is better than no tour
            self.tell(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def time(self, call: Callable[[], Any], repetitions: int = 5) -> float:
        """Median milliseconds of ``call`` after one to warm up."""
        call()
        found = []
        for _ in range(1 if self.tiny else repetitions):
            self.wait()
            started = time.perf_counter()
            call()
            self.wait()
            found.append(1000 * (time.perf_counter() - started))
        return statistics.median(found)

    def peak(self, call: Callable[[], Any]) -> float:
        """MiB that ``call`` holds at its peak beside what is there; 0 where the device does not say."""
        if self.device.type != "cuda":
            return 0.0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def build(self, case: Case, **changes: Any) -> nn.Module:
        kind = KINDS[KEYS[case.network]]
        config = replace(kind.published[case.size], **(TINY[case.network] if self.tiny else {}))
        net = kind.module(config, dtype=DTYPES[case.dtype], device=self.device, **changes).eval().requires_grad_(False)
        torch.manual_seed(0)
        for parameter in net.parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 and parameter.shape[0] > 1 else 1000
            parameter.uniform_(-1, 1).mul_(fan**-0.5)
        return net

    def inputs(self, case: Case) -> list[Tensor]:
        case = replace(case, pixels=128, batch=min(case.batch, 2)) if self.tiny else case
        torch.manual_seed(1)
        made = [torch.randn(shape, device=self.device).to(DTYPES[case.dtype]) for shape in shapes_of(case)]
        if len(made) > 1:
            made[1] = torch.rand(made[1].shape, device=self.device)
        return made


def matrix_rate(tour: Tour) -> None:
    """What the card's own matrix products reach."""
    side = 64 if tour.tiny else 8192
    for name in ("bf16", "fp16"):
        a, b = (torch.randn(side, side, device=tour.device).to(DTYPES[name]) for _ in range(2))
        tour.tell(f"{name}: {2 * side**3 / tour.time(lambda a=a, b=b: a @ b) / 1e9:.1f} TFLOP/s on {side} x {side}")


def steps(tour: Tour) -> None:
    """A guided step of every network: ours, compiled, the host's; the rate of the products; peak against the plan."""
    for network, size in NETWORKS:
        case = Case(network, size, "bf16")
        ours = tour.build(case)
        theirs = reference(host_net, ours)
        for pixels in (1024, 2048):
            given = tour.inputs(replace(case, pixels=pixels))
            with FlopCounterMode(display=False) as counted:
                expected = theirs(*given)
            mine, host = tour.time(lambda: ours(*given)), tour.time(lambda: theirs(*given))
            peak = tour.peak(lambda: ours(*given))
            error = float((ours(*given).float() - expected.float()).std() / expected.float().std())
            tour.tell(
                f"{network} {size} {pixels}: ours {mine:.1f} ms, host {host:.1f} ms, ratio {mine / host:.2f}, "
                f"{counted.get_total_flops() / mine / 1e9:.1f} TFLOP/s, peak {peak:.0f} MiB of "
                f"{plan_memory(replace(case, pixels=pixels)) / 2**20:.0f} planned, differs {error:.1e}"
            )
        ours = theirs = None  # before the next is made


def compiled(tour: Tour) -> None:
    """The same with the blocks compiled, as Compile Cascade has them; the first network pays for both graphs."""
    from cascade_studio.stages.nets.compiled import BlockCompiler
    from cascade_studio.stages.nets.hooks import BlockHooks

    hooks = BlockHooks(compiler=BlockCompiler("aot_eager" if tour.tiny else "inductor"))
    for network, size in NETWORKS:
        case = Case(network, size, "bf16")
        net, given = tour.build(case), tour.inputs(case)
        expected, eager = net(*given).float(), tour.time(lambda: net(*given))
        started = time.monotonic()
        made = net(*given, hooks=hooks).float()
        tour.wait()
        waited = time.monotonic() - started
        tour.tell(
            f"{network} {size}: {tour.time(lambda: net(*given, hooks=hooks)):.1f} ms, eager {eager:.1f} ms, first pass "
            f"{waited:.0f} s, differs {float((made - expected).std() / expected.std()):.1e}, "
            f"{'compiled' if hooks.compiler.ready else 'NOT compiled'}"
        )
        net = None


def formats(tour: Tour) -> None:
    """fp16 and bf16 against fp32 on equal weights, and their times."""
    for network, size in (("Stage C", "1B"), ("Stage B", "700M")):
        exact = tour.build(Case(network, size, "fp32"))
        wide = exact(*tour.inputs(Case(network, size, "fp32"))).float()
        for dtype in ("bf16", "fp16"):
            case = Case(network, size, dtype)
            net = tour.build(case)
            net.load_state_dict(exact.state_dict())
            given = tour.inputs(case)
            error = float((net(*given).float() - wide).std() / wide.std())
            tour.tell(f"{network} {size} {dtype}: {tour.time(lambda: net(*given)):.1f} ms, {error:.1e} from fp32")
            net = None
        exact = None


def eight_bits(tour: Tour) -> None:
    """Weights in fp8: cast at use, and in the host's own products of 8 bits where the card has them."""
    import comfy.ops

    from cascade_studio.nodes.host.models.backend import backend_for

    for network, size in (("Stage C", "3.6B"), ("Stage B", "1.5B")):
        case = Case(network, size, "bf16")
        for name, operations in (("cast", comfy.ops.manual_cast), ("fast", comfy.ops.fp8_ops)):
            net = tour.build(case, backend=backend_for(operations))
            for module in net.modules():
                if isinstance(module, nn.Linear):
                    module.weight = nn.Parameter(module.weight.to(torch.float8_e4m3fn), requires_grad=False)
            given = tour.inputs(case)
            tour.tell(f"{network} {size} fp8 {name}: {tour.time(lambda: net(*given)):.1f} ms")
            net = None


def decoding(tour: Tour) -> None:
    """Stage A, one and four pictures."""
    net = tour.build(Case("Stage A", "", "bf16"))
    for pixels, batch in ((1024, 1), (1024, 4), (2048, 1), (4096, 1)):
        case = Case("Stage A", "", "bf16", pixels, batch)
        (latent,) = tour.inputs(case)
        took, peak = tour.time(lambda: net.decode(latent), 3), tour.peak(lambda: net.decode(latent))
        tour.tell(f"{case.name}: {took:.1f} ms, peak {peak:.0f} MiB of {plan_memory(case) / 2**20:.0f} planned")


def pictures(tour: Tour) -> None:
    """The networks of one 1024 px picture by the official settings, and with what Cache for Cascade leaves."""
    for preset in PRESETS:
        total, told = 0.0, []
        for network, size, key in (("Stage C", "3.6B", "stage_c"), ("Stage B", "1.5B", "stage_b"), ("Stage A", "", "")):
            count, unguided = count_steps(key, preset)
            case = Case(network, size, "bf16", 1024, 1 if unguided or not key else 2)
            net, given = tour.build(case), tour.inputs(case)
            call = net if key else net.decode
            call(*given)
            tour.wait()
            started = time.perf_counter()
            for _ in range(count):
                call(*given)
            tour.wait()
            total += time.perf_counter() - started
            told.append(f"{count} x {network}{' at cfg 1' if unguided else ''}")
            net = call = None
        tour.tell(f"cache {preset}: {total:.2f} s for {', '.join(told)}")


def count_steps(key: str, preset: str) -> tuple[int, bool]:
    """Steps that are computed, and whether they are unguided (Stage B with the cache)."""
    if not key:
        return 1, False
    official = OFFICIAL[key]
    if preset == OFF:
        return official.steps, False
    levels = noise_condition(logsnr(timesteps(official.steps)[:-1], official.shift)).tolist()
    return len(choose_steps(RULES[key][preset], levels)), key == "stage_b"


SECTIONS: tuple[tuple[str, Callable[[Tour], None], float], ...] = (
    ("Matrix products", matrix_rate, 5),
    ("Guided steps, eager", steps, 60),
    ("Stage A", decoding, 20),
    ("Whole pictures", pictures, 60),
    ("Number formats", formats, 40),
    ("Weights in 8 bits", eight_bits, 40),
    ("Partly loaded", partial, 30),
    ("Blocks compiled", compiled, 120),
    ("Dynamic VRAM", dynamic, 40),
)


@torch.inference_mode()
def run_tour(device: str, tiny: bool) -> int:
    tour = Tour(device, tiny)
    name = torch.cuda.get_device_name(device) if tour.device.type == "cuda" else "this processor"
    tour.tell(f"# {name}, PyTorch {torch.__version__}{', tiny networks' if tiny else ''}")
    for section in SECTIONS:
        tour.visit(*section)
    return 0
