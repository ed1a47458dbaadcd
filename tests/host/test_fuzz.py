"""Two thousand prompts with wrong values: a node of the pack answers with a result or a sentence, never with Python.

Each prompt is one node with its usual inputs, one to three of them changed: widgets hold numbers beyond their limits,
text for numbers and odd text; wires carry things of their own type that are empty, NaN, of another stage, size or
number of channels. What the host itself refuses is fine. Every prompt follows from its number:
``dev.py test --soak tests/host/test_fuzz.py -k "[7]"`` runs those from 700 to 799.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from graphs import Graph
from node_inputs import make_inputs, noise
from sources import node_classes
from world import Parts

CHUNKS, CHUNK = 20, 100
NAN, INFINITY = float("nan"), float("inf")
SENTENCES = {
    *("CascadeError", "WrongInput", "NotInCascade", "WrongFile", "UnreadableFile", "NotFetched", "BadValues"),
    *("OutOfMemory", "BadCatalogue", "CheckpointError"),
}
TEXTS = (
    "",
    " ",
    "a" * 5000,
    "(" * 300 + "a" + ")" * 300,
    ")))(((",
    "a (b:nan)",
    "(a:1e999) BREAK",
    "BREAK AVG BREAK",
    "AVG:0 AVG :-1",
    "embedding:",
    "embedding:nothere",
    "\x00\x01",
    "\ud800",
    "\u202eabc",
    "../../etc",
    "/",
    "CON",
    "a\nb=c\n[x] = (",
    "1,2;x",
    "3-1",
    "🦊" * 400,
    "%date:yyyy%",
    "{}",
    "[" * 2000,
)
ODD = (None, "", "text", [], {}, [1, 2], True, 10**30, -(10**30))


def odd_number(rng: random.Random, options: dict[str, Any], whole: bool) -> Any:
    """A number at or beyond the limits of an input, but none so large that work would never end."""
    least, most = options.get("min", 0), options.get("max", 1)
    found = [least, least - 1, most + 1, 0, -1, 2**64, 0.5]
    return rng.choice(found if whole else [*found, most, NAN, INFINITY, -INFINITY, 1e-30])


def latents(parts: Parts) -> list[Any]:
    return [
        {"samples": noise(1, 16, 3, 3)},
        {"samples": noise(3, 16, 3, 3), "batch_index": [7]},
        {"samples": noise(1, 4, 32, 32)},
        {"samples": noise(0, 16, 3, 3)},
        {"samples": noise(1, 16, 0, 3)},
        {"samples": noise(1, 16, 1, 1)},
        {"samples": noise(1, 4, 1, 1)},
        {"samples": noise(1, 4, 7, 9)},
        {"samples": noise(1, 16, 2, 3, 3)},
        {"samples": noise(1, 7, 3, 3)},
        {"samples": noise(1, 16, 3, 3) * NAN},
        {"samples": noise(1, 16, 3, 3).half()},
        {"samples": noise(2, 16, 3, 3), "noise_mask": torch.ones(5, 9)},
        {"samples": noise(2, 4, 32, 32), "noise_mask": torch.ones(1, 1, 4, 4) * NAN},
    ]


def pictures(parts: Parts) -> list[Any]:
    shapes = [(1, 8, 8, 1), (1, 8, 8, 2), (2, 64, 64, 3), (1, 70, 40, 4), (1, 8, 8, 16), (1, 8, 8, 512), (0, 8, 8, 3)]
    shapes += [(1, 0, 8, 3), (1, 1, 1, 3), (1, 1, 300, 3), (1, 8, 8), (1, 1, 8, 8, 3), (9, 16, 16, 3)]
    made = [noise(*shape).clamp(0, 1) for shape in shapes]
    return [*made, made[2] * NAN, made[2] * 300 - 100, made[2].half(), (made[2] * 255).byte()]


def masks(parts: Parts) -> list[Any]:
    shapes = [(8, 8), (1, 8, 8), (3, 64, 64), (0, 8, 8), (1, 0, 8), (1, 1, 1), (1, 1, 8, 8), (1, 8, 8, 3)]
    made = [(noise(*shape) > 0.5).float() for shape in shapes]
    return [*made, made[1] * NAN, made[1] - 2, torch.zeros(1, 64, 64), made[2].bool(), made[2].half()]


def conditionings(parts: Parts) -> list[Any]:
    text, extra = parts.positive[0]
    return [
        [],
        [[text, {}]],
        [[text[:, :0], extra]],
        [[text[..., :5], extra]],
        [[text * NAN, extra]],
        [[text.repeat(1, 3, 1), extra]],
        [[text.repeat(2, 1, 1), {**extra, "pooled_output": extra["pooled_output"].repeat(2, 1)}]],
        [*parts.positive, *parts.positive],
        [[text, {**extra, "pooled_output": extra["pooled_output"][..., :3]}]],
        [[text, {**extra, "mask": torch.ones(1, 4, 4), "strength": NAN}]],
        [[text, {**extra, "area": (1, 1, 5, 5)}]],
    ]


WIRES = {
    "LATENT": latents,
    "IMAGE": pictures,
    "MASK": masks,
    "CONDITIONING": conditionings,
    "MODEL": lambda parts: [parts.prior, parts.decoder],
    "VAE": lambda parts: [parts.stage_a, parts.stage_c_vae],
}
"""What a wire of a type may carry: right for the host, wrong for a node."""


def odd_value(rng: random.Random, parts: Parts, spec: Any) -> Any:
    """A wrong value for an input, or a wire's; None for an input that is left as it is."""
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if kind in WIRES:
        return ("wire", rng.choice(WIRES[kind](parts)))
    if kind in ("INT", "FLOAT"):
        number = odd_number(rng, options, kind == "INT")
        return ("wire" if rng.random() < 0.3 and kind == "FLOAT" else "widget", number)
    if kind == "STRING":
        return ("widget", rng.choice(TEXTS))
    if kind == "COMBO" or isinstance(kind, list):
        offered = options.get("options") or (kind if isinstance(kind, list) else []) or [""]
        return ("widget", rng.choice([rng.choice(offered), rng.choice(TEXTS)]))
    return ("widget", rng.choice((True, False))) if kind == "BOOLEAN" else None


LONG = {("CascadeStudio_TrainLora", "steps"), ("CascadeStudio_TrainLora", "sample_every")}
KINDS = sorted(set(node_classes()) - {"CascadeStudio_SaveModel", "CascadeStudio_ExtractLora"})
"""The two that are left out write a file for each prompt; their own tests try wrong values."""


def mutate(host, parts: Parts, number: int) -> tuple[Graph, str, dict[str, Any], list[Any]]:
    """The prompt with this number: the graph, the node's kind, what was changed, and what is wanted of it."""
    rng = random.Random(number)
    kind = rng.choice(KINDS)
    declared = host.nodes.NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()
    every = {**declared.get("required", {}), **declared.get("optional", {})}
    usual = make_inputs(parts).get(kind, {})
    graph, changed = Graph(host), {}
    names = [name for name in every if (kind, name) not in LONG]
    for name in rng.sample(names, min(len(names), rng.randint(1, 3))):
        odd = odd_value(rng, parts, every[name])
        if odd is not None:
            way, value = odd
            changed[name] = rng.choice(ODD) if way == "widget" and rng.random() < 0.15 else value
    wired = {
        name: graph.give(value)
        for name, value in changed.items()
        if every[name][0] in WIRES or (every[name][0] == "FLOAT" and isinstance(value, float))
    }
    node = graph.add(kind, **usual)
    graph.prompt[node.name]["inputs"].update({**changed, **wired})
    if "missing_files" in every:
        graph.prompt[node.name]["inputs"]["missing_files"] = "never"
    wanted = [node[0]] if host.nodes.NODE_CLASS_MAPPINGS[kind].RETURN_TYPES else []
    return graph, kind, changed, wanted


def raw_error(result: Any) -> str:
    """The Python error that a node of the pack ended with; none for a result, a sentence, or a refusal of the host."""
    for event, data in result.messages:
        if event == "execution_error" and str(data.get("node_type")).startswith("CascadeStudio_"):
            kind = str(data.get("exception_type", "")).rsplit(".", 1)[-1]
            if kind not in SENTENCES:
                place = (data.get("traceback") or [""])[-1].strip()
                return f"{kind}: {data.get('exception_message', '').strip()[:200]} ({place[:200]})"
    return ""


@pytest.mark.soak
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_prompt_ends_in_python(host, parts, chunk):
    found = []
    for number in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        graph, kind, changed, wanted = mutate(host, parts, number)
        told = raw_error(graph.execute(*wanted))
        if told:
            short = {name: getattr(value, "shape", str(value)[:60]) for name, value in changed.items()}
            found.append(f"{number} {kind} {short}: {told}")
    assert not found, "\n".join(found)
