"""Peak memory of a piece of code, measured in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
PROGRAM = """
import sys, threading
from pathlib import Path
import psutil, torch
torch.manual_seed(0)
process, peak, done = psutil.Process(), [0], threading.Event()
def watch():
    while not done.wait(0.001):
        peak[0] = max(peak[0], process.memory_info().rss)
def highest():
    # Linux keeps the true peak; where it does not, samples have to do, and can miss a short one on a busy machine.
    lines = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024
with torch.inference_mode():
    {setup}
    {given}
    warm()
    taken = []
    for turn in range(2):  # a busy machine has to fetch code from the disk again at first, which counts like memory
        peak[0] = before = process.memory_info().rss
        done.clear()
        try:
            Path("/proc/self/clear_refs").write_text("5")
            kept = True
        except OSError:
            kept = False
        watcher = threading.Thread(target=watch)
        watcher.start()
        {call}
        done.set()
        watcher.join()
        taken.append((highest() if kept else peak[0]) - before)
print(min(taken))
"""


def measured_peak(setup: str, given: str, call: str) -> int:
    """Bytes above the process with ``setup`` (which defines ``warm``) and ``given`` done, while ``call`` runs.

    The C library returns freed memory at once here: what it would keep for later depends on chance, not on the code.
    """
    program = PROGRAM.format(setup=setup.strip().replace("\n", "\n    "), given=given, call=call)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600, env={**os.environ, **AT_ONCE}
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)
