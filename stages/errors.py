"""Errors that are sentences: what was given, what is needed, what to do."""

from __future__ import annotations


class CascadeError(ValueError):
    """Base of every error that the pack words for its user.

    ComfyUI shows where a class comes from, and gives a pack's modules the path of its folder: a user reads the plain
    name of the package instead.
    """

    __module__ = "cascade_studio"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__module__ = CascadeError.__module__


class WrongFile(CascadeError):
    """A file, or a state dict, is not what the input that received it needs."""


class UnreadableFile(WrongFile):
    """A file cannot be opened at all, whatever it is wanted for: missing, cut off, damaged, or no safetensors."""


class NotFetched(CascadeError):
    """A published file is not here and could not be brought, or was not to be."""


class WrongInput(CascadeError):
    """A tensor, latent, conditioning or number cannot be used where it was given."""


class BadValues(CascadeError):
    """A network produced NaN or infinity."""


class OutOfMemory(CascadeError):
    """The work does not fit into memory, and no exact cheaper way is left."""
