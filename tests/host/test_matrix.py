"""Everything that artists chain in one workflow: all of it acts, an interrupt and the cache change nothing, nothing
stays.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from inprocess import Result
from matrix import LATENT, PARTS, SAMPLE, SAVED, STEPS, matrix, write_files
from world import changed


class Bench:
    """The workflow on the host in this process, with what its progress hook sees."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self.frames: list[tuple[int, int]] = []
        self.stop_at = 0.0

    def hook(self, value: float, total: float, preview: Any, prompt_id: Any = None, node_id: Any = None) -> None:
        import comfy.model_management

        if preview is not None and total == STEPS:
            self.frames.append(preview[1].size)
        if total == STEPS and value == self.stop_at:
            self.stop_at = 0.0
            self.host.interrupt()
        comfy.model_management.throw_exception_if_processing_interrupted()

    def specs(self, kind: str) -> dict[str, Any]:
        return self.host.nodes.NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()

    def run(self, executor: Any = None, **changes: Any) -> Result:
        self.frames.clear()
        prompt = matrix(self.specs, **changes)
        return self.host.execute(
            prompt,
            *((name, 0) for name in (SAMPLE, "paint") if name in prompt),
            executor=executor,
            extra_data={"preview_method": "auto"},
        )

    def latent(self, executor: Any = None, **changes: Any) -> torch.Tensor:
        """Stage C's latent."""
        result = self.run(executor, **changes, paint=False)
        assert result.success, result.error
        return result.values[SAMPLE, 0]["samples"]


@pytest.fixture(scope="module")
def written(host, family) -> None:
    write_files(family, host.base / "input")
    host.folder_paths.filename_list_cache.clear()


@pytest.fixture
def bench(host, written) -> Iterator[Bench]:
    import comfy.utils

    before, made = comfy.utils.PROGRESS_BAR_HOOK, Bench(host)
    comfy.utils.set_progress_bar_global_hook(made.hook)
    yield made
    comfy.utils.set_progress_bar_global_hook(before)


def test_every_part_acts(bench):
    """Each one taken out alone changes the result; the previews change what is shown and nothing else."""
    executor = bench.host.executor()
    whole = bench.latent(executor)
    assert bench.frames and set(bench.frames) == {(48, 48)}, "the Previewer paints 8 pixels a cell"
    for part in PARTS:
        latent = bench.latent(executor, without=[part])
        if part == "live preview":
            assert torch.equal(latent, whole) and set(bench.frames) == {(6, 6)}
        else:
            assert changed(latent, whole), part
    assert torch.equal(bench.latent(executor), whole), "put back, it is what it was"


@pytest.mark.parametrize(
    "change, anew, kept",
    [
        (
            {"control": 1.0},
            {"core's net", SAMPLE, "decoder", "paint", SAVED, LATENT},
            {"our net", "region", "our LoRA"},
        ),
        (
            {"lora": 0.4},
            {"our LoRA", "stacked LoRA", "core's LoRA", "prompt", "region", SAMPLE},
            {"load", "edges", "canny net"},
        ),
        ({"words": "a tall oak"}, {"words", "region", SAMPLE}, {"prompt", "image prompt", "core's LoRA"}),
    ],
    ids=["late", "early", "middle"],
)
def test_interrupted_changed_and_run_again(bench, change, anew, kept):
    """Stopped in the third step; then with one setting changed, on ComfyUI's cache: bit for bit what a fresh start
    gives.
    """
    import comfy.model_management

    executor = bench.host.executor()
    bench.stop_at = 3
    stopped = bench.run(executor)
    assert stopped.interrupted and stopped.error_node == SAMPLE
    again = bench.run(executor, **change)
    assert again.success, again.error
    assert anew <= set(again.executed) and not kept & set(again.executed), again.executed
    comfy.model_management.unload_all_models()
    fresh = bench.run(**change)
    assert torch.equal(again.values[SAMPLE, 0]["samples"], fresh.values[SAMPLE, 0]["samples"])
    assert torch.equal(again.values["paint", 0], fresh.values["paint", 0])
    assert changed(bench.latent(executor), fresh.values[SAMPLE, 0]["samples"]), "the setting matters"


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def alive() -> list[str]:
    """What a run makes for itself and must not leave behind."""
    gc.collect()
    kinds = ("ControlRun", "Painter", "Previewer", "TransformerHooks", "RegionLayer", "TokenLayer")
    return sorted(kind for kind in (type(each).__name__ for each in gc.get_objects()) if kind in kinds)


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


def test_nothing_is_left(bench):
    """Weights are bit for bit as they were loaded, also after an interrupt; no run leaves tensors or objects of its
    own.
    """
    import comfy.model_management

    executor = bench.host.executor()
    names = range(5)
    first = bench.host.run(
        {"load": matrix(bench.specs)["load"]}, *(("load", slot) for slot in names), executor=executor
    )
    models = [first[0].model, first[1].model, first[2].cond_stage_model, first[3].model, first[4].first_stage_model]
    before, objects = [weights(model) for model in models], alive()
    counts = []
    for lora in (1.0, 0.4, 1.0, 0.4):
        bench.stop_at = 3 * (lora == 0.4)
        assert bench.run(executor, lora=lora, paint=False).interrupted == (lora == 0.4)
        bench.latent(executor, lora=lora)
        counts.append(tensors())
    assert alive() == objects
    assert counts[0] == counts[2] and counts[1] == counts[3], "every round leaves as much as the one before"
    comfy.model_management.unload_all_models()
    for model, loaded in zip(models, before):
        assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())
