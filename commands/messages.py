"""How commands talk: lines of progress, and the error that ends one with a sentence instead of a traceback."""

from __future__ import annotations

import signal
import sys


class Stop(Exception):
    """Ends the command; its text tells what was found, what is needed and what to do."""


class WrongUsage(Stop):
    """Options that cannot be meant."""


def say(text: str) -> None:
    """One line of progress for the person at the terminal; on stderr, so that results alone are on stdout."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def speak_plainly() -> None:
    """Let any text through on terminals of few characters, and let a polite kill run the ``finally`` blocks."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), leave)
