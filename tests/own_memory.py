"""What Linux counts of this process's memory."""

from __future__ import annotations

from pathlib import Path


def read_status() -> dict[str, int]:
    """Bytes of this process by the names of ``/proc/self/status``; "VmHWM" is the peak of all resident memory."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return {
        name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest
    }


def reset_peak() -> None:
    """Let the peak begin with what is held now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
