"""What a node of another architecture reads off the model and does not find: a sentence instead of Python's words."""

from __future__ import annotations

from typing import Any

from ....stages.errors import WrongInput


class NotInCascade(WrongInput, AttributeError):
    """An attribute that other architectures have; ``hasattr`` and a default of ``getattr`` see a missing one."""


class SaysWhatIsMissing:
    """A torch module that says so when a node asks for an attribute that Stable Cascade does not have."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            raise NotInCascade(
                f"A node on the model's wire asked it for '{name}', which Stable Cascade does not have: that node is "
                "made for another architecture. Take it off the wire."
            ) from None
