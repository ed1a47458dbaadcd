"""Runs a script that ends when its starter does, however that ends: ``python guard.py SCRIPT [ARGUMENT ...]``.

The starter keeps the other end of this process' standard input; when that closes, the process and everything in its
group are killed. Nothing is left running after a crash, a closed terminal or a killed test run.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading


def _watch() -> None:
    while os.read(0, 1):
        pass
    if os.name == "nt":
        subprocess.run(
            ["taskkill", "/F", "/T", "/PID", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    elif os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_watch, daemon=True).start()
    script = os.path.abspath(sys.argv[1])
    sys.path[0] = os.path.dirname(script)
    del sys.argv[0]
    runpy.run_path(script, run_name="__main__")
