"""Lists of rows: every format, every kind of bad line, grids, seeds and wildcards."""

from __future__ import annotations

import time
from pathlib import PureWindowsPath
from types import SimpleNamespace

import fake_comfyui
import pytest
from batches import PROMPT

from cascade_studio.commands.batch import Batch, results, run_batch
from cascade_studio.commands.batch.command import split_flags
from cascade_studio.commands.batch.database import address_of
from cascade_studio.commands.batch.driver import GIB, Driver
from cascade_studio.commands.batch.manifest import LEASE_SECONDS, Manifest
from cascade_studio.commands.batch.records import Asked
from cascade_studio.commands.batch.results import file_names
from cascade_studio.commands.batch.rows import BadRow, Expander, Expansion, Row, parse_grid, parse_seeds, read_rows
from cascade_studio.commands.batch.run import _Source
from cascade_studio.commands.batch.template import safe_name
from cascade_studio.commands.batch.workers import Worker
from cascade_studio.commands.messages import Stop
from cascade_studio.commands.png import SIGNATURE
from cascade_studio.commands.workflow.inputs import UnknownInput, convert_value, find_places


def read(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_rows(path))


def expand(row, **how):
    return list(Expander(Expansion(**how)).expand(Row(1, row)))


def test_every_format_gives_the_same_rows(tmp_path):
    wanted = [Row(2, {"prompt": "a cat, asleep"}), Row(4, {"prompt": "ein Bär"})]
    assert read(tmp_path, "a.txt", "# remark\na cat, asleep\n\nein Bär\n") == wanted
    assert read(tmp_path, "a.csv", 'prompt\n"a cat, asleep"\n\nein Bär\n') == wanted
    lines = '\n{"prompt": "a cat, asleep"}\n\n{"prompt": "ein Bär", "seed": null}\n'
    assert read(tmp_path, "a.jsonl", lines) == wanted
    assert read(tmp_path, "b.csv", "\ufeffprompt\r\nx\r\n") == [Row(2, {"prompt": "x"})]


@pytest.mark.parametrize(
    "name, text, line, good, words",
    [
        ("a.csv", "prompt,seed\na,1\nb\nc,3\n", 3, 2, "1 cells"),
        ("a.csv", "prompt,seed\na,1\nb,2,x\n", 3, 1, "3 cells"),
        ("a.csv", b"prompt\nok\n\xff\xfe\n", 3, 1, "UTF-8"),
        ("a.txt", b"ok\n\xe4 cat\n", 2, 1, "UTF-8"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": \n', 2, 1, "no JSON"),
        ("a.jsonl", '["a"]\n', 1, 0, "no JSON object"),
        ("a.jsonl", "[" * 100_000 + "\n" + '{"prompt": "a"}\n', 1, 1, "no JSON"),
        ("a.jsonl", '{"prompt": "\\ud800"}\n{"prompt": "a"}\n', 1, 1, "half a letter"),
        ("a.jsonl", '{"#\\udfff": 1}\n{"prompt": "a"}\n', 1, 1, "half a letter"),
        ("a.csv", 'prompt,seed\n"a,1\nb,2\n', 2, 0, "on to line 3: a closing quote"),
        ("a.csv", "prompt\n" + "x" * 200_000 + "\nok\n", 2, 1, "no CSV"),
    ],
)
def test_a_bad_line_is_told_and_the_others_stay(tmp_path, name, text, line, good, words):
    rows = read(tmp_path, name, text)
    (bad,) = [row for row in rows if isinstance(row, BadRow)]
    assert bad.line == line and words in bad.reason
    assert len(rows) - 1 == good


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.doc", "x"),
        ("a.csv", ""),
        ("a.csv", "a,a\n1,2\n"),
        ("a.csv", "a,,b\n"),
        ("a.csv", "prompt;seed\na;1\n"),
        ("a.csv", ",".join(["a"] * 200_000) + "\n"),
    ],
)
def test_a_list_that_is_none_ends_with_a_sentence(tmp_path, name, text):
    with pytest.raises(Stop):
        read(tmp_path, name, text)
    with pytest.raises(Stop, match="cannot be read"):
        list(read_rows(tmp_path / "nowhere.txt"))


def test_grids_seeds_and_counts_multiply():
    rows = expand({"prompt": ["a", "b"], "cfg[]": "2 | 4"}, grid={"steps": ["5", "6"]}, seeds=[1, 9], count=2)
    assert len(rows) == 2 * 2 * 2 * 2 * 2
    assert len({tuple(sorted(row.values.items())) for row in rows}) == 32
    assert {row.values["seed"] for row in rows} == {1, 2, 9, 10}
    assert [row.values["seed"] for row in expand({"prompt": "a", "seed": "5"}, count=3)] == [5, 6, 7]
    assert [row.values["seed"] for row in expand({"prompt": "a"}, count=2, first_seed=40)] == [40, 41]
    (whole,) = expand({"prompt": "a", "seed": 5}, count=3, batched=True)
    assert whole.values == {"prompt": "a", "seed": 5, "batch_size": 3}
    assert expand({"prompt": "a"}) == [Row(1, {"prompt": "a"})], "without a seed the workflow's own stays"


@pytest.mark.parametrize("seed", ["x", "-1", "1.5", str(2**64), True])
def test_a_seed_that_is_none_is_a_bad_row(seed):
    (bad,) = expand({"prompt": "a", "seed": seed})
    assert isinstance(bad, BadRow) and "seed" in bad.reason


def test_wildcards_are_drawn_the_same_again_and_anew_for_each_copy(tmp_path):
    (tmp_path / "animal.txt").write_text("cat\ndog\n# not this\nfrog\n", encoding="utf-8")
    row = {"prompt": "a {red|green|blue} __animal__, {a|b}"}
    first = expand(row, wildcards=tmp_path, count=40)
    assert first == expand(row, wildcards=tmp_path, count=40)
    told = {row.values["prompt"] for row in first}
    assert len(told) > 10 and not any(mark in text for text in told for mark in "{}_|")
    expander = Expander(Expansion(wildcards=tmp_path))
    twice = [next(iter(expander.expand(Row(line, row)))).values["prompt"] for line in range(1, 30)]
    assert len(set(twice)) > 5, "the same line again draws again"
    assert expand({"prompt": r"\{literal\} \__name\__"})[0].values["prompt"] == "{literal} __name__"
    assert isinstance(expand({"prompt": "__nowhere__"}, wildcards=tmp_path)[0], BadRow)
    assert expand({"prompt": "__../animal__"}, wildcards=tmp_path)[0].values["prompt"] == "__../animal__", "no name"


def test_options_are_read_or_refused():
    assert parse_seeds("1,2, 10-12,2") == [1, 2, 10, 11, 12]
    assert parse_grid("cfg=2,4") == ("cfg", ["2", "4"])
    assert parse_grid("prompt=a, b|c") == ("prompt", ["a, b", "c"])
    for wrong in ("x", "5-1", "1,-2", str(2**64), "0-18446744073709551615"):
        with pytest.raises(Stop):
            parse_seeds(wrong)
    for wrong in ("cfg", "=1", "cfg=1,,2"):
        with pytest.raises(Stop):
            parse_grid(wrong)


@pytest.mark.parametrize(
    "column, places",
    [
        ("prompt", [("3", "text")]),
        ("negative", [("4", "text")]),
        ("seed", [("5", "seed"), ("6", "seed")]),
        ("width", [("2", "width")]),
        ("Stage B.steps", [("6", "steps")]),
        ("5.cfg", [("5", "cfg")]),
        ("prior", [("1", "prior")]),
    ],
)
def test_columns_find_their_inputs(column, places):
    assert find_places(PROMPT, column) == places


def test_columns_that_mean_nothing_or_two_things_are_refused():
    with pytest.raises(UnknownInput, match="Stage C.cfg or Stage B.cfg"):
        find_places(PROMPT, "cfg")
    with pytest.raises(UnknownInput, match="Negative.text"):
        find_places(PROMPT, "colour")


@pytest.mark.parametrize(
    "value, present, wanted",
    [
        ("5", 1, 5),
        ("5.0", 1, 5),
        ("2.5", 1.0, 2.5),
        (3, 1.0, 3.0),
        ("yes", False, True),
        ("0", True, False),
        (7, "a", "7"),
    ],
)
def test_values_arrive_as_what_the_workflow_holds(value, present, wanted):
    found = convert_value("x", value, present)
    assert found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize(
    "value, present", [("a", 1), ("1.5", 1), ("nan", 1), ("nan", 1.0), ("inf", 1.0), ("2", True), (True, 1), ("", 2.0)]
)
def test_values_that_do_not_fit_are_refused(value, present):
    with pytest.raises(ValueError, match="x is"):
        convert_value("x", value, present)


@pytest.mark.parametrize(
    "given",
    [
        "../up",
        "/etc/passwd",
        "a/../../b",
        "C:\\x\\y",
        "..",
        ".",
        "",
        "con",
        "a\x00b",
        "x" * 500,
        ".hidden",
        "a/ ./b",
        "\\\\s\\d",
        "a/" * 3000 + "b",
        "a.png/b",
        "results.csv/x",
        "\u202egnp.x",
        "manifest.sqlite",
        "e\u0301",
        "x" * 119 + " y/z",
        "foo.png .png",
        "con .png/nul .x/. .png",
        "C:/x",
    ],
)
def test_names_stay_below_the_folder(given, tmp_path):
    name = safe_name(given)
    path = (tmp_path / f"{name}.png").resolve()
    assert path.is_relative_to(tmp_path) and path != tmp_path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    assert not any(part.startswith(".") for part in path.relative_to(tmp_path).parts)
    assert not any(part != part.strip(" .") or ":" in part for part in name.split("/"))
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "given, names",
    [
        (["a_1_.png", "b.png", "c.latent"], ["row.png", "row@2.png", "row.latent"]),
        (
            ["a.PNG", "x./../../y", "noend", "c.p\x00g", "d.png:stream"],
            ["row.png", "row.bin", "row@2.bin", "row@3.bin", "row@4.bin"],
        ),
        (["a.sqlite", "b.CSV"], ["row.bin", "row@2.bin"]),
    ],
)
def test_of_a_servers_names_only_a_plain_ending_is_taken(given, names):
    assert file_names("row", given) == names


@pytest.mark.parametrize("card", [b"no json", b"[1]", b'{"stages": 3}', b'{"stages": [3]}', b"{}"])
def test_a_card_of_somebody_else_is_left_alone(card):
    text = fake_comfyui.chunk(b"tEXt", b"cascade_studio\0" + card)
    picture = SIGNATURE + text + fake_comfyui.chunk(b"IEND", b"")
    kept, measured = results.split_card(picture)
    assert kept == picture and (measured is None) == (card != b"{}")
    assert results.split_card(b"no picture") == (b"no picture", None)


def test_a_share_of_windows_is_a_path_and_no_server_to_sqlite():
    assert address_of(PureWindowsPath(r"\\nas\my share\m.sqlite")) == "file:////nas/my%20share/m.sqlite"
    assert address_of(PureWindowsPath(r"C:\a\m.sqlite")) == "file:///C:/a/m.sqlite"


def test_flags_keep_the_backslashes_of_windows():
    text = r'--lowvram --output-directory "C:\my files\out"'
    assert split_flags(text, windows=True) == ("--lowvram", "--output-directory", r"C:\my files\out")
    assert split_flags(r"--a b\ c '#d'", windows=False) == ("--a", "b c", "#d")
    with pytest.raises(Stop, match="quote"):
        split_flags('--a "b')


def test_a_list_called_as_the_table_is_not_written_over(tmp_path):
    rows = tmp_path / "results.csv"
    rows.write_text("prompt\napple\n", encoding="utf-8")
    with pytest.raises(Stop, match="written over"):
        run_batch(Batch(rows=rows, out=tmp_path))
    assert rows.read_text(encoding="utf-8") == "prompt\napple\n"


def test_names_that_share_a_short_key_are_two(tmp_path):
    manifest = Manifest(tmp_path)
    rows = [(number, Asked("0123456789" + end, number, {}, "", "", 0, "apple")) for number, end in enumerate("ab")]
    assert manifest.ask(manifest.begin_list(), rows) == []
    assert len({name for (name,) in manifest.read("SELECT name FROM rows")}) == 2
    manifest.close()


def test_a_broken_worker_hides_no_row_that_is_too_large_for_the_others(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.ask(manifest.begin_list(), [(1, Asked("a", 1, {}, "", "", 9 * GIB, "apple"))])
    driver = Driver(manifest, None, None, None)
    for name, state in (("small", "ready"), ("ended", "broken")):
        driver.workers[name] = Worker(SimpleNamespace(name=name), state=state, memory=6 * GIB)
    with pytest.raises(Stop, match="lite models"):
        driver._check_hope(time.monotonic())
    manifest.close()


def test_a_row_that_others_took_over_is_not_painted_again_by_the_worker_that_comes_back(tmp_path, monkeypatch):
    manifest = Manifest(tmp_path)
    manifest.ask(manifest.begin_list(), [(1, Asked("a", 1, {}, "", "", 0, "apple"))])
    assert manifest.claim("slow", None)
    driver = Driver(manifest, None, None, None)
    slow = Worker(SimpleNamespace(name="slow"), taken_up=manifest.take_up("slow"))
    later = time.monotonic() + 2 * LEASE_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    manifest.give_back_expired()
    assert manifest.claim("other", None)
    assert driver._claim(slow) is None and not slow.doing
    manifest.close()


def test_drafts_are_not_finished_into_their_own_folder(tmp_path):
    with pytest.raises(Stop, match="holds the drafts"):
        run_batch(Batch(rows=tmp_path, out=tmp_path / "." / "", stages="ba"))


def test_only_a_folder_of_drafts_names_latents(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "#priors": 5}\n{"prompt": "b", "#priors": [[["../x", "y"]]]}\n', encoding="utf-8")
    rows = list(_Source(Batch(rows=path, out=tmp_path / "out")).rows(0))
    assert [row.values for row in rows] == [{"prompt": "a"}, {"prompt": "b"}]


def test_a_number_beyond_all_numbers_is_told():
    with pytest.raises(ValueError, match="has to be a number"):
        convert_value("cfg", "9" * 400, 4.0)
