"""`dev.py test`: pytest in the environment, on one host or on all of them."""

from __future__ import annotations

import subprocess
import tempfile

from cascade_studio.commands.messages import Stop, say

from .env import REPOSITORY, Setup, other_versions, set_up
from .hosts import fetch_pinned, supported

NO_TESTS = 5
IN_PROCESS = ("host",)  # the folder of tests in ComfyUI's own process: as long as all others together


def _need_packages(setup: Setup) -> None:
    """An installation of the user's is never changed: what its Python lacks for testing is said."""
    code = "import importlib.util as u; print(*(n for n in ('torch', 'pytest') if u.find_spec(n) is None))"
    missing = subprocess.run(
        setup.command("-c", code),
        env=setup.environment(),
        stdin=subprocess.DEVNULL,
        check=True,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ).stdout.split()
    if missing:
        raise Stop(
            f"{' and '.join(missing)} cannot be imported by {setup.python}, the Python of COMFYUI_PATH. Install "
            f"it there ('{setup.python} -m pip install {' '.join(missing)}'), name the right Python with "
            "COMFYUI_PYTHON, or unset COMFYUI_PATH."
        )


def run_tests(setup: Setup, arguments: list[str], all_hosts: bool, soak: bool = False) -> int:
    """Run pytest; the main host's run is the last, so that the closing line is its own. The first failure counts.

    Tests marked ``smoke`` visit every pinned host within one run; ``all_hosts`` runs the whole host and server
    suites on the other hosts too, each in a process of its own; ``soak`` adds the long tests.
    """
    if setup.host.python is not None:
        _need_packages(setup)
    versions = other_versions(setup) if all_hosts or visits_other_hosts(arguments) else []
    for version in versions:
        fetch_pinned(version)
    smoke = {"CASCADE_STUDIO_SMOKE_HOSTS": ",".join(versions), **({"CASCADE_STUDIO_SOAK": "1"} if soak else {})}
    codes = []
    if all_hosts:
        folders = ["tests/host", "tests/server"]
        for version in filter(supported, versions):
            say(f"The host and server tests on ComfyUI {version}:")
            codes.append(
                set_up(version).run(
                    "-m", "pytest", *folders, *_without_paths(arguments), extra={"CASCADE_STUDIO_SMOKE_HOSTS": ""}
                )
            )
        say(f"All tests on ComfyUI {setup.host.version}:")
    if _paths(arguments):
        codes.append(setup.run("-m", "pytest", *arguments, extra=smoke))
    else:
        codes.append(_run_halves(setup, arguments, smoke))
    *others, main = codes
    return next((code for code in others if code not in (0, NO_TESTS)), main)


def _run_halves(setup: Setup, arguments: list[str], extra: dict[str, str]) -> int:
    """All tests on two cores: those in ComfyUI's own process here, all others in a process beside it.

    What the first says is told when it has ended. A test that depends on its neighbours' order meets the same order as
    without halves, since each folder is whole.
    """
    folders = sorted({str(path.relative_to(REPOSITORY).parts[1]) for path in REPOSITORY.glob("tests/*/**/test_*.py")})
    beside = [f"tests/{name}" for name in folders if name not in IN_PROCESS]
    here = [f"tests/{name}" for name in folders if name in IN_PROCESS]
    extra = {"OMP_NUM_THREADS": "1", **extra}
    say(f"{' and '.join(beside)} run beside {' and '.join(here)}; what they say follows.")
    with tempfile.TemporaryFile() as output:
        process = setup.start("-m", "pytest", *beside, *arguments, extra=extra, output=output)
        try:
            code = setup.run("-m", "pytest", *here, *arguments, extra=extra)
        except BaseException:
            process.terminate()
            raise
        finally:
            other = setup.wait_for(process)
            output.seek(0)
            print(output.read().decode("utf-8", "replace"), flush=True)
    codes = [code, other]
    return next((found for found in codes if found not in (0, NO_TESTS)), min(codes))


def visits_other_hosts(arguments: list[str]) -> bool:
    """Whether these tests may be marked ``smoke``, which only those of a server are: all tests, or a path to theirs."""
    paths = [REPOSITORY / path.split("::")[0] for path in _paths(arguments)]
    server = REPOSITORY / "tests" / "server"
    return not paths or any(path == server or server in path.parents or path in server.parents for path in paths)


def _paths(arguments: list[str]) -> list[str]:
    return [argument for argument in arguments if (REPOSITORY / argument.split("::")[0]).exists()]


def _without_paths(arguments: list[str]) -> list[str]:
    return [argument for argument in arguments if argument not in _paths(arguments)]
