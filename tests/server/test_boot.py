"""The pack inside real servers: loaded without a complaint by every pinned host it supports, refused by older ones."""

from __future__ import annotations

import re
import shutil
import urllib.request

import harness
import pytest

from cascade_studio.commands.messages import Stop
from tools import locales
from tools.env import current_setup
from tools.server import PACK, Base, HostServer


@pytest.mark.smoke
def test_every_node_is_registered_and_described(server):
    nodes = server.pack_nodes()
    assert nodes, "no node of the pack is registered"
    info = server.client.get("/object_info")
    for name in nodes:
        node = info[name]
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        assert node["category"].startswith("Cascade Studio"), name
        assert [key for key, spec in inputs.items() if not spec[1].get("tooltip")] == [], name
        assert all(node["output_tooltips"]) and len(node["output_tooltips"]) == len(node["output"]), name


@pytest.mark.smoke
def test_the_server_is_the_version_it_should_be(server):
    stats = server.client.get("/system_stats")
    assert stats["system"]["comfyui_version"].lstrip("v") == server.setup.host.version


def test_the_pictures_of_the_help_are_served_as_pictures(server):
    """Where the frontend looks: relative to the page, which lies beside the extension's scripts."""
    name = "pictures/CascadeStudio_Load.svg"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        f"{server.client.url}/extensions/{PACK}/docs/{name}"
    ) as answer:
        assert answer.headers.get_content_type() == "image/svg+xml"
        assert answer.read() == (harness.REPOSITORY / "web" / "docs" / name).read_bytes()


def test_every_node_has_its_help_where_the_frontend_looks(server):
    """In each language, in the folder that the node's module names; pictures and links lead to files that are there."""
    nodes = locales.own(server.client.get("/object_info"))
    targets = set()
    for name, node in nodes.items():
        docs = f"/extensions/{node['python_module'].split('.')[1]}/docs"
        for page in (f"{name}.md", *(f"{name}/{language}.md" for language in locales.LANGUAGES[1:])):
            text = (locales.PAGES / page).read_text(encoding="utf-8")
            assert server.client.fetch(f"{docs}/{page}").decode() == text, page
            found = re.findall(r"\]\(([^)#]+)\)", text)
            targets |= {f"{docs}/{target}" for target in found if not target.startswith("https://")}
    assert len(targets) > len(nodes), "each page has a picture of its own"
    for target in sorted(targets):
        assert server.client.fetch(target), target


@pytest.mark.parametrize(
    "change, words",
    (
        ((r"^OLDEST_HOST = .*", "OLDEST_HOST = (99, 1, 0)"), r"needs ComfyUI 99\.1\.0 or newer"),
        ((r"^WEB_DIRECTORY", "import no_such_module\nWEB_DIRECTORY"), "no_such_module"),
    ),
)
def test_a_pack_that_cannot_load_is_noticed_and_says_why(change, words, tmp_path):
    """ComfyUI itself starts either way: what stops is the pack, and a run on it."""
    pack = tmp_path / "pack"
    shutil.copytree(harness.REPOSITORY, pack, ignore=shutil.ignore_patterns(".git", "tests", "__pycache__"))
    code = (pack / "__init__.py").read_text(encoding="utf-8")
    changed = re.sub(*change, code, count=1, flags=re.MULTILINE)
    assert changed != code
    (pack / "__init__.py").write_text(changed, encoding="utf-8")
    base = Base(pack=pack)
    try:
        with pytest.raises(Stop, match=words), HostServer(current_setup(), base):
            pass
    finally:
        base.close()
