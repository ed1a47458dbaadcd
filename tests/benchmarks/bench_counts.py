"""Count what a forward pass of every network does, beside the host's own networks, and compare with what was recorded.

    python3 dev.py bench --counts [--record]

Nothing is computed and no graphics card is needed: see counter.py. Ours may not rise by more than 3 % over
``counts.json``; ``--record`` writes that file anew.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from counter import Counts, count_call
from reference_nets import host_net, reference
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cascade_studio.stages.attention.guide import GuideHooks
from cascade_studio.stages.attention.tiles import PieceHooks, Tiling, count_piece_elements
from cascade_studio.stages.files.kinds import KINDS
from cascade_studio.stages.nets.guide import GuideConfig, GuideNets
from cascade_studio.stages.nets.memory import activation_memory, guide_memory, pieces_memory
from cascade_studio.stages.nets.stage_a import StageA
from cascade_studio.stages.nets.stage_a_blocks import CARD
from cascade_studio.stages.nets.stage_b import StageB
from cascade_studio.stages.nets.stage_c import StageC
from cascade_studio.stages.nets.unet import UNetConfig

GUIDED = "Stage C guided"
"""Stage C with UltraPixel's guide, which reads a small picture first; the host has nothing beside it."""
PIECES = "Stage B in pieces"
"""As Tile Stage B runs it by default; the host has nothing beside it."""

RECORD = Path(__file__).with_name("counts.json")
RISE = 1.03
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
"""What each computes in; fp8 are weights of 8 bits that the host casts layer by layer."""
RATE, BANDWIDTH = 165e12, 1.0e12  # RTX 4090: FLOP/s in 16 bit with sums in 32, and bytes/s
WATCHED = ("kernels", "bytes_outside", "peak")


@dataclass(frozen=True)
class Case:
    """One pass: ``pixels`` is the picture's side, ``batch`` 2 is one picture with guidance. A ``thin`` network has one
    block a level where the published one has several, which follow each other and hold no more at once."""

    network: str
    size: str
    dtype: str
    pixels: int = 1024
    batch: int = 2
    thin: bool = False

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.network, self.size, self.dtype, f"{self.pixels}px", f"x{self.batch}")))


CASES = [
    *(Case("Stage C", size, dtype) for size in ("3.6B", "1B") for dtype in ("bf16", "fp16")),
    *(Case("Stage B", size, dtype) for size in ("1.5B", "700M") for dtype in ("bf16", "fp16")),
    Case("Stage C", "3.6B", "bf16", 2048),
    Case("Stage B", "1.5B", "bf16", 2048),
    *(Case("Stage A", "", "bf16", pixels, batch) for pixels, batch in ((1024, 1), (1024, 4), (2048, 1))),
]
LARGE = (2048, 4096, 6144, 8192)
"""Sides of large pictures, in pixels."""
ALONE = [
    *(Case(GUIDED, "3.6B", "bf16", pixels) for pixels in LARGE[:-1]),
    *(Case(PIECES, "1.5B", "bf16", pixels, thin=True) for pixels in LARGE),
]
"""Passes that are counted without the host's."""


def plan_memory(case: Case) -> int:
    """Bytes that our plan says the pass holds beside its weights, on a card."""
    size = DTYPES[case.dtype].itemsize
    if case.network == "Stage A":
        return StageA(device="meta").decode_memory(shapes_of(case)[0], size, CARD)
    key, strides = ("stage_c", (1, 1)) if case.network in ("Stage C", GUIDED) else ("stage_b", (1, 2, 4, 8))
    batch, _, height, width = shapes_of(case)[0]
    published, cast = KINDS[key].published[case.size], case.dtype == "fp8"
    if case.network == PIECES:
        return pieces_memory(published, batch, height, width, size, strides, count_elements(case))
    needed = activation_memory(published, batch, height, width, size, strides, cast)
    pictures = batch // 2  # the two halves of guidance read the same maps
    return needed + (guide_memory(GuideConfig(), pictures, height, width, size) if case.network == GUIDED else 0)


def count_elements(case: Case) -> int:
    """How many numbers a wide layer holds in pieces at the node's defaults."""
    return count_piece_elements(Tiling(), KINDS["stage_b"].published[case.size].c_hidden[0])


def shapes_of(case: Case) -> list[tuple[int, ...]]:
    """The inputs: latent, noise level and conditions."""
    side, grid = case.pixels // 4, case.pixels * 24 // 1024
    if case.network == "Stage A":
        return [(case.batch, 4, side, side)]
    if case.network in ("Stage B", PIECES):
        return [(case.batch, 4, side, side), (case.batch,), (case.batch, 16, grid, grid), (case.batch, 1, 1280)]
    rest = [(case.batch, 77, 1280), (case.batch, 1, 1280), (case.batch, 1, 768)]
    return [(case.batch, 16, grid, grid), (case.batch,), *rest]


def build_net(case: Case) -> nn.Module:
    """Our network, on the pretended card."""
    stage_b = (StageB, "stage_b")
    kinds = {"Stage A": (StageA, "stage_a"), "Stage B": stage_b, PIECES: stage_b}
    kind, key = kinds.get(case.network, (StageC, "stage_c"))
    config = KINDS[key].published[case.size]
    if case.thin:
        config = replace(config, blocks=tuple((1,) * len(way) for way in config.blocks))
    with torch.device("cuda"):
        if case.dtype == "fp8":
            return build_cast_net(key, config)
        return kind(config, dtype=DTYPES[case.dtype]).eval().requires_grad_(False)


def build_cast_net(key: str, config: UNetConfig) -> nn.Module:
    """Our network of 8 bits, of the host's layers that cast their weights; called as ours is."""
    import comfy.ops

    from cascade_studio.nodes.host.models.nets import HostStageB, HostStageC

    kind, plain = (HostStageB, StageB) if key == "stage_b" else (HostStageC, StageC)
    net = kind(torch.float8_e4m3fn, None, comfy.ops.manual_cast, **asdict(config)).eval().requires_grad_(False)
    net.forward = partial(plain.forward, net)
    return net


def build_guided(case: Case, net: nn.Module) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """What a guided run does first and in its first pass, and the tensors that are there before."""
    dtype, side, batch = DTYPES[case.dtype], case.pixels * 24 // 1024, case.batch // 2
    with torch.device("cuda"):
        guides = GuideNets(GuideConfig(), dtype=dtype).eval().requires_grad_(False)
    maps = [torch.empty(batch, 2048, 24, 24, device="cuda", dtype=dtype) for _ in guides.nets()]

    def run(*given: Tensor) -> Tensor:
        nets = guides.nets()
        read = [each.read_features(seen, (side, side)) for each, seen in zip(nets, maps, strict=True)]
        return net(*given, hooks=GuideHooks(net.config, nets, read))

    return run, [*net.parameters(), *guides.parameters(), *maps]


def build_host_net(case: Case, ours: nn.Module) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The host's network of the same size, and its tensors."""
    if case.network != "Stage A":
        return reference(host_net, ours), list(ours.parameters())
    from comfy.ldm.cascade.stage_a import StageA as CoreStageA

    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[case.dtype])
    try:
        with torch.device("cuda"):
            net = CoreStageA().eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    return net.decode, [*net.parameters(), *net.buffers()]


def count_case(case: Case, host: bool = True) -> dict[str, Counts]:
    """Counts of "ours" and of the "host"'s."""
    with FakeTensorMode():
        ours = build_net(case)
        if case.network == GUIDED:
            calls = {"ours": build_guided(case, ours)}
        else:
            call = ours.decode if case.network == "Stage A" else ours
            if case.network == PIECES:
                call = partial(ours, hooks=PieceHooks(count_elements(case)))
            calls = {"ours": (call, [*ours.parameters(), *ours.buffers()])}
        if host:
            calls["host"] = build_host_net(case, ours)
        found = {}
        for who, (call, tensors) in calls.items():
            given = [torch.empty(s, device="cuda", dtype=DTYPES[case.dtype]) for s in shapes_of(case)]
            if len(given) > 1:
                given[1] = given[1].float()
            found[who] = count_call(lambda call=call, given=given: call(*given), [*tensors, *given])
    del ours, calls
    gc.collect()
    return found


def count_small(kind: str, name: str, dtype: str, pixels: int, batch: int) -> tuple[int, int]:
    """Bytes that one pass of an encoder, Previewer or ControlNet holds, and those that it plans for."""
    with FakeTensorMode():
        config = KINDS[kind].published[name]
        with torch.device("cuda"):
            net = KINDS[kind].module(config, dtype=DTYPES[dtype]).eval().requires_grad_(False)
        grid = pixels * 24 // 1024
        side = {"encoder": 32 * grid, "previewer": grid}.get(kind) or config.cell * grid
        channels = 3 if kind == "encoder" else config.c_in
        given = torch.empty(batch, channels, side, side, device="cuda", dtype=DTYPES[dtype])
        counts = count_call(partial(net, given), [*net.parameters(), *net.buffers(), given])
        size = DTYPES[dtype].itemsize
        planned = net.memory(batch, side**2, size) if kind == "controlnet" else net.memory(given.shape, size)
    del net
    gc.collect()
    return counts.peak, planned


def check_rise(name: str, counts: Counts, recorded: dict[str, dict[str, int]]) -> list[str]:
    """Sentences about what rose over the record."""
    before = recorded.get(name, {})
    return [
        f"{name}: {key} rose from {before[key]} to {getattr(counts, key)}, more than 3 %."
        for key in WATCHED
        if key in before and getattr(counts, key) > RISE * before[key]
    ]


def describe(case: Case, found: dict[str, Counts]) -> str:
    ours, host = found["ours"], found["host"]
    cells = [f"{case.name:36}"]
    for key, unit, digits in (("kernels", 1, 0), ("bytes_outside", 1e9, 2), ("peak", 2**20, 0)):
        a, b = getattr(ours, key) / unit, getattr(host, key) / unit
        cells.append(f"{a:9.{digits}f} {b:9.{digits}f} {a / b:6.2f}")
    times = "".join(f"{predict_time(counts):8.1f}" for counts in (ours, host))
    return "".join(cells) + f"{plan_memory(case) / 2**20:9.0f} {times}"


def predict_time(counts: Counts) -> float:
    """Milliseconds on an RTX 4090 that is never idle: its products at their full rate, and all else at its memory's."""
    return 1000 * (counts.flops / RATE + counts.bytes_outside / BANDWIDTH)


def run_counts(record: bool = False) -> int:
    """Print the table; returns 1 if something rose over the record."""
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    sys.stdout.write(
        f"{'':36}{'kernels ours, host, ratio':>26}{'GB outside products':>26}{'peak MiB':>26}     plan   ms predicted\n"
    )
    wrong, rows = [], {}
    for case in CASES:
        found = count_case(case)
        sys.stdout.write(describe(case, found) + "\n")
        sys.stdout.flush()
        wrong += check_rise(case.name, found["ours"], recorded)
        rows[case.name] = {key: value for key, value in asdict(found["ours"]).items() if key in WATCHED}
    for case in () if record else ALONE:  # which are not in the record
        alone = count_case(case, host=False)["ours"]
        sys.stdout.write(
            f"{case.name:36}{alone.kernels:9} kernels {alone.bytes_outside / 1e9:9.2f} GB outside products "
            f"{alone.peak / 2**20:9.0f} MiB peak {plan_memory(case) / 2**20:9.0f} plan\n"
        )
    if record:
        RECORD.write_text(json.dumps(rows, indent=1) + "\n")
        return 0
    sys.stdout.write("".join(f"{line}\n" for line in wrong))
    return 1 if wrong else 0
