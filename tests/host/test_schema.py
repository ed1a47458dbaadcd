"""What every node promises before it runs: its id, texts on every input and output, a schema that costs nothing."""

from __future__ import annotations

import inspect
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sources import node_classes
from torch.utils._python_dispatch import TorchDispatchMode

from cascade_studio.nodes import PREFIX

IDS = node_classes()
CATEGORIES = {
    f"Cascade Studio/{name}"
    for name in (
        "loaders",
        "latent",
        "sampling",
        "speed",
        "conditioning",
        "image",
        "lora",
        "merging",
        "control",
        "high resolution",
        "guidance",
        "training",
    )
}
SECONDS = 0.005
SMALL = {"and", "as", "by", "for", "with"}
"""Words of a node's name that take no capital."""

PICTOGRAMS = re.compile("[\u2600-\u27bf\U0001f000-\U0010ffff]")


def classes(host: Any) -> dict[str, Any]:
    return {name: host.nodes.NODE_CLASS_MAPPINGS[name] for name in sorted(host.pack_ids)}


def test_exactly_the_nodes_of_the_source_are_registered(host):
    """By their literal ids, as a scan finds them; tests/frozen says which of them may never go away."""
    assert IDS == {name: kind.__name__ for name, kind in classes(host).items()} and len(IDS) > 50


def test_nodes_are_direct_children_of_the_host_class(host):
    from comfy_api.latest import io

    for name, kind in classes(host).items():
        # The host registers a class of its own around ours in some versions.
        assert io.ComfyNode in kind.__bases__, name


def is_text(text: Any) -> bool:
    """A whole, plain sentence or name: no trailing space, no pictograms."""
    return isinstance(text, str) and bool(text) and text == text.strip() and not PICTOGRAMS.search(text)


def is_in_title_case(name: str) -> bool:
    """Every word has a capital, but small ones and those in brackets, as in the host's own names."""
    words = re.sub(r"\([^)]*\)", "", name).replace("-", " ").split()
    return all(word[0].isupper() or word in SMALL for word in words)


def test_title_case_is_told():
    assert is_in_title_case("Load Stage C (prior)") and is_in_title_case("Cascade as One Model")
    assert not is_in_title_case("Encode prompt") and not is_in_title_case("Self-attention Guidance")


def test_every_node_describes_itself(host):
    displayed = [kind.define_schema().display_name for kind in classes(host).values()]
    assert len(set(displayed)) == len(displayed)
    for name, kind in classes(host).items():
        schema = kind.define_schema()
        assert schema.node_id == name and name.startswith(PREFIX)
        assert schema.category in CATEGORIES, name
        assert is_text(schema.display_name) and is_in_title_case(schema.display_name), name
        assert is_text(schema.description) and schema.description.endswith("."), name
        assert "stable cascade" in schema.search_aliases and len(schema.search_aliases) > 1, name
        assert all(is_text(alias) and alias == alias.lower() for alias in schema.search_aliases), name


def test_every_input_and_output_has_a_tooltip(host):
    for name, kind in classes(host).items():
        schema = kind.define_schema()
        for entry in [*schema.inputs, *schema.outputs]:
            assert is_text(entry.tooltip) and entry.tooltip.endswith("."), f"{name}.{entry.id}: {entry.tooltip}"
            assert re.fullmatch("[a-z][a-z_0-9]*", entry.id), f"{name}.{entry.id}"
        assert all(is_text(output.display_name) for output in schema.outputs), name
        for entries in (schema.inputs, schema.outputs):
            assert len({entry.id for entry in entries}) == len(entries), name


def test_every_number_says_its_limits_and_lies_within_them(host):
    from comfy_api.latest import io

    for name, kind in classes(host).items():
        for entry in kind.define_schema().inputs:
            if isinstance(entry, (io.Int.Input, io.Float.Input)):
                assert None not in (entry.min, entry.max, entry.default), f"{name}.{entry.id}"
                assert entry.min <= entry.default <= entry.max, f"{name}.{entry.id}"
            if isinstance(entry, io.Combo.Input) and entry.default is not None:
                assert entry.default in entry.options, f"{name}.{entry.id}"


def test_defaults_are_the_official_ones(host):
    found = {}
    for kind in ("SamplePrior", "SampleDecoder", "Guider", "Schedule", "Canvas"):
        inputs = classes(host)[PREFIX + kind].define_schema().inputs
        found[kind] = {entry.id: getattr(entry, "default", None) for entry in inputs}
    official = {"rescale": 0.7, "denoise": 1.0, "sampler": "ddpm"}
    assert {**official, "steps": 20, "cfg": 4.0, "shift": 2.0}.items() <= found["SamplePrior"].items()
    assert {**official, "steps": 10, "cfg": 1.1, "shift": 1.0}.items() <= found["SampleDecoder"].items()
    assert {"cfg": 4.0, "rescale": 0.7}.items() <= found["Guider"].items()
    assert {"steps": 20, "denoise": 1.0}.items() <= found["Schedule"].items()
    assert found["Canvas"]["batch_size"] == 1, "its size is that of the model that a fresh loader takes: test_defaults"


def test_schemas_are_cheap(host, family):
    """The host makes them anew for every request, validation and execution. What other programs do does not count."""
    for name, kind in classes(host).items():
        taken = []
        for _ in range(12):
            start = time.thread_time()
            kind.define_schema()
            taken.append(time.thread_time() - start)
        assert min(taken[1:]) < SECONDS, f"{name} takes {1000 * min(taken):.1f} ms"


LISTINGS = {"os.listdir", "os.scandir"}
_watched: list[Counter] = []
_hooked: list[bool] = []


def _note_event(event: str, given: tuple[Any, ...]) -> None:
    if _watched and (event == "open" or event in LISTINGS) and not str(given[0]).startswith("/proc/"):
        _watched[-1][event, str(given[0])] += 1  # the kernel's own tables, as of memory, lie on no disk


class _CountTensors(TorchDispatchMode):
    """Counts every tensor that is made or worked on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_work() -> Iterator[tuple[Counter, _CountTensors]]:
    """Files opened and folders listed inside, as Python itself reports them, and work on tensors."""
    if not _hooked:
        sys.addaudithook(_note_event)  # never taken away again
        _hooked.append(True)
    _watched.append(Counter())
    try:
        with _CountTensors() as tensors:
            yield _watched[-1], tensors
    finally:
        _watched.pop()


def test_the_counts_see_files_folders_and_tensors(tmp_path):
    import torch

    (tmp_path / "a").write_text("")
    with counted_work() as (touched, tensors):
        (tmp_path / "a").read_text()
        list(tmp_path.glob("*"))
        list(tmp_path.iterdir())
        torch.zeros(1)
    assert touched["open", str(tmp_path / "a")] == 1 and tensors.calls
    assert {event for event, path in touched if path == str(tmp_path)} == LISTINGS


FROM_FILES = {"Canvas", "InpaintCrop", "Upscale"}
"""Nodes without files of their own whose defaults follow the files that are here."""


def test_schemas_read_no_file_and_list_each_folder_once(host, family):
    """What a schema costs, as a count: no file is read, no tensor made, and only lists of files look at folders."""
    for name, kind in classes(host).items():
        kind.define_schema()  # what the files say of themselves is read once
        with counted_work() as (touched, tensors):
            kind.define_schema()
        assert not tensors.calls, name
        assert not [path for event, path in touched if event == "open"], name
        assert max(touched.values(), default=0) <= 1, f"{name} lists {touched.most_common(3)}"
        if not file_inputs(kind) and name.removeprefix(PREFIX) not in FROM_FILES:
            assert not touched, f"{name} looks at {list(touched)}"


def test_schemas_touch_nothing(host, family):
    """Making a schema changes no shared state: two of them are equal, and no list is shared between them."""
    for name, kind in classes(host).items():
        first, second = kind.define_schema(), kind.define_schema()
        assert [entry.as_dict() for entry in first.inputs] == [entry.as_dict() for entry in second.inputs], name
        for one, other in zip(first.inputs, second.inputs):
            assert one is not other, f"{name}.{one.id} is shared"


FILE_INPUTS = {
    "prior",
    "decoder",
    "text_encoder",
    "stage_a",
    "image_encoder",
    "previewer",
    "clip_vision",
    "lora",
    "control_net",
    "controlnet",
    "ultrapixel",
}


def file_inputs(kind: Any) -> set[str]:
    """The inputs that choose a file; wires may have the same names."""
    from comfy_api.latest import io

    return {entry.id for entry in kind.define_schema().inputs if isinstance(entry, io.Combo.Input)} & FILE_INPUTS


@pytest.mark.parametrize("name", sorted(name for name in IDS if "_Load" in name))
def test_loaders_check_their_files_themselves(host, family, name):
    """Each names its file inputs in ``validate_inputs``, so that the host's own refusal does not come first."""
    kind = classes(host)[name]
    files = file_inputs(kind)
    assert files
    assert files <= set(inspect.getfullargspec(kind.validate_inputs).args), "as the host reads them"


@pytest.mark.parametrize("name", sorted(name for name in IDS if "_Load" in name))
def test_fingerprints_follow_the_file_on_disk(host, family, name):
    kind = classes(host)[name]
    chosen = dict.fromkeys(file_inputs(kind), "absent.safetensors")
    absent = kind.fingerprint_inputs(**chosen)
    assert isinstance(absent, str) and absent == kind.fingerprint_inputs(**chosen)
    assert kind.fingerprint_inputs() == kind.fingerprint_inputs(), "inputs that are wires are not passed"
