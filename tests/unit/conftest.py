"""Fixtures of the tests that need no host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from batches import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A folder with a workflow, and fake servers that end with the test."""
    made = Desk(tmp_path)
    yield made
    made.close()
