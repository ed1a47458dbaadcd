"""What can go wrong with the catalogue or a download, worded for the person who waits for the file.

No text here ever holds a token, a query string or a password: :func:`.addresses.redact_url` shortens addresses.
"""

from __future__ import annotations


class CheckpointError(Exception):
    """Base of all errors of this package; its text is a sentence."""


class BadCatalogue(CheckpointError):
    """A catalogue, or an entry of one, cannot be used."""


class Offline(CheckpointError):
    """Networking is switched off and a file is missing."""


class DiskFull(CheckpointError):
    """The target disk cannot hold what is still to come."""


class FetchFailed(CheckpointError):
    """A file could not be fetched; what can be resumed was kept."""


class BadFile(FetchFailed):
    """What arrived is not the file that was asked for; it was set aside and is not used."""


class Interrupted(CheckpointError):
    """The person, or the host, stopped the download; what can be resumed was kept."""


class SourceFailed(FetchFailed):
    """One address does not give the file; another one may."""


class Retry(Exception):
    """A passing fault. ``delay`` is what the server asked for, in seconds; None leaves it to the back-off."""

    def __init__(self, reason: str, delay: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.delay = reason, delay


class Changed(Exception):
    """The file at the address is not the one of which a part is here."""
