"""The laws of the house that a machine can read: who imports whom, what is never written, how long things get.

Each law finds offences in one file; ``test_the_law_is_kept`` asks every file that it is for, and
``test_an_offence_is_seen`` hands it one that was written for it.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from table import each

REPOSITORY = Path(__file__).resolve().parents[2]
MOST_LINES, MOST_FUNCTION_LINES, MOST_COLUMNS = 350, 60, 120
OF_STAGES = {"torch", "safetensors", "numpy"}
WITH_COMFYUI = OF_STAGES | {"PIL", "transformers", "aiohttp", "yaml", "psutil"}
"""What comes with ComfyUI; ray and fsspec are asked for where they are there."""
OPTIONAL = {"ray", "fsspec"}
DRAWN = {"workflow_thumbnails.py", "example_pictures.py", "sheet.py", "icon.py", "banner.py", "diagrams.py"}
DRAWN |= {"training_set.py", "cards.py"}
"""Commands that draw pictures, with Pillow, and run inside the environment."""
HOSTS = {"comfy", "comfy_extras", "folder_paths", "latent_preview", "comfy_api"}


@dataclass(frozen=True)
class Source:
    """A file: its name from the repository's root, and its text."""

    name: str
    text: str

    @property
    def tree(self) -> ast.Module:
        """As Python 3.10 reads it."""
        return ast.parse(self.text, feature_version=(3, 10))

    @property
    def folder(self) -> str:
        return self.name.rpartition("/")[0]

    def imports(self, *, late: bool = True) -> Iterator[str]:
        """Absolute names as they are, relative ones with a dot in front and dotted from the repository's root.

        Without ``late``, those of the module's own lines alone.
        """
        package = [part for part in self.folder.split("/") if part]
        for node in ast.walk(self.tree) if late else self.tree.body:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield node.module or ""
            elif isinstance(node, ast.ImportFrom):
                base = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])]
                for alias in node.names:
                    inner = REPOSITORY.joinpath(*base, alias.name)
                    found = inner.is_dir() or inner.with_suffix(".py").is_file()
                    yield "." + ".".join([*base, alias.name] if found else base)

    def outside(self) -> set[str]:
        """The packages outside the standard library that are imported absolutely."""
        found = {name.split(".")[0] for name in self.imports() if not name.startswith(".")}
        return found - set(sys.stdlib_module_names)

    def inside(self) -> set[str]:
        """The modules of the repository that are imported relatively, as ``stages.inputs.canvas``."""
        return {name[1:] for name in self.imports() if name.startswith(".")}


@lru_cache
def read(*patterns: str) -> tuple[Source, ...]:
    """The files that the patterns name."""
    paths = sorted({path for pattern in patterns for path in REPOSITORY.glob(pattern)})
    paths = [path for path in paths if "frozen" not in path.parts and "__pycache__" not in path.parts]
    return tuple(Source(p.relative_to(REPOSITORY).as_posix(), p.read_text(encoding="utf-8")) for p in paths)


STAGES = ("stages/**/*.py",)
NODES = ("nodes/*.py",)
BELOW_NODES = ("nodes/host/**/*.py", "nodes/checkpoints/**/*.py")
PACK = ("__init__.py", *STAGES, "nodes/**/*.py")
COMMANDS = ("studio.py", "commands/**/*.py")
TOOLS = ("dev.py", "tools/**/*.py")
TRAINING = ("training/**/*.py",)
TESTS = ("tests/**/*.py",)
SHIPPED = (*PACK, *COMMANDS)
ALL = (*SHIPPED, *TOOLS, *TRAINING, *TESTS)


# Who imports whom


def stages_know_torch_alone(source: Source) -> Iterator[str]:
    allowed = OF_STAGES | ({"PIL"} if source.folder.endswith("training") else set())
    yield from (f"imports {name}" for name in source.outside() - allowed)
    yield from (f"imports {name}" for name in source.inside() if not name.startswith("stages"))


def nodes_are_thin(source: Source) -> Iterator[str]:
    """They know the node API; tensors and the host's insides are behind ``nodes.host``."""
    yield from (f"imports {name}" for name in source.outside() - {"comfy_api"})
    yield from (f"imports {name}" for name in source.inside() if not name.startswith(("nodes", "stages")))


def nothing_points_back(source: Source) -> Iterator[str]:
    own = source.name.split("/")[1]
    allowed = ("stages", "nodes.host", "nodes.checkpoints") if own == "host" else ("stages", "nodes.checkpoints")
    shared = {"nodes"}  # nodes/__init__.py imports nothing, and holds the names that all of them share
    yield from (f"imports {name}" for name in source.inside() - shared if not name.startswith(allowed))


def comfy_stays_in_the_host_layer(source: Source) -> Iterator[str]:
    if not source.name.startswith("nodes/host/"):
        yield from (f"imports {name}" for name in source.outside() & {"comfy", "comfy_extras", "folder_paths"})


def inside_the_pack_imports_are_relative(source: Source) -> Iterator[str]:
    """On another machine a batch's actor loads the pack by its name first."""
    roots = {"stages", "nodes", "commands", "cascade_studio", "custom_nodes", "tests", "tools", "training"}
    if "load_pack()" in source.text:
        roots.remove("cascade_studio")
    yield from (f"imports {name}" for name in source.outside() & roots)


def the_pack_is_imported_by_its_name(source: Source) -> Iterator[str]:
    """``import nodes`` is the host's; ours are ``cascade_studio.nodes``, ``cascade_studio.stages``, ..."""
    for name in source.imports():
        if name.split(".")[0] in ("stages", "commands") or name.startswith("nodes."):
            yield f"imports {name}: say cascade_studio.{name}"


def commands_need_what_comes_with_comfyui(source: Source) -> Iterator[str]:
    yield from (f"imports {name}" for name in source.outside() - WITH_COMFYUI - OPTIONAL - {"cascade_studio", "tomli"})


def tools_need_the_standard_library_alone(source: Source) -> Iterator[str]:
    """Those that draw run inside the environment."""
    drawn = {"PIL"} if source.name.split("/")[-1] in DRAWN else set()
    yield from (f"imports {name}" for name in source.outside() - {"tools", "studio", "cascade_studio"} - drawn)


# What is never written


def users_get_sentences(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        if called in ("print", "breakpoint"):
            yield f"line {node.lineno}: {called}"
        if isinstance(node, ast.Assert):
            yield f"line {node.lineno}: an assertion, which says nothing to a user"
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"line {node.lineno}: an except that catches everything"


def text_is_never_run(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("exec", "eval"):
            yield f"line {node.lineno}: {node.func.id}"


STATE = {
    "note_fetched": "a file that a run has fetched keeps its fingerprint, or the host would run its node again",
    "note_plan": "a page that is loaded in the middle of a download asks what was told of it",
}
"""Functions that may change what their module holds, and why."""
CHANGERS = {"append", "extend", "insert", "update", "setdefault", "add", "pop", "popitem", "clear", "remove", "discard"}


def modules_have_no_state(source: Source) -> Iterator[str]:
    """No global statement, and no list, set or dict of a module that a function changes."""
    mutable = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)
    held = set()
    for node in source.tree.body:
        value = getattr(node, "value", None)
        called = isinstance(value, ast.Call) and ast.unparse(value.func) in ("dict", "list", "set", "defaultdict")
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and (isinstance(value, mutable) or called):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            held |= {target.id for target in targets if isinstance(target, ast.Name)}
    for function in ast.walk(source.tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            own = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            for node in ast.walk(function):
                name = ""
                if isinstance(node, ast.Global):
                    yield f"line {node.lineno}: a global that changes"
                elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
                    name = getattr(node.value, "id", "")
                elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in CHANGERS:
                    name = getattr(node.func.value, "id", "")
                if name in held - own and function.name not in STATE:
                    yield f"line {node.lineno}: {function.name} changes {name}"


def loggers_are_named_after_their_module(source: Source) -> Iterator[str]:
    allowed = ("getLogger", "Logger", "LoggerAdapter", "basicConfig", "DEBUG", "INFO", "WARNING", "ERROR")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "logging" and node.attr not in allowed:
            yield f"line {node.lineno}: logging.{node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "getLogger":
            if [ast.unparse(argument) for argument in node.args] != ["__name__"]:
                yield f"line {node.lineno}: {ast.unparse(node)}"


def nothing_is_assigned_into_the_host(source: Source) -> Iterator[str]:
    """No attribute of ``comfy.*`` or of another imported host module is replaced."""
    for node in ast.walk(source.tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
            targets = [ast.Attribute(node.args[0], "", ast.Store())]
        elif not isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
            continue
        for target in targets:
            while isinstance(target, (ast.Attribute, ast.Subscript)):
                target = target.value
                if getattr(target, "id", "") in HOSTS:
                    yield f"line {node.lineno}: into {target.id}"


# How it is written


def files_and_functions_stay_small(source: Source) -> Iterator[str]:
    """A schema is a table, one argument a line, and may be as long as its inputs are many."""
    if source.text.count("\n") > MOST_LINES:
        yield f"{source.text.count(chr(10))} lines, at most {MOST_LINES}"
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name != "define_schema":
            lines = node.end_lineno - node.lineno + 1
            if lines > MOST_FUNCTION_LINES:
                yield f"{node.name} has {lines} lines, at most {MOST_FUNCTION_LINES}"


def lines_stay_short(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.text.split("\n"), 1):
        if len(line) > MOST_COLUMNS:
            yield f"line {number} has {len(line)} columns, at most {MOST_COLUMNS}"


def every_module_says_what_it_is(source: Source) -> Iterator[str]:
    if not ast.get_docstring(source.tree):
        yield "has no docstring"
    if len(source.tree.body) > 1:
        future = [node for node in source.tree.body if getattr(node, "module", "") == "__future__"]
        if not future or future[0].names[0].name != "annotations":
            yield "does not import annotations from __future__"


@lru_cache
def documented() -> tuple[dict[str, set[str]], set[tuple[str, str]]]:
    """The bases of every class; and methods with a docstring, by their class, a Protocol's by its folder too."""
    bases: dict[str, set[str]] = defaultdict(set)
    told: set[tuple[str, str]] = set()
    for source in read(*SHIPPED, *TOOLS, *TRAINING):
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef):
                bases[node.name] |= {re.split(r"[.\[]", ast.unparse(base))[-1] for base in node.bases}
                places = (node.name, source.folder) if "Protocol" in bases[node.name] else (node.name,)
                methods = (part for part in node.body if isinstance(part, ast.FunctionDef) and ast.get_docstring(part))
                told |= {(place, method.name) for method in methods for place in places}
    return bases, told


def public_definitions_say_what_they_are(source: Source) -> Iterator[str]:
    """By a docstring: their own, that of the method they override, or that of a Protocol in their folder.

    A node says it in the description of its schema, a network's ``forward`` in the docstring of its class.
    """
    bases, told = documented()

    def is_told(owner: str, name: str) -> bool:
        return (owner, name) in told or any(is_told(base, name) for base in bases.get(owner, ()))

    def visit(node: ast.Module | ast.ClassDef, owner: str) -> Iterator[str]:
        for part in node.body:
            if not isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or part.name[0] == "_":
                continue
            elsewhere = any(ast.unparse(line).endswith(".setter") for line in part.decorator_list)
            elsewhere |= bool(owner) and part.name in ("define_schema", "execute", "forward")
            elsewhere |= isinstance(part, ast.ClassDef) and "description=" in (
                ast.get_source_segment(source.text, part) or ""
            )
            if not (ast.get_docstring(part) or elsewhere or is_told(owner, part.name)):
                if not owner or (source.folder, part.name) not in told:
                    yield f"line {part.lineno}: {part.name}"
            if isinstance(part, ast.ClassDef):
                yield from visit(part, part.name)

    yield from visit(source.tree, "")


def nodes_are_typed(source: Source) -> Iterator[str]:
    """Every argument and result of a public function."""
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            untyped = [each.arg for each in given if each.annotation is None and each.arg not in ("self", "cls")]
            if untyped or node.returns is None:
                yield f"line {node.lineno}: {node.name} {', '.join(untyped) or 'has no result type'}"


IRREGULAR = (
    "said told shown kept written drawn made found put spoken taken given built sent held chosen known seen done"
)
NO_PARTICIPLES = {"need", "seed", "feed", "embed", "speed", "exceed", "proceed", "shed"}


def functions_are_not_named_by_a_participle(source: Source) -> Iterator[str]:
    """A function does something: ``merge_files``, not ``merged``, nor ``merged_files``. Properties, fixtures and bools
    may be adjectives."""
    for node in ast.walk(source.tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        first, *more = node.name.strip("_").split("_")
        participle = first in IRREGULAR.split() or (first.endswith("ed") and first not in NO_PARTICIPLES)
        noun = any(re.search(r"property|fixture|contextmanager", ast.unparse(line)) for line in node.decorator_list)
        verb = first == "put" and (more or node.name.startswith("_"))
        if participle and not (noun or verb) and (node.returns is None or ast.unparse(node.returns) != "bool"):
            yield f"line {node.lineno}: {node.name}"


BY_WORDS = {"is_out_of_memory": "torch has no type and no field for the memory of the processor"}
"""Functions that may go by the words of an error, and why."""


def nothing_goes_by_the_words_of_an_error(source: Source) -> Iterator[str]:
    """No ``"full" in str(error)``: errors have types and fields, and their words change."""
    for function in ast.walk(source.tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) or function.name in BY_WORDS:
            continue
        errors = {node.name for node in ast.walk(function) if isinstance(node, ast.ExceptHandler)}
        arguments = [each for each in function.args.args if each.annotation is not None]
        errors |= {each.arg for each in arguments if re.search("Error|Exception", ast.unparse(each.annotation))}
        for node in ast.walk(function):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn, ast.Eq)):
                if any(f"str({error})" in ast.unparse(node) for error in errors):
                    yield f"line {node.lineno}: {ast.unparse(node)}"


# The laws, for which files they are, and an offence that each of them sees


@dataclass(frozen=True)
class Law:
    find: Callable[[Source], Iterator[str]]
    files: Sequence[str]
    offence: str
    where: str = "stages/x.py"


LAWS = (
    Law(stages_know_torch_alone, STAGES, "import requests"),
    Law(stages_know_torch_alone, STAGES, "from ...nodes.host import latents", "stages/lora/x.py"),
    Law(nodes_are_thin, NODES, "import torch", "nodes/x.py"),
    Law(nothing_points_back, BELOW_NODES, "from ..loaders import x", "nodes/host/x.py"),
    Law(nothing_points_back, BELOW_NODES, "from ..host import latents", "nodes/checkpoints/x.py"),
    Law(comfy_stays_in_the_host_layer, SHIPPED, "import comfy.utils", "nodes/x.py"),
    Law(inside_the_pack_imports_are_relative, (*PACK, "commands/**/*.py"), "import cascade_studio.stages"),
    Law(the_pack_is_imported_by_its_name, (*TOOLS, *TRAINING, *TESTS), "from stages.errors import X", "tests/x.py"),
    Law(commands_need_what_comes_with_comfyui, COMMANDS, "import requests", "commands/x.py"),
    Law(tools_need_the_standard_library_alone, TOOLS, "import torch", "tools/x.py"),
    Law(users_get_sentences, SHIPPED, "print(1)"),
    Law(users_get_sentences, SHIPPED, "assert x"),
    Law(users_get_sentences, SHIPPED, "try:\n    x()\nexcept:\n    pass"),
    Law(
        nothing_goes_by_the_words_of_an_error,
        (*SHIPPED, *TOOLS, *TRAINING),
        "def f():\n    try:\n        g()\n    except OSError as error:\n        return 'full' in str(error)",
    ),
    Law(
        nothing_goes_by_the_words_of_an_error,
        (*SHIPPED, *TOOLS, *TRAINING),
        "def f(error: Exception):\n    return 'full' in str(error).lower()",
    ),
    Law(text_is_never_run, ALL, "x = eval('1')"),
    Law(modules_have_no_state, SHIPPED, "SEEN = {}\ndef note(x):\n    SEEN[x] = 1"),
    Law(modules_have_no_state, SHIPPED, "SEEN: list = []\ndef note(x):\n    SEEN.append(x)"),
    Law(modules_have_no_state, SHIPPED, "def note(x):\n    global SEEN\n    SEEN = x"),
    Law(loggers_are_named_after_their_module, SHIPPED, "import logging\nlog = logging.getLogger('mine')"),
    Law(loggers_are_named_after_their_module, SHIPPED, "import logging\nlogging.info('x')"),
    Law(nothing_is_assigned_into_the_host, SHIPPED, "comfy.sd.load = 1"),
    Law(nothing_is_assigned_into_the_host, SHIPPED, "setattr(comfy.sd, 'load', 1)"),
    Law(files_and_functions_stay_small, (*SHIPPED, *TOOLS, *TRAINING), "x = 1\n" * 351),
    Law(files_and_functions_stay_small, (*SHIPPED, *TOOLS, *TRAINING), "def f():\n" + "    x = 1\n" * 60),
    Law(lines_stay_short, ALL, "x = 1  # " + "-" * 120),
    Law(every_module_says_what_it_is, ALL, "from __future__ import annotations\nx = 1"),
    Law(every_module_says_what_it_is, ALL, '"""It."""\nx = 1'),
    Law(public_definitions_say_what_they_are, (*SHIPPED, *TOOLS, *TRAINING), "def make_it() -> int:\n    return 1"),
    Law(public_definitions_say_what_they_are, (*SHIPPED, *TOOLS, *TRAINING), "class It:\n    x = 1"),
    Law(
        public_definitions_say_what_they_are,
        (*SHIPPED, *TOOLS, *TRAINING),
        'class It:\n    """It."""\n\n    def make_it(self) -> int:\n        return 1',
    ),
    Law(nodes_are_typed, ("nodes/**/*.py",), "def execute(cls, image) -> int:\n    return 1"),
    Law(nodes_are_typed, ("nodes/**/*.py",), "def execute(cls, image: int):\n    return 1"),
    Law(functions_are_not_named_by_a_participle, (*SHIPPED, *TOOLS, *TRAINING), "def merged(x):\n    return x"),
    Law(functions_are_not_named_by_a_participle, (*SHIPPED, *TOOLS, *TRAINING), "def said(x) -> str:\n    return x"),
    Law(functions_are_not_named_by_a_participle, (*SHIPPED, *TOOLS, *TRAINING), "def merged_files(x):\n    return x"),
)


@pytest.mark.parametrize("law", {law.find: law for law in LAWS}.values(), ids=lambda law: law.find.__name__)
def test_the_law_is_kept(law):
    sources = read(*law.files)
    assert sources
    wrong = [f"{source.name}: {offence}" for source in sources for offence in law.find(source)]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{law.find.__name__}: {law.offence.splitlines()[-1][:30]}")
def test_an_offence_is_seen(law):
    assert list(law.find(Source(law.where, law.offence)))
    assert not list(law.find(Source(law.where, '"""It."""\n\nfrom __future__ import annotations\n')))


# Laws about several files


def find_circle(found: dict[str, set[str]]) -> list[str]:
    """The modules of one circle of imports; empty where there is none."""
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> list[str]:
        if module in above:
            return [*above[above.index(module) :], module]
        if module not in done:
            for other in sorted(found.get(module, ())):
                circle = [] if module.startswith(f"{other}.") else visit(other, (*above, module))
                if circle:
                    return circle
            done.add(module)
        return []

    return next((circle for module in sorted(found) if (circle := visit(module, ()))), [])


def module_name(source: Source) -> str:
    return source.name[:-3].replace("/", ".").removesuffix(".__init__")


def imported(source: Source, *, late: bool = True) -> set[str]:
    """Modules of the repository, relative or by their whole name."""
    names = {name.removeprefix(".").removeprefix("cascade_studio.") for name in source.imports(late=late)}
    roots = ("stages", "nodes", "commands", "tools", "training")
    return {name for name in names if name.split(".")[0] in roots}


def test_no_import_goes_round():
    """Not even by an import inside a function."""
    found = {
        module_name(source): imported(source) - {module_name(source)} for source in read(*SHIPPED, *TOOLS, *TRAINING)
    }
    assert len(found) > 100
    assert not find_circle(found), " -> ".join(find_circle(found))
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def constants(sources: Sequence[Source]) -> dict[tuple[str, str], set[str]]:
    """Files by name and value of the constants of modules that say something: no small number, no short word."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for source in sources:
        for node in source.tree.body:
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                if node.targets[0].id == "CATEGORY":
                    continue  # where nodes stand in the host's menu
                value = ast.unparse(node.value)  # sums and comparisons are facts as well
                if len(value) >= 5 and node.targets[0].id.isupper():
                    found[node.targets[0].id, value].add(source.name)
    return found


def test_no_fact_is_written_twice():
    """No constant of one name and one value in two files of what ships."""
    twice = {key: files for key, files in constants(read(*SHIPPED)).items() if len(files) > 1}
    assert not twice, "\n".join(f"{name} = {value[:60]}: {sorted(files)}" for (name, value), files in twice.items())
    planted = [Source(name, "EPS = 0.000001\nSIDE = 4\nGIB = 1024**3") for name in ("a.py", "b.py")]
    assert [name for (name, _), files in constants(planted).items() if len(files) > 1] == ["EPS", "GIB"]


def classes(sources: Iterable[Source]) -> dict[str, set[str]]:
    """Files by name of the public classes that stand in them."""
    found: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        for node in source.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].add(source.name)
    return found


def test_one_word_names_one_class():
    """No public class of what ships, or of the tools, has the name of another one."""
    twice = {name: files for name, files in classes(read(*SHIPPED, *TOOLS)).items() if len(files) > 1}
    assert not twice, "\n".join(f"{name}: {sorted(files)}" for name, files in twice.items())
    planted = [Source(name, "class Run:\n    pass\n\n\nclass _Own:\n    pass") for name in ("a.py", "b.py")]
    assert [name for name, files in classes(planted).items() if len(files) > 1] == ["Run"]


@each([source for source in read(*STAGES) if not source.name.endswith("__init__.py")], module_name)
def test_stages_hold_no_tensors(source):
    module = importlib.import_module(f"cascade_studio.{module_name(source)}")
    assert not [name for name, value in vars(module).items() if isinstance(value, (torch.Tensor, torch.nn.Module))]
