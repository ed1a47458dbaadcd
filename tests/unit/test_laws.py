"""The laws of the house that a machine can read: who imports whom, what is never written, how long things get."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
STAGES = sorted((REPOSITORY / "stages").rglob("*.py"))
HOST = sorted((REPOSITORY / "nodes" / "host").rglob("*.py"))
CHECKPOINTS = sorted((REPOSITORY / "nodes" / "checkpoints").rglob("*.py"))
NODES = sorted((REPOSITORY / "nodes").glob("*.py"))
PACK = [REPOSITORY / "__init__.py", *STAGES, *NODES, *HOST, *CHECKPOINTS]
COMMANDS = [REPOSITORY / "studio.py", *sorted((REPOSITORY / "commands").rglob("*.py"))]
TOOLS = [REPOSITORY / "dev.py", *COMMANDS, *sorted((REPOSITORY / "tools").rglob("*.py"))]
RUN_INSIDE = {
    "train.py": {"torch", "transformers", "PIL"},
    "sheets.py": {"PIL"},
    "results.py": {"fsspec"},
    "cluster.py": {"ray"},
    "workflow_thumbnails.py": {"PIL"},
    "sheet.py": {"PIL"},
    "icon.py": {"PIL"},
    "banner.py": {"PIL"},
}
"""Commands that run again inside the environment, and what they need of it."""
OF_STAGES = {"torch", "einops", "safetensors", "numpy"}
OF_TRAINING = {*OF_STAGES, "PIL"}
MOST_LINES, MOST_FUNCTION_LINES = 350, 60


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def each(paths: list[Path]) -> Callable[[Callable[[Path], None]], Callable[[], None]]:
    """Run a test on every file, and tell of all files that fail it."""

    def decorate(test: Callable[[Path], None]) -> Callable[[], None]:
        def on_all() -> None:
            wrong = []
            for path in paths:
                try:
                    test(path)
                except AssertionError as error:
                    wrong.append(f"{name_of(path)}: {error}")
            assert not wrong, "\n" + "\n".join(wrong)

        on_all.__name__, on_all.__doc__ = test.__name__, test.__doc__
        return on_all

    return decorate


def tree(path: Path) -> ast.Module:
    """The file as Python 3.10 reads it."""
    return ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))


def imports(path: Path) -> Iterator[str]:
    """Every imported module: absolute names as they are, relative ones as dotted names from the repository's root."""
    package = list(path.relative_to(REPOSITORY).parent.parts)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
        elif isinstance(node, ast.ImportFrom):
            assert node.level - 1 <= len(package), f"{name_of(path)} imports from outside the repository"
            start = package[: len(package) - node.level + 1]
            base = [*start, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                inner = REPOSITORY.joinpath(*base, alias.name)
                found = inner.is_dir() or inner.with_suffix(".py").is_file()
                yield "." + ".".join([*base, alias.name] if found else base)


def outside(path: Path) -> set[str]:
    """The packages outside the repository and the standard library that a file imports."""
    found = {name.split(".")[0] for name in imports(path) if not name.startswith(".")}
    return found - set(sys.stdlib_module_names)


def inside(path: Path) -> set[str]:
    """The modules of the repository that a file imports, as ``stages.inputs.canvas``."""
    return {name[1:] for name in imports(path) if name.startswith(".")}


# Who imports whom


@each(STAGES)
def test_stages_know_torch_and_nothing_of_the_host(path):
    assert outside(path) <= (OF_TRAINING if path.parent.name == "training" else OF_STAGES)
    assert all(name.startswith("stages") for name in inside(path))


@each(NODES)
def test_nodes_are_thin(path):
    """They know the node API; tensors and the host's insides are behind ``nodes.host``."""
    assert outside(path) <= {"comfy_api"}
    assert all(name.startswith(("nodes", "stages")) for name in inside(path))


@each(HOST + CHECKPOINTS)
def test_nothing_points_back_to_the_nodes(path):
    own = name_of(path).split("/")[1]
    allowed = ("stages", "nodes.host", "nodes.checkpoints") if own == "host" else ("stages", "nodes.checkpoints")
    assert all(name.startswith(allowed) for name in inside(path))


@each([path for path in PACK if path not in HOST])
def test_comfy_is_imported_by_the_host_layer_alone(path):
    assert "comfy" not in outside(path)


@each(PACK)
def test_imports_inside_the_pack_are_relative(path):
    assert not outside(path) & {"stages", "nodes", "cascade_studio", "custom_nodes", "tests", "tools"}


@each(TOOLS)
def test_commands_need_the_standard_library_only(path):
    """Those that need the pack run again inside the environment."""
    assert outside(path) <= {"tools", "studio", "cascade_studio"} | RUN_INSIDE.get(path.name, set())


def test_no_import_goes_round():
    found = {name_of(path)[:-3].replace("/", ".").removesuffix(".__init__"): inside(path) for path in PACK[1:]}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for other in sorted(found.get(module, ())):
                if not module.startswith(f"{other}."):
                    visit(other, (*above, module))
            done.add(module)

    for module in found:
        visit(module, ())
    assert len(done) > 30


# What is never written


@each(PACK)
def test_no_print_no_global_no_assertion_for_users(path):
    for node in ast.walk(tree(path)):
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        assert called not in ("print", "breakpoint", "exec", "eval"), f"line {node.lineno}: {called}"
        assert not isinstance(node, ast.Global), f"line {node.lineno}: a global that changes"
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: an assertion, which says nothing to a user"
        bare = isinstance(node, ast.ExceptHandler) and node.type is None
        assert not bare, f"line {node.lineno}: an except that catches everything"


@each(PACK)
def test_loggers_are_named_after_their_module(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "logging":
            assert node.attr in ("getLogger", "Logger", "DEBUG", "INFO", "WARNING", "ERROR"), f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "getLogger":
            assert [ast.unparse(argument) for argument in node.args] == ["__name__"], f"line {node.lineno}"


@each(PACK)
def test_nothing_is_assigned_into_the_host(path):
    """No attribute of ``comfy.*`` or of another imported host module is replaced."""
    for node in ast.walk(tree(path)):
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [getattr(node, "target", None)]
            if isinstance(node, (ast.AugAssign, ast.AnnAssign))
            else []
        )
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
            targets = [ast.Attribute(node.args[0], "", ast.Store())]
        for target in targets:
            while isinstance(target, (ast.Attribute, ast.Subscript)):
                target = target.value
                root = getattr(target, "id", "")
                assert root not in ("comfy", "folder_paths", "latent_preview", "comfy_api"), f"line {node.lineno}"


@each([path for path in STAGES if path.name != "__init__.py"])
def test_stages_hold_no_tensors(path):
    module = importlib.import_module("cascade_studio." + name_of(path)[:-3].replace("/", "."))
    held = [name for name, value in vars(module).items() if isinstance(value, (torch.Tensor, torch.nn.Module))]
    assert not held


# How it is written


@each(PACK + TOOLS)
def test_files_and_functions_stay_small(path):
    """A schema is a table, one argument a line, and may be as long as its inputs are many."""
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_LINES
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name != "define_schema":
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MOST_FUNCTION_LINES, f"{node.name} has {lines} lines"


@each(PACK + TOOLS)
def test_every_module_says_what_it_is(path):
    parsed = tree(path)
    assert ast.get_docstring(parsed)
    if len(parsed.body) > 1:
        future = [node for node in parsed.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
        assert future and future[0].names[0].name == "annotations"
