"""What a folder holds: pictures of every depth, captions in every encoding, files that are passed over or refused."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from cascade_studio.stages.errors import WrongInput
from cascade_studio.stages.training import buckets, captions, checkpoint, folders
from cascade_studio.stages.training.dataset import PictureFiles, join_sets, show_ways
from cascade_studio.stages.training.pictures_io import read_picture, read_size

FILES = PictureFiles(read_size, read_picture)
RAMP = np.linspace(0, 1, 96 * 96).reshape(96, 96)


def put(folder: Path, name: str, image: Image.Image | None = None, **texts: str | bytes) -> Path:
    """A picture, and text files named by their suffix: ``txt="a cat"``."""
    folder.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (96, 96), (10, 200, 30))).save(folder / name)
    for suffix, text in texts.items():
        file = folder / f"{Path(name).stem}.{suffix}"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def read(folder: Path, **options) -> folders.TrainingSet:
    memory = options.pop("memory", None)
    return folders.from_folder(folder, FILES, folders.FolderOptions(**options), 192, memory)


# Pictures


@pytest.mark.parametrize(
    "name, values",
    [
        ("grey16.png", (RAMP * 65535).astype("uint16")),
        ("grey16.tiff", (RAMP * 65535).astype("uint16")),
        ("int32.tiff", (RAMP * 65535).astype("int32")),
        ("byte32.tiff", (RAMP * 255).astype("int32")),
        ("float.tiff", RAMP.astype("float32")),
        ("float255.tiff", (RAMP * 255).astype("float32")),
        ("grey8.png", (RAMP * 255).astype("uint8")),
    ],
)
def test_pictures_of_any_depth_keep_their_brightness(tmp_path, name, values):
    Image.fromarray(values).save(tmp_path / name)
    pixels = read_picture(tmp_path / name)
    assert pixels.shape == (3, 96, 96) and pixels.dtype == torch.uint8
    assert float(pixels.float().mean()) == pytest.approx(127.5, abs=1)
    assert pixels.min() == 0 and pixels.max() == 255


@pytest.mark.parametrize("values", [RAMP.astype("float32") * 3, RAMP.astype("float32") - 0.5, RAMP * np.nan])
def test_values_without_a_scale_are_refused_by_name(tmp_path, values):
    Image.fromarray(values.astype("float32")).save(tmp_path / "odd.tiff")
    (tmp_path / "odd.txt").write_text("x")
    with pytest.raises(OSError, match="odd.tiff.*floats have to lie"):
        read_picture(tmp_path / "odd.tiff")


def test_sizes_come_from_the_header_and_are_those_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (96, 64)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_size(tmp_path / "turned.jpg") == (64, 96) == read_picture(tmp_path / "turned.jpg").shape[:0:-1]
    Image.new("RGB", (96, 64)).save(tmp_path / "torn.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "torn.png").read_bytes()[:-30])
    with pytest.raises(OSError, match="torn.png"):
        read_size(tmp_path / "torn.png")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_large_picture_is_made_smaller_before_it_is_floats(tmp_path, suffix):
    Image.fromarray(np.tile((RAMP * 255).astype("uint8"), (20, 30))).save(tmp_path / f"large.{suffix}")
    pixels = read_picture(tmp_path / f"large.{suffix}", (192, 192))
    assert 384 <= min(pixels.shape[1:]) <= 1000, "at least twice what is needed, and far from 1920 x 2880"
    assert float(pixels.float().mean()) == pytest.approx(127.5, abs=1.5)


def test_palettes_cmyk_and_transparency(tmp_path):
    for name, image in (
        ("p.gif", Image.new("P", (96, 96))),
        ("c.jpg", Image.new("CMYK", (96, 96), (0, 255, 255, 0))),
        ("a.png", Image.new("RGBA", (96, 96), (0, 0, 0, 0))),
        ("j.jfif", Image.new("RGB", (96, 96))),
        ("v.avif", Image.new("RGB", (96, 96))),
    ):
        image.save(tmp_path / name, "JPEG" if name.endswith("jfif") else None)
        assert read_picture(tmp_path / name).shape == (3, 96, 96)
    assert read_picture(tmp_path / "a.png").min() == 255, "transparency lies on white"


# Captions


@pytest.mark.parametrize(
    "encoding, text",
    [
        ("utf-8", "un café crème, 红苹果"),
        ("utf-8-sig", "un café"),
        ("utf-16", "a red apple"),
        ("utf-16-le", "a red apple"),
        ("utf-16-be", "a red apple"),
        ("utf-32", "a red apple"),
        ("cp1252", "un café crème, créée à Besançon"),
        ("cp1252", "it’s a “red” apple – 5 €"),
        ("gbk", "红苹果"),
        ("gbk", "一只红色的小猫，大眼睛"),
    ],
)
def test_captions_are_read_in_the_encoding_they_were_written_in(tmp_path, encoding, text):
    picture = put(tmp_path, "a.png", txt=text.encode(encoding))
    found = read(tmp_path)
    assert found.pictures[0].caption == text
    plain = encoding.startswith("utf-8")
    assert ("Captions read as" in found.report()) != plain and picture.exists()


@pytest.mark.parametrize(
    "encoding, text", [("cp1251", "красное яблоко"), ("shift-jis", "赤いリンゴ"), ("koi8-r", "красное яблоко")]
)
def test_letters_that_cannot_be_told_are_refused_by_name(tmp_path, encoding, text):
    put(tmp_path, "a.png", txt=text.encode(encoding))
    with pytest.raises(WrongInput, match=r"letters that cannot be told, to be saved as UTF-8 \(1\): a.txt"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "A.Txt", "a.caption", "a.png.txt", "a.png.caption"])
def test_a_caption_may_be_named_as_other_trainers_name_it(tmp_path, name):
    put(tmp_path, "a.png")
    (tmp_path / name).write_text("a red apple")
    assert [picture.caption for picture in read(tmp_path).pictures] == ["a red apple"]


def test_names_with_dots_keep_their_own_captions(tmp_path):
    put(tmp_path, "cat.v1.png", txt="first")
    put(tmp_path, "cat.v2.png", txt="second")
    assert [picture.caption for picture in read(tmp_path).pictures] == ["first", "second"]


def test_lines_tags_and_triggers(tmp_path):
    put(tmp_path, "a.png", txt="one cat\n\ntwo cats\n")
    assert read(tmp_path).pictures[0].captions == ("one cat two cats",)
    assert read(tmp_path, kind="lines", trigger="mycat").pictures[0].captions == ("mycat, one cat", "mycat, two cats")
    put(tmp_path, "a.png", txt="cat, red, small, sitting, outdoors")
    orders = read(tmp_path, kind="tags", kept_tags=2).pictures[0].captions
    assert 3 < len(orders) <= folders.ORDERS and all(order.startswith("cat, red, ") for order in orders)
    assert {tuple(sorted(order.split(", "))) for order in orders} == {("cat", "outdoors", "red", "sitting", "small")}
    assert read(tmp_path, kind="tags", kept_tags=2).pictures[0].captions == orders, "the same each time"


def test_brackets_of_prompts_are_brackets(tmp_path):
    put(tmp_path, "a.png", txt=r"a cat \(small\), embedding:nothing")
    assert read(tmp_path).pictures[0].caption == "a cat (small), embedding:nothing"
    assert captions.make_plain(r"a\\b") == r"a\\b"


# Folders


def test_what_is_passed_over_is_told(tmp_path):
    put(tmp_path, "a.png", txt="x")
    for name in ("._a.png", ".DS_Store", "film.mp4", "raw.heic"):
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    found = read(tmp_path)
    assert len(found.pictures) == 1
    assert "Passed over (4): .DS_Store, ._a.png, film.mp4, raw.heic." in found.report()


def test_sub_folders_repeats_weights_masks_and_hints(tmp_path):
    put(tmp_path / "set" / "10_apple", "a.png", txt="x")
    put(tmp_path / "set" / "plain", "b.png", txt="y")
    put(tmp_path / "set" / "plain", "b-masklabel.png")
    put(tmp_path / "set" / ".hidden", "c.png", txt="z")
    found = read(tmp_path / "set", weight=0.5, repeats=2)
    assert [(p.name, p.repeats, p.weight) for p in found.pictures] == [
        ("10_apple/a.png", 20, 0.5),
        ("plain/b.png", 2, 0.5),
    ]
    assert found.pictures[0].mask is None and found.pictures[1].mask(None).shape == (3, 96, 96)
    (tmp_path / "set" / "plain" / "b-masklabel.png").unlink()
    put(tmp_path / "set" / "plain", "B.mask.JPG")
    assert read(tmp_path / "set").pictures[1].mask is not None, "of any format that pictures have"
    both = join_sets([found, read(tmp_path / "set" / "plain")])
    assert [p.weight for p in both.pictures] == [0.5, 0.5, 1.0] and both.digest != found.digest
    assert show_ways(found, True, 1).digest != found.digest
    with pytest.raises(WrongInput, match=r"without a hint of the same name \(1\): plain/b.png"):
        put(tmp_path / "hints", "a.png")
        read(tmp_path / "set", hints=tmp_path / "hints")
    put(tmp_path / "hints", "b.jpg")
    assert all(p.hint is not None for p in read(tmp_path / "set", hints=tmp_path / "hints").pictures)
    with pytest.raises(WrongInput, match="no folder 'nowhere'"):
        read(tmp_path / "set", hints=tmp_path / "nowhere")


def test_hints_of_one_name_in_two_folders_are_told_apart(tmp_path):
    for place, grey in (("a", 0), ("b", 255)):
        for top in ("set", "hints"):
            put(tmp_path / top / place, "1.png", Image.new("L", (32, 32), grey), txt="x")
    found = read(tmp_path / "set", hints=tmp_path / "hints")
    assert [int(p.hint(None).max()) for p in found.pictures] == [0, 255]
    (tmp_path / "hints" / "a" / "1.png").rename(tmp_path / "hints" / "a" / "2.png")
    put(tmp_path / "hints" / "c", "1.png")
    with pytest.raises(WrongInput, match=r"without a hint of the same name \(1\): a/1.png"):
        read(tmp_path / "set", hints=tmp_path / "hints")


@pytest.mark.parametrize("name", ["0_cats", "20231105_cats"])
def test_numbers_that_are_no_repeats_are_refused(tmp_path, name):
    put(tmp_path / name, "a.png", txt="x")
    with pytest.raises(WrongInput, match=f"'{name}' is .*a whole number from 1 to 1,000"):
        read(tmp_path)


def test_folders_two_levels_down_are_told(tmp_path):
    put(tmp_path / "cats", "a.png", txt="x")
    put(tmp_path / "cats" / "old", "b.png", txt="y")
    found = read(tmp_path)
    assert [p.name for p in found.pictures] == ["cats/a.png"]
    assert "Passed over (1): cats/old/." in found.report()


def test_no_file_is_read_twice(tmp_path):
    for number in range(3):
        put(tmp_path / "set", f"{number}.png", txt="x")
    looked = []
    files = PictureFiles(lambda path: looked.append(path.name) or read_size(path), read_picture)

    def look() -> str:
        memory = folders.FileMemory(tmp_path / "files.json")
        return folders.from_folder(tmp_path / "set", files, folders.FolderOptions(), 192, memory).digest

    first = look()
    assert look() == first and looked == ["0.png", "1.png", "2.png"]
    put(tmp_path / "set", "1.png", Image.new("RGB", (64, 96)))
    os.utime(tmp_path / "set" / "1.png", ns=(1, 1))
    assert look() != first and looked[3:] == ["1.png"]
    (tmp_path / "files.json").write_text("[")
    assert look() and len(looked) == 7, "what cannot be read is made anew"


def test_looking_at_a_folder_can_be_stopped(tmp_path):
    for number in range(3):
        put(tmp_path / "set", f"{number}.png", txt="x")
    memory = folders.FileMemory(tmp_path / "files.json")

    def stop(done: int, total: int) -> None:
        assert total == 3
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folders.from_folder(tmp_path / "set", FILES, folders.FolderOptions(), 192, memory, stop)
    assert len(folders.FileMemory(tmp_path / "files.json").known) == 2, "what was seen is kept"


def test_buckets_cut_little(tmp_path):
    """At six cells a side the official buckets cut 18 % of a 10:7 picture; 7 x 5 cells cut 2 %."""
    assert buckets.choose_bucket(1000, 700, 192) == (224, 160)
    for width in range(300, 3001, 100):
        size = buckets.choose_bucket(width, 1000, 192)
        assert buckets.cut_share(width, 1000, size) <= 0.17, (width, size)
        assert 0.5 * 192**2 <= size[0] * size[1] <= 192**2
    put(tmp_path, "wide.png", Image.new("RGB", (250, 100)), txt="x")
    assert "Cut off at the edges:" in read(tmp_path).report() and "(wide.png)" in read(tmp_path).report()


# Targets


def test_a_folder_that_refuses_is_told_before_the_first_step(tmp_path):
    with pytest.raises(WrongInput, match="Nothing can be written into the folder /sys/kernel"):
        checkpoint.check_target(Path("/sys/kernel"))
    with pytest.raises(WrongInput, match="Make room"):
        checkpoint.check_target(tmp_path, 10**18)
    checkpoint.check_target(tmp_path / "new" / "folder")


def test_files_are_for_everyone_and_a_full_disk_is_a_sentence(tmp_path):
    checkpoint.write_whole(tmp_path / "a.bin", lambda draft: draft.write_bytes(b"x"))
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o666 & ~umask

    def fill(draft: Path) -> None:
        draft.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(WrongInput, match="a.bin could not be written.*the disk is full"):
        checkpoint.write_whole(tmp_path / "a.bin", fill)
    assert (tmp_path / "a.bin").read_bytes() == b"x" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="the system has no disk that is always full")
def test_torch_tells_a_full_disk_by_its_number(tmp_path):
    """``/dev/full`` takes nothing; what is saved goes through a file of our own, so that the number arrives."""
    with pytest.raises(WrongInput, match="a.pt could not be written.*the disk is full"):
        checkpoint.write_whole(
            tmp_path / "a.pt", lambda draft: checkpoint._save_state({"a": torch.zeros(9)}, Path("/dev/full"))
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("free, full", [(8, True), (10**9, False)])
def test_safetensors_tells_no_number_so_the_disk_is_asked(tmp_path, monkeypatch, free, full):
    def refuse(*arguments, **named):
        raise SafetensorError("something else, in words")

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    with pytest.raises(WrongInput if full else SafetensorError, match="the disk is full" if full else "in words"):
        checkpoint.write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(9)})
    assert not list(tmp_path.iterdir())
