"""Inputs that choose model files, and what every node with such inputs has in common."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io

from .host.files import fetch, names
from .host.machine import FAST_FP8
from .host.models.load import AUTO, DTYPES, ModelPart
from .host.nothing import give_or_block

CHECKPOINT = names.FROM_CHECKPOINT
NONE = names.NONE


def file_input(
    role: str, tooltip: str, extra: tuple[str, ...] = (), library: names.Library | None = None
) -> io.Combo.Input:
    """A file name: the files here, then published ones; ``extra`` are choices that are no files.

    That it is one goes to the web extension as ``file``, which of the names would be fetched as ``published``, and
    what is known of them as ``facts``: name → bytes, whether only about, folder, licence. A node with several inputs
    gives them one ``library``, which lists every folder once.
    """
    library = library or names.Library()
    published = library.list_published(role)
    return io.Combo.Input(
        role,
        options=library.list_names(role, extra),
        extra_dict={"file": role, "published": published, "facts": fetch.list_facts(role, published)},
        tooltip=f"{tooltip} After the files here follow published ones, fetched when needed.",
    )


def missing_input() -> io.Combo.Input:
    """The input ``missing_files``: what to do about published files that are not here."""
    return io.Combo.Input(
        "missing_files",
        options=list(fetch.MODES),
        default=fetch.ASK_IF_LARGE,
        optional=True,
        tooltip=(
            "What to do about published files that are not here: download shows what it takes and fetches them, ask "
            "stops and shows it, never stops and tells how to get them by hand. ask if large fetches up to 1 GB at "
            "once and asks above that."
        ),
    )


def dtype_input(name: str, what: str, fast: bool = True) -> io.Combo.Input:
    """``fast``: whether what it is for can also compute in 8 bits."""
    return io.Combo.Input(
        name,
        options=[AUTO, *(dtype for dtype in DTYPES if fast or dtype != FAST_FP8)],
        default=AUTO,
        advanced=True,
        tooltip=(
            f"Number format of {what}. auto follows the host's flags and this machine; a choice here wins over "
            "both. fp8 stores half as much and computes in the machine's own format."
        ),
    )


def compile_input() -> io.Boolean.Input:
    """Whether both stages run compiled, as with Compile Cascade."""
    return io.Boolean.Input(
        "compile",
        default=False,
        optional=True,
        advanced=True,
        tooltip=(
            "As Compile Cascade on both stages: the same picture, faster from the second step on. The first one waits "
            "for the compiler."
        ),
    )


class FileInputs:
    """A node some of whose inputs are names of model files, which it checks itself.

    The host's own refusal does not say what to do, so ``validate_inputs`` takes the file inputs from it: a missing file
    is fetched, or gets its sentence, when the node runs, before anything is loaded. By taking ``input_types`` a text
    from another node can be a file's name, too. The host asks for these inputs by the names in the signature.
    """

    ROLES: tuple[str, ...] = ()
    CHECKED_HERE: tuple[str, ...] = ()
    """Further inputs that the node checks itself when it runs."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not cls.ROLES or any(getattr(base, "ROLES", ()) == cls.ROLES for base in cls.__mro__[1:]):
            return  # FileLoader itself, or the host's locked copy of a node
        names_of = [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            for name in ("cls", *cls.ROLES, *cls.CHECKED_HERE)
        ]
        types = inspect.Parameter("input_types", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)

        def validate_inputs(cls: type[FileInputs], *, input_types: Any = None, **chosen: Any) -> bool | str:
            wrong = cls.check_files(chosen)
            if input_types and not wrong:
                wrong = names.check_links(cls.define_schema().inputs, input_types, cls.ROLES)
            return wrong or True

        validate_inputs.__signature__ = inspect.Signature([*names_of, types])
        cls.validate_inputs = classmethod(validate_inputs)

    @classmethod
    def check_files(cls, chosen: dict[str, Any]) -> str:
        """What is wrong with the chosen files before any is looked for; "" if nothing is."""
        return next(filter(None, (names.check_choice(role, chosen.get(role)) for role in cls.ROLES)), "")

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> str:
        """A hash of the files that the inputs name, so that a node runs again after one of them changed."""
        return names.stamp_all({role: given.get(role) for role in cls.ROLES})


class FileLoader(FileInputs):
    """A node that loads networks from the files in its inputs: it finds or fetches them,
    then hands them to ``load``.
    """

    NOTHING: dict[int, str] = {}
    """What is said at the outputs that may have nothing, by their place."""

    @classmethod
    def load(cls, parts: dict[str, ModelPart | None], **settings: Any) -> tuple[Any, ...]:
        """The node's outputs, from what is in its files by input."""
        raise NotImplementedError

    @classmethod
    def execute(cls, missing_files: str = fetch.DOWNLOAD, preset: str = fetch.OWN, **given: Any) -> io.NodeOutput:
        chosen = {role: given.pop(role, NONE) for role in cls.ROLES}
        found = fetch.find_files(cls.hidden.unique_id, chosen, missing_files, preset)
        parts = {role: found.parts.find(role) for role in cls.ROLES}
        outputs = cls.load(parts, **given)
        given_or_blocked = [give_or_block(value, cls.NOTHING.get(slot, "")) for slot, value in enumerate(outputs)]
        return io.NodeOutput(*given_or_blocked, ui=fetch.show_loaded(cls.hidden.unique_id, found, *outputs))
