"""Writes the finished nets as the files that ship, with their configs in the metadata.

Numbers are float16; the token table, and matrices that were trained to be such, float8.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cascade_studio.commands.train import Config
from cascade_studio.stages.files.header import MARKER, marker_text
from cascade_studio.stages.nets.prior_coder import PriorCoderConfig
from cascade_studio.stages.training.settings import Settings
from tools.cache import sha256
from tools.edit import CATALOGUE
from tools.small import MINI_FILES, MINI_FOLDER as FOLDER

from .eight_bits import FLOAT8, eight_bits
from .language import TABLE
from .loop import Place, frozen, write_atomically
from .nets import FURTHER, RESULTS, build, configs, load_trained
from .sizes import SHIPPED

log = logging.getLogger(__name__)

FILES = {  # part: (kind of its marker, file below the folder, laid out as ComfyUI's models folder)
    "stage_c": ("stage_c", MINI_FILES["prior"]),
    "stage_b": ("stage_b", MINI_FILES["decoder"]),
    "text": ("text_encoder", MINI_FILES["text_encoder"]),
    "vision": ("clip_vision", MINI_FILES["clip_vision"]),
    "stage_a": ("stage_a", MINI_FILES["stage_a"]),
}
PRIOR_CODER = MINI_FILES["image_encoder"]
MOST, MOST_OF_ONE = 48_000_000, 20_000_000


def export(place: Place, folder: Path = FOLDER) -> dict[str, int]:
    """Write every finished part to ``folder``; returns bytes by file. Raises where the files would be too large."""
    sizes = {}
    for part, (kind, name) in FILES.items():
        sizes[name] = _save(folder, name, kind, configs(place.sizes)[part], load_trained(place, part).state_dict())
    parts = {"encoder": load_trained(place, "encoder"), "previewer": load_trained(place, "previewer")}
    tensors = {f"{part}.{key}": value for part, net in parts.items() for key, value in net.state_dict().items()}
    sizes[PRIOR_CODER] = _save(
        folder, PRIOR_CODER, "stage_c_vae", PriorCoderConfig(place.sizes.encoder, place.sizes.previewer), tensors
    )
    total = sum(sizes.values())
    log.info("%d files, %.1f MB in all", len(sizes), total / 1e6)
    if total > MOST or max(sizes.values()) > MOST_OF_ONE:
        raise SystemExit(
            f"The files take {total / 1e6:.1f} MB, the largest {max(sizes.values()) / 1e6:.1f} MB: more "
            "than the repository takes. Make the nets in sizes.py narrower."
        )
    return sizes


def restore(place: Place, folder: Path = FOLDER) -> None:
    """Inverse of :func:`export`: in the work folder the results of the parts that first made each net, from the files
    that ship. Those of parts that train a net further stay away, since they would hide what is trained next.

    Raises SystemExit where the files were made with other sizes.
    """
    nets = read_shipped(folder)
    for name in {name for names in RESULTS.values() for name in names}:
        _check_sizes(place, name, nets[name])
    for part, names in RESULTS.items():
        if part not in FURTHER:
            write_atomically({name: nets[name] for name in names}, place.weights(part))


def restore_kept(place: Place, folder: Path = FOLDER) -> None:
    """Stage A as it ships, and the image encoder that ships as a start for the next one, unless they are there."""
    nets = read_shipped(folder)
    for name in ("stage_a", "encoder", "previewer"):
        _check_sizes(place, name, nets[name])
    if not place.weights("stage_a").is_file():
        write_atomically({"stage_a": nets["stage_a"]}, place.weights("stage_a"))
    start = place.start("encoder")
    if not start.is_file():
        write_atomically({name: nets[name] for name in ("encoder", "previewer")}, start)


def read_shipped(folder: Path = FOLDER) -> dict[str, dict[str, Tensor]]:
    """The tensors of every net in the files that ship, in float32."""
    nets = {part: _wide(folder / f"{name}.safetensors") for part, (_, name) in FILES.items()}
    for key, value in _wide(folder / f"{PRIOR_CODER}.safetensors").items():
        net, _, name = key.partition(".")
        nets.setdefault(net, {})[name] = value
    return nets


def configure_training(pictures: Path, output: Path, settings: Settings) -> Config:
    """A run of the nodes' trainer on the nets that ship and a folder of pictures."""
    return Config(
        stage_c=str(FOLDER / f"{FILES['stage_c'][1]}.safetensors"),
        text_encoder=str(FOLDER / f"{FILES['text'][1]}.safetensors"),
        image_encoder=str(FOLDER / f"{PRIOR_CODER}.safetensors"),
        pictures=[{"folder": str(pictures)}],
        output=str(output),
        settings=settings,
    )


def load_shipped(*names: str) -> dict[str, nn.Module]:
    """Nets that ship, by name; eval mode, no gradients."""
    tensors, nets = read_shipped(), {}
    for name in names:
        nets[name] = build(SHIPPED, name)
        nets[name].load_state_dict(tensors[name])
        frozen(nets[name])
    return nets


def _check_sizes(place: Place, name: str, tensors: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        wanted = {key: value.shape for key, value in build(place.sizes, name).state_dict().items()}
    if wanted != {key: value.shape for key, value in tensors.items() if key in wanted}:
        raise SystemExit(
            f"The {name} in mini/ has other sizes than the plan {place.sizes.name!r}: train it anew, or "
            "name the plan of the files that ship."
        )


def _wide(path: Path) -> dict[str, Tensor]:
    return {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}


def put_on_record(folder: Path = FOLDER, catalogue: Path = CATALOGUE) -> None:
    """Write size and hash of every file in ``folder`` into its entry of the catalogue; raises where it has none."""
    text = catalogue.read_text(encoding="utf-8")
    for path in sorted(folder.rglob("*.safetensors")):
        facts = f'"bytes": {path.stat().st_size}, "sha256": "{sha256(path)}", "provenance": "official commit"'
        entry = re.compile(
            rf'("name": "{re.escape(path.name)}"[^}}]*?)"bytes": \w+,\s+"sha256": [^,}}]+,\s+'
            r'"provenance": (?:null|"[^"]*")'
        )
        text, found = entry.subn(lambda match, facts=facts: match[1] + facts, text)
        if found != 1:
            raise SystemExit(f"{path.name} has {found} entries in {catalogue.name}. It needs one.")
    catalogue.write_text(text, encoding="utf-8")


def list_small_matrices(tensors: dict[str, Tensor]) -> set[str]:
    """The matrices of a net that was trained to its end in eight bits, which float8 keeps exactly; none of another."""
    matrices = {key: value for key, value in tensors.items() if value.is_floating_point() and value.dim() > 1}
    return set(matrices) if all(torch.equal(value, eight_bits(value)) for value in matrices.values()) else set()


def _says(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> bool:
    """Whether the file has these contents already; written anew it could differ in the order of its metadata."""
    if not path.is_file():
        return False
    with safe_open(path, "pt") as file:
        return (
            file.metadata() == metadata
            and set(file.keys()) == set(tensors)
            and all(_same(file.get_tensor(key), value) for key, value in tensors.items())
        )


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal byte for byte; float8 has no comparison of its own."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(*(each.flatten().view(torch.uint8) for each in (one, other)))
    )


def _save(folder: Path, name: str, kind: str, config: Any, tensors: dict[str, Tensor]) -> int:
    path = folder / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    compact, small = {}, list_small_matrices(tensors)
    for key, value in tensors.items():
        if value.is_floating_point():
            statistic = key.rpartition(".")[2].startswith("running_")  # few, and their range is that of the data
            eight = key == TABLE or key in small
            value = value.to(FLOAT8 if eight else torch.float32 if statistic else torch.float16)
            if not torch.isfinite(value.float()).all():
                raise SystemExit(f"{key} of {path.name} does not fit into {value.dtype}: train it to the end.")
        compact[key] = value.contiguous().cpu()
    metadata = {"format": "pt", MARKER: marker_text(kind, config)}
    if not _says(path, compact, metadata):
        draft = path.with_suffix(".new")
        save_file(compact, draft, metadata=metadata)
        draft.replace(path)
        path.chmod(0o644)
    log.info("%s: %.2f MB", path.name, path.stat().st_size / 1e6)
    return path.stat().st_size
