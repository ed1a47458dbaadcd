"""Plans: what is missing, where it goes, what it takes, and how the sentences read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save

from cascade_studio import stages
from cascade_studio.nodes.checkpoints import disk, find, partial
from cascade_studio.nodes.checkpoints.catalogue import Licence, load
from cascade_studio.nodes.checkpoints.errors import BadCatalogue, CheckpointError, DiskFull
from cascade_studio.nodes.checkpoints.find import Finder, locate_bundled, models_roots, with_bundled
from cascade_studio.nodes.checkpoints.partial import Partial, append_suffix, find_gaps, merge_ranges
from cascade_studio.nodes.checkpoints.plan import make_plan, target_root
from cascade_studio.nodes.checkpoints.progress import Meter, describe_duration


def plan_for(tmp_path: Path, *keys: str):
    return make_plan(load().choose(keys), Finder(models_roots(tmp_path / "models")))


def test_a_plan_says_file_size_target_licence_and_space(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda path: 20 * 10**9)
    plan = plan_for(tmp_path, "all-in-one")
    checkpoints = tmp_path / "models" / "checkpoints"
    assert (
        plan.describe()
        == f"""2 files are missing, 13.8 GB to fetch:
  stable_cascade_stage_c.safetensors, 9.22 GB, to {checkpoints / "stable_cascade_stage_c.safetensors"}
  stable_cascade_stage_b.safetensors, 4.55 GB, to {checkpoints / "stable_cascade_stage_b.safetensors"}
Licence: Stability AI Non-Commercial Research Community License (28 November 2023): non-commercial and research use only
Free on the disk of {tmp_path}: 20.0 GB."""
    )
    assert plan.to_come == 9224575566 + 4552331265
    assert json.loads(json.dumps(plan.as_json()))["missing"][0]["provenance"] == "official commit"
    assert "By hand: download https://huggingface.co/" in plan.by_hand()


def test_different_licences_are_said_of_each_file(tmp_path):
    text = plan_for(tmp_path, "stage_a", "stage_a_ft_hq", "text_encoder").describe()
    assert text.count("    Licence: Stability AI") == 2 and text.count("    Licence: MIT") == 1
    assert "3 files are missing, about 1.54 GB to fetch" in text
    assert "stable_cascade_text_encoder.safetensors, about 1.39 GB, to" in text


def test_too_little_space_is_said_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda path: 10**9)
    plan = plan_for(tmp_path, "stage_c_lite_bf16")
    assert "1.00 GB; 1.06 GB too little." in plan.describe()
    with pytest.raises(DiskFull, match="has 1.00 GB free; the files to fetch need 2.06 GB there.*choose smaller files"):
        plan.check_space()
    monkeypatch.setattr(disk, "free_bytes", lambda path: plan.to_come + 5)
    plan.check_space(5)
    with pytest.raises(DiskFull):
        plan.check_space(6)


def test_what_a_stopped_download_left_is_counted(tmp_path):
    entry = load().entries["stage_a"]
    target = tmp_path / "models" / "vae" / "Stable-Cascade" / entry.name
    target.parent.mkdir(parents=True)
    left = Partial(target)
    left.belongs_to("https://x/", "1", entry.bytes, None)
    left.write(0, 0, b"a" * 3_000_000)
    left.leave()
    [missing] = plan_for(tmp_path, "stage_a").missing
    assert (missing.here, missing.to_come) == (3_000_000, entry.bytes - 3_000_000)
    assert "3.00 MB of it are here already" in plan_for(tmp_path, "stage_a").describe()


def test_new_files_go_to_the_folder_that_is_named_like_its_key(tmp_path):
    entry = load().entries["stage_c_bf16"]
    unet, own = tmp_path / "unet", tmp_path / "diffusion_models"
    assert target_root(entry, {"diffusion_models": [unet, own]}) == own
    assert target_root(entry, {"diffusion_models": [unet]}) == unet
    with pytest.raises(BadCatalogue, match="belongs into the folder 'diffusion_models', which this ComfyUI"):
        target_root(entry, {"vae": [own]})


def test_a_name_from_outside_cannot_leave_the_folder(tmp_path):
    entry = replace(load().entries["stage_a"], name="../../evil.safetensors", licence=Licence("x"))
    with pytest.raises(BadCatalogue, match="leads out of the folder"):
        make_plan([entry], Finder(models_roots(tmp_path)))


def test_what_comes_with_the_pack_is_found_last_and_missed_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(find, "PACK", tmp_path / "pack")
    [entry] = load().choose(["cascade_mini_stage_a"])
    entry = replace(entry, bytes=None, sha256=None, provenance=None)  # another file stands in for it
    roots = models_roots(tmp_path / "models")
    everywhere = with_bundled(roots, load().entries.values())
    assert everywhere["vae"] == [*roots["vae"], tmp_path / "pack" / "mini" / "vae"]
    with pytest.raises(CheckpointError, match="stage_a.safetensors comes with Cascade Studio.*Install the pack again"):
        make_plan([entry], Finder(everywhere), roots)
    stored = locate_bundled(entry)
    stored.parent.mkdir(parents=True)
    stored.write_bytes(tiny_stage_a())
    [found] = make_plan([entry], Finder(everywhere), roots).found
    assert found.path == stored
    mine = roots["vae"][0] / entry.name
    mine.parent.mkdir(parents=True)
    mine.write_bytes(tiny_stage_a())
    assert make_plan([entry], Finder(everywhere), roots).found[0].path == mine


def tiny_stage_a() -> bytes:
    net = stages.StageA(stages.StageAConfig(bottleneck_blocks=1, c_hidden=16, codebook_size=32))
    return save({key: value.contiguous() for key, value in net.state_dict().items()})


def test_addresses_in_a_plan_hold_no_secret(tmp_path):
    entry = replace(load().entries["stage_a"], url="https://example.org/a.safetensors?token=geheim")
    plan = make_plan([entry], Finder(models_roots(tmp_path)))
    assert "geheim" not in json.dumps(plan.as_json()) + plan.describe() + plan.by_hand()


def test_all_here_is_said(tmp_path):
    assert make_plan([], Finder({})).describe() == "All files are here; nothing is fetched."


# The parts of a file


def test_ranges_are_joined_and_gaps_are_found():
    assert merge_ranges([(5, 9), (0, 2), (2, 4), (8, 12), (3, 3)]) == [(0, 4), (5, 12)]
    assert find_gaps([(0, 4), (5, 12)], 20) == [(4, 5), (12, 20)]
    assert find_gaps([], 3) == [(0, 3)] and find_gaps([(0, 3)], 3) == []


def test_the_sidecar_never_promises_more_than_was_saved(tmp_path):
    target = tmp_path / "x.safetensors"
    first = Partial(target)
    first.belongs_to("here", '"e"', 10, "f" * 64)
    first.write(0, 0, b"0123")
    first.save()
    first.write(0, 6, b"67")
    first.close()
    again = Partial(target)
    assert (again.done, again.size, again.validator, again.official_hash) == ([(0, 4)], 10, '"e"', "f" * 64)
    assert again.missing() == [(4, 10)] and again.prefix == 4 and not again.complete
    again.write(0, 4, b"456789")
    assert again.complete and again.present == 10
    again.save()
    again.publish()
    assert target.read_bytes() == b"0123456789" and [path.name for path in tmp_path.iterdir()] == [target.name]


def test_an_emptied_file_takes_no_late_writes(tmp_path):
    part = Partial(tmp_path / "x")
    part.write(0, 0, b"old")
    part.reset()
    with pytest.raises(Exception, match="started again"):
        part.write(0, 0, b"old")
    part.write(1, 0, b"new")
    part.leave()
    with pytest.raises(Exception, match="started again"):
        part.write(1, 0, b"late")
    assert append_suffix(tmp_path / "x", partial.PART).read_bytes() == b"new"


# Words


@pytest.mark.parametrize(
    "count, words",
    (
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (73654345, "73.7 MB"),
        (217739268, "218 MB"),
        (999_600_000, "1.00 GB"),
        (9224575566, "9.22 GB"),
        (14356582818, "14.4 GB"),
        (2e12, "2.00 TB"),
    ),
)
def test_sizes_read_as_on_the_models_pages(count, words):
    assert disk.in_words(count) == words


def test_durations():
    assert [describe_duration(s) for s in (4, 89, 100, 3600, 7800, 345600)] == [
        "4 s",
        "89 s",
        "2 min",
        "60 min",
        "2 h 10 min",
        "4 days",
    ]


def test_progress_adds_up_all_files(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    told = []
    meter = Meter({"a": 100, "b": 300}, told.append)
    for step in range(1, 11):
        now[0] += 1
        meter.show("a", "a.safetensors", step * 10, 100, step * 10)
    assert (told[-1].done, told[-1].total, told[-1].speed, told[-1].left) == (100, 400, 10, 30)
    assert told[-1].describe() == "a.safetensors: 25 % of 400 bytes, 10 bytes/s, 30 s left"
