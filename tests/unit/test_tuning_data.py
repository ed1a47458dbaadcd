"""Training sets: what is refused by name, the buckets, the cache, and the settings that a file or a node gives."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from cascade_studio.stages.errors import BadValues, WrongInput
from cascade_studio.stages.training import buckets, cache as encode, dataset, folders, seeding, settings
from cascade_studio.stages.training.settings import Settings, from_dict


def write(folder: Path, **captions: str | None) -> Path:
    """Picture files whose text is "width height value"; None leaves the caption out."""
    folder.mkdir(exist_ok=True)
    for number, (name, caption) in enumerate(captions.items(), 1):
        (folder / f"{name}.png").write_text(f"{32 * number} 64 {number}")
        if caption is not None:
            (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
    return folder


def size(path: Path) -> tuple[int, int]:
    words = path.read_text().split()
    if len(words) != 3:
        raise OSError("broken")
    return int(words[0]), int(words[1])


def read(path: Path, least: tuple[int, int] | None = None) -> torch.Tensor:
    width, height = size(path)
    return torch.full((3, height, width), int(path.read_text().split()[2]), dtype=torch.uint8)


FILES = dataset.PictureFiles(size, read)


def from_folder(folder: Path, caption: str = "", resolution: int = 768, **options) -> dataset.TrainingSet:
    return folders.from_folder(folder, FILES, folders.FolderOptions(caption, **options), resolution)


# Folders


def test_a_folder_with_captions(tmp_path):
    folder = write(tmp_path / "set", first="a  red\napple ", second="\ufeffa robot")
    (folder / "notes.md").write_text("no picture")
    found = from_folder(folder, resolution=64)
    assert [(p.name, p.caption, p.width, p.height) for p in found.pictures] == [
        ("first.png", "a red apple", 32, 64),
        ("second.png", "a robot", 64, 64),
    ]
    assert found.pictures[1].read(None).unique().tolist() == [2]
    text = found.report()
    assert "set: 2 pictures" in text and "64x64: 1" in text and "32x64: 1" in text
    before = found.digest
    (folder / "second.txt").write_text("a tin robot")
    assert from_folder(folder).digest != before


def test_every_fault_is_listed_by_name_before_training(tmp_path):
    folder = write(tmp_path / "set", good="fine", silent=None, empty="  ", torn="a caption")
    (folder / "torn.png").write_text("32")
    with pytest.raises(WrongInput) as caught:
        from_folder(folder)
    text = str(caught.value)
    assert "Broken pictures, which cannot be opened (1): torn.png." in text
    assert "Pictures without a caption (2): empty.png, silent.png." in text and "good.png" not in text
    (folder / "torn.png").unlink()
    found = from_folder(folder, caption="a thing")
    assert [p.caption for p in found.pictures] == ["a thing", "fine", "a thing"]


def test_many_faults_are_counted(tmp_path):
    folder = write(tmp_path / "set", **{f"p{i:02}": None for i in range(30)})
    with pytest.raises(WrongInput, match=r"\(30\): p00.png, .*p19.png and 10 more\."):
        from_folder(folder)


@pytest.mark.parametrize("make, words", [(False, "There is no folder 'set'"), (True, "holds no pictures")])
def test_empty_and_missing_folders(tmp_path, make, words):
    if make:
        (tmp_path / "set").mkdir()
    with pytest.raises(WrongInput, match=words):
        from_folder(tmp_path / "set")


def test_a_batch_with_captions():
    images = torch.rand(2, 40, 64, 4, generator=torch.Generator().manual_seed(0))
    found = dataset.from_batch(images, ["one", "", "two"])
    assert [(p.caption, p.width, p.height) for p in found.pictures] == [("one", 64, 40), ("two", 64, 40)]
    assert (found.pictures[0].read(None).float() / 255 - images[0, ..., :3].movedim(-1, 0)).abs().max() <= 0.002
    assert found.pictures[0].digest != found.pictures[1].digest
    assert {p.caption for p in dataset.from_batch(images, ["all"]).pictures} == {"all"}
    for wrong in ([], ["a", "b", "c"]):
        with pytest.raises(WrongInput, match=f"2 pictures were given with {len(wrong)} captions"):
            dataset.from_batch(images, wrong)


# Buckets


def test_buckets_are_the_official_sizes():
    assert buckets.choose_bucket(500, 500, 768) == (768, 768)
    for ratio in buckets.RATIOS:
        for r in (ratio, 1 / ratio):
            width, height = (math.floor(math.sqrt(768**2 * s) / 32 + 1e-9) * 32 for s in (r, 1 / r))
            assert buckets.choose_bucket(round(6000 * r), 6000, 768) == (width, height)
    assert buckets.choose_bucket(1, 1000, 64) == (32, 128)
    assert buckets.choose_bucket(256, 256, 192) == (192, 192), "Mini's pictures give six cells"


def test_pictures_fill_their_bucket_and_keep_their_middle():
    ramp = torch.arange(100, dtype=torch.uint8).expand(3, 50, 100)
    image = buckets.fit_to_size(ramp, (32, 32))
    assert image.shape == (1, 3, 32, 32) and 0 <= image.min() and image.max() <= 1
    assert float(image.mean()) == pytest.approx(49.5 / 255, abs=1e-3)
    assert (image[0, :, 0, -1] - image[0, :, 0, 0])[0] == pytest.approx(50 / 255, rel=0.1), "the middle half"
    assert torch.equal(buckets.fit_to_size(ramp[..., :50], (50, 50))[0], ramp[..., :50].float() / 255)


# Encoding


class Encoders:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def picture(self, image: torch.Tensor) -> torch.Tensor:
        self.asked.append(f"{image.shape[3]}x{image.shape[2]}")
        return image.mean() + torch.zeros(1, 16, image.shape[2] // 32, image.shape[3] // 32)

    def text(self, caption: str) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked.append(caption)
        return torch.full((7, 4), float(len(caption))), torch.full((1, 4), -1.0)

    def marked(self, picture: str = "p", text: str = "t") -> encode.Encoders:
        return encode.Encoders(self.picture, self.text, picture, text)


def test_pictures_and_captions_are_encoded_once(tmp_path):
    found = from_folder(write(tmp_path / "set", first="one", second="three"), resolution=64)
    encoders, cache, seen = Encoders(), tmp_path / "cache", []
    rows, empty = encode.encode_set(found, encoders.marked(), cache, lambda done, total: seen.append((done, total)))
    assert encoders.asked == ["32x64", "one", "64x64", "three", ""] and seen == [(1, 2), (2, 2)]
    assert rows[1]["latent"].shape == (16, 2, 2) and rows[0]["latent"].shape == (16, 2, 1)
    assert rows[1]["text"].float().unique().tolist() == [5] and empty["text"].float().unique().tolist() == [0]
    again = Encoders()
    same, _ = encode.encode_set(found, again.marked(), cache)
    assert again.asked == [] and all(torch.equal(a[name], b[name]) for a, b in zip(rows, same) for name in a)
    encode.encode_set(found, again.marked(text="other"), cache)
    assert again.asked == ["one", "three", ""]
    for path in cache.iterdir():
        path.write_bytes(b"torn")
    encode.encode_set(found, again.marked(), cache)
    assert again.asked[3:] == encoders.asked, "damaged files are made again"


def test_bad_latents_are_told_by_name(tmp_path):
    found = from_folder(write(tmp_path / "set", first="one"), resolution=64)
    encoders = Encoders()
    encoders.picture = lambda image: torch.full((1, 16, 2, 1), math.nan)
    with pytest.raises(BadValues, match="first.png"):
        encode.encode_set(found, encoders.marked(), tmp_path / "cache")


def test_fingerprints_tell_networks_apart():
    one = {"a": torch.arange(100.0), "b": torch.zeros(3, 2)}
    marks = {
        encode.fingerprint(t)
        for t in (
            one,
            {**one, "b": torch.zeros(2, 3)},
            {**one, "a": one["a"] + 1},
            {key: value.clone() for key, value in one.items()},
        )
    }
    assert len(marks) == 3


# Chance


def test_every_epoch_sees_every_picture_once():
    order = seeding.BatchOrder(3, 5, ["one shape"] * 10)
    seen = [index for step in range(6) for index in order.choose(step)]
    epochs = [seen[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and epochs[0] != epochs[1]
    assert seeding.BatchOrder(4, 5, ["one shape"] * 10).choose(0) != order.choose(0)
    small = seeding.BatchOrder(0, 7, ["one shape"] * 2)
    assert sorted(small.choose(1))[:3] == [0, 0, 0], "a batch may hold a picture several times"


def test_a_batch_is_of_one_shape_and_all_pictures_count_alike():
    """Eight shapes, from one picture to sixteen: whatever step a run begins at, the batches are the same."""
    shapes = [shape for shape in range(8) for _ in range(2 * shape + 1)]
    order = seeding.BatchOrder(5, 4, shapes)
    batches = [order.choose(step) for step in range(1600)]
    assert all(len({shapes[index] for index in batch}) == 1 and len(batch) == 4 for batch in batches)
    counts = [sum(batch.count(index) for batch in batches) for index in range(len(shapes))]
    assert all(abs(count - 100) <= 8 for count in counts), "1,600 batches of four among 64 pictures"
    assert seeding.BatchOrder(5, 4, shapes).choose(777) == batches[777]
    assert len({shapes[batch[0]] for batch in batches[:16]}) > 3, "shapes follow one another at random"
    twice = seeding.BatchOrder(5, 1, ["a"] * 3, [1, 4, 1])
    assert sorted(index for step in range(6) for index in twice.choose(step)) == [0, 1, 1, 1, 1, 2]


def test_places_have_generators_of_their_own():
    numbers = {
        float(torch.rand(1, generator=seeding.generator(0, "sample", step, place), dtype=torch.float64))
        for step in range(30)
        for place in range(30)
    }
    assert len(numbers) == 900
    values = torch.tensor(sorted(numbers))
    assert values.mean() == pytest.approx(0.5, abs=0.04)


# Settings


def test_settings_go_through_json():
    given = Settings(name="a style", blocks=(".attn", ".clf"), tokens=(("[x]", "dog"),), rank=8)
    assert from_dict(json.loads(json.dumps(given.as_dict()))) == given
    assert given.identity("model") == given.identity("model") != given.identity("other")


@pytest.mark.parametrize("change", [{"steps": 5}, {"accumulation": 2}, {"sample_prompt": "x"}, {"name": "b"}])
def test_a_continuation_may_change_what_is_not_learned(change):
    assert Settings(**change).identity() == Settings().identity()


@pytest.mark.parametrize(
    "change", [{"seed": 5}, {"learning_rate": 2e-4}, {"rank": 8}, {"drop_text": 0.1}, {"base": "fp8"}]
)
def test_other_settings_are_another_run(change):
    assert Settings(**change).identity() != Settings().identity()


@pytest.mark.parametrize(
    "values, words",
    [
        ({"learnig_rate": 1}, "learnig_rate"),
        ({"rank": 0}, "'rank' is 0"),
        ({"steps": "many"}, "'steps' is 'many'"),
        ({"base": "int4"}, "auto, bf16, fp8, fp32"),
        ({"name": "../x"}, "letters"),
        ({"blocks": []}, "No blocks"),
        ({"layout": "official", "blocks": [".clf"]}, "attention alone"),
        ({"blocks": 3}, "a list of texts"),
        ({"tokens": [["a"]]}, "pairs, each as"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"rank": 3.5}, "'rank' is 3.5. It needs a whole number from 1 to 1,024"),
        ({"checkpointing": "no"}, "'checkpointing' is 'no'. It needs true or false"),
        ({"blocks": ".attn"}, "'blocks' is '.attn'. It needs a list"),
        ({"seed": "abc"}, "'seed' is 'abc'. It needs a whole number"),
        ({"seed": True}, "'seed' is True"),
        ({"steps": math.inf}, "'steps' is inf"),
        ({"name": "x" * 300}, "at most 100 letters"),
        ({"name": "ends."}, "not ending with a dot"),
        ({"what": "words"}, "none is named"),
        ({"tokens": [["[x]", "dog"], ["[X]", "cat"]]}, "named twice"),
        ({"what": "words", "tokens": [["[x]", "dog"]], "start_from": "a.safetensors"}, "words has no start_from"),
        ({"what": "text_lora", "layout": "official"}, "this is a lora of text_lora"),
        ({"control_blocks": ["²"]}, "Give their numbers"),
    ],
)
def test_wrong_settings_are_told(values, words):
    with pytest.raises(WrongInput, match=words) as caught:
        from_dict(values)
    assert str(caught.value).endswith(".")


def test_free_settings_exist():
    free = {name for name, spec in settings.SPECS.items() if spec.free}
    assert {"name", "steps", "save_every"} <= free <= set(Settings().as_dict())
