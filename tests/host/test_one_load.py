"""What one run of Load Stable Cascade asks of the disk, counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mini_studio import PRESET, files
from world import Studio

from cascade_studio.nodes.checkpoints import catalogue
from cascade_studio.nodes.host.files import names
from cascade_studio.stages.files import open as opening
from mini import need


@pytest.fixture
def counted(host, monkeypatch) -> Counter:
    """How often each of these was called, with what it was called for."""
    found: Counter = Counter()

    def count(owner: Any, name: str, of: Any = lambda *given: "") -> None:
        real = getattr(owner, name)

        def counting(*given: Any, **more: Any) -> Any:
            found[name, of(*given)] += 1
            return real(*given, **more)

        monkeypatch.setattr(owner, name, counting)

    count(opening, "read_header", lambda path: Path(path).name)
    count(opening, "identify")
    count(catalogue, "_read")
    count(names.Library, "__init__")
    count(host.folder_paths, "get_filename_list", lambda folder: folder)
    return found


def test_one_load_opens_each_file_once_and_lists_each_folder_once_a_look(host, counted):
    need()
    studio = Studio(host, host.models, **files(), preset=PRESET, missing_files="never")
    assert studio.parts.prior is not None
    loaded = {Path(name).name for name in files().values() if name.endswith(".safetensors")}
    assert {name: count for (what, name), count in counted.items() if what == "read_header"} == dict.fromkeys(loaded, 1)
    assert counted["identify", ""] == len(loaded) and counted["_read", ""] == 0
    looks = counted["__init__", ""]
    assert looks <= 8, "one for each time that the host asks for the node's inputs, and two that find the files"
    assert max(count for (what, _), count in counted.items() if what == "get_filename_list") <= looks
