"""An older pinned host is shown with the frontend that it was made with, fetched once."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from cascade_studio.commands.messages import Stop
from tools import frontend
from tools.env import Setup
from tools.hosts import Host


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CASCADE_STUDIO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_host(folder: Path, requirements: str) -> Setup:
    folder.mkdir(parents=True)
    (folder / "requirements.txt").write_text(requirements, encoding="utf-8")
    return Setup(Host("1.2.3", folder), Path("python"), Path("python"))


def make_wheel(path: Path, names: tuple[str, ...]) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for name in names:
            made.writestr(name, name)
    return path


def test_the_frontend_is_fetched_once_and_only_its_pages_are_kept(own_cache, tmp_path, monkeypatch):
    fetched = []

    def fake_pip(python, arguments, purpose, log=None):
        fetched.append(arguments[-1])
        names = ("index.html", "assets/a.js", "../../escaped.js")
        inside = tuple(f"comfyui_frontend_package/static/{name}" for name in names)
        make_wheel(Path(arguments[arguments.index("--dest") + 1]) / "f.whl", (*inside, "comfyui_frontend_package/x.py"))

    monkeypatch.setattr(frontend, "pip", fake_pip)
    monkeypatch.setattr(frontend.metadata, "version", lambda name: "2.0")
    setup = make_host(own_cache / "hosts" / "old" / "ComfyUI", "torch\ncomfyui-frontend-package==1.39.19\naiohttp\n")
    for _ in range(2):
        flag, folder = frontend.frontend_flags(setup)
    assert flag == "--front-end-root" and fetched == ["comfyui-frontend-package==1.39.19"]
    found = {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}
    assert found == {"index.html", "assets/a.js"} and not list(tmp_path.rglob("escaped.js"))


@pytest.mark.parametrize("requirements", ["comfyui-frontend-package==2.0\n", "comfyui-frontend-package\n", "torch\n"])
def test_the_environments_frontend_does_where_it_is_the_same_or_none_is_named(own_cache, monkeypatch, requirements):
    monkeypatch.setattr(frontend.metadata, "version", lambda name: "2.0")
    assert frontend.frontend_flags(make_host(own_cache / "hosts" / "new" / "ComfyUI", requirements)) == []


def test_an_installation_of_the_users_shows_its_own(own_cache, tmp_path):
    assert frontend.frontend_flags(make_host(tmp_path / "ComfyUI", "comfyui-frontend-package==1.39.19\n")) == []


def test_a_wheel_without_pages_is_refused(tmp_path):
    with pytest.raises(Stop, match="holds no"):
        frontend.unpack_frontend(make_wheel(tmp_path / "f.whl", ("other/index.html",)), tmp_path / "static")
