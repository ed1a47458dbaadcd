"""A batch on fake servers: every row once, whatever is killed, full, wrong or in the way. No models are needed."""

from __future__ import annotations

import errno
import json
import random
import signal
import sqlite3
import threading
import time
import unicodedata

import pytest
from batches import SIX, await_that, check, count_states, start_driver, start_fake

from cascade_studio.commands.batch import command, driver as batch_driver, manifest as batch_manifest, results
from cascade_studio.commands.batch.manifest import ASKED, DONE, Manifest
from cascade_studio.commands.messages import Stop
from cascade_studio.commands.places import find_free_port

# Once, and the same


def test_three_servers_paint_what_one_paints_each_picture_once(desk, capsys):
    rows = desk.rows(SIX)
    assert desk.run(rows, "one", servers=desk.serve(1), count=3).complete
    assert desk.painted == 18
    desk.fakes.clear()
    assert desk.run(rows, "three", servers=desk.serve(3, seconds=0.02), count=3).complete
    assert [len(fake.painted) > 0 for fake in desk.fakes] == [True] * 3
    assert desk.pictures("one") == desk.pictures("three") and len(desk.pictures("one")) == 18
    assert check(desk, "three") == 0
    again = desk.run(rows, "three", servers=desk.serve(1), count=3)
    assert again.complete and desk.painted == 18
    more = desk.run(desk.rows(SIX + "moon\n"), "three", servers=desk.serve(1), count=3)
    assert more.counts[DONE] == 21 and desk.painted == 21


def test_a_pictures_card_holds_nothing_that_differs_between_runs(desk):
    desk.run(desk.rows("apple"), servers=desk.serve())
    (data,) = desk.pictures().values()
    assert b"cascade_studio\0" in data and b'"seconds"' not in data
    assert b'"prompt"' not in data.split(b"IDAT")[0][:20] and b"apple" in data
    manifest = desk.manifest()
    ((measured,),) = manifest.read("SELECT measured FROM rows")
    manifest.close()
    assert json.loads(measured)["seconds"] > 0 and json.loads(measured)["stages"][0]["stage"] == "Stage C"


def test_lines_that_ask_for_the_same_are_painted_once(desk, capsys):
    outcome = desk.run(desk.rows("apple\nrobot\napple\n"), servers=desk.serve())
    assert outcome.counts[DONE] == 2 and "line 3 asks for the same picture as line 1" in capsys.readouterr().err


def test_parts_of_a_list_are_disjoint_and_make_the_whole(desk):
    servers, rows = desk.serve(), desk.rows(SIX)
    parts = []
    for number in (1, 2, 3):
        desk.run(rows, f"part{number}", servers=servers, shard=(number, 3), count=4)
        parts.append(set(desk.pictures(f"part{number}")))
    assert sum(map(len, parts)) == len(set.union(*parts)) == 24


# Rows


def test_bad_and_failing_rows_are_told_and_do_not_stop_the_rest(desk, capsys):
    rows = desk.rows(
        "prompt,cfg,Stage B.steps\napple,,4\nrobot,,x\nit fails,,4\nis refused,,\nsaves nothing,,\nfrog,,5\n", "r.csv"
    )
    with pytest.raises(Stop, match="Stage C.cfg or Stage B.cfg"):
        desk.run(desk.rows("prompt,cfg\na,1\n", "bad.csv"), servers=desk.serve())
    outcome = desk.run(desk.rows(rows.read_text().replace("cfg", "Stage C.cfg"), "r.csv"), servers=desk.serve())
    assert outcome.counts == {ASKED: 0, "running": 0, DONE: 2, "set aside": 3, "bad": 1} and not outcome.complete
    told = capsys.readouterr().err
    assert "line 3 is bad" in told and "line 4 failed 3 times" in told and "line 5" in told and "line 6" in told
    assert check(desk) == command.INCOMPLETE
    before = desk.painted
    desk.run(desk.folder / "r.csv", servers=desk.serve())
    assert desk.painted == before, "what was set aside stays so until --retry"
    desk.run(desk.folder / "r.csv", servers=desk.serve(), retry=True)
    assert count_states(desk)["set aside"] == 3 and desk.painted == before + 3, (
        "'saves nothing' is painted three times more"
    )


def test_the_workflow_gets_every_value_and_is_itself_again_for_the_next_row(desk):
    lines = [{"prompt": "a", "seed": 5, "width": 512}, {"prompt": "b", "Stage C.rescale_batch": True}]
    desk.run(desk.rows("\n".join(map(json.dumps, lines)), "r.jsonl"), servers=desk.serve())
    one, two = sorted(desk.fakes[0].painted, key=lambda prompt: prompt["3"]["inputs"]["text"])
    assert (one["5"]["inputs"]["seed"], one["6"]["inputs"]["seed"], one["2"]["inputs"]["width"]) == (5, 5, 512)
    assert (two["5"]["inputs"]["seed"], two["2"]["inputs"]["width"]) == (7, 256)
    assert two["5"]["inputs"]["rescale_batch"] is True and one["5"]["inputs"]["rescale_batch"] is False
    assert one["8"]["class_type"] == "CascadeStudio_SaveImage" and one["8"]["inputs"]["report"] == ["7", 1]


def test_names_come_from_the_row_and_take_no_file_of_others(desk):
    out = desk.folder / "out"
    out.mkdir()
    (out / "mine.png").write_bytes(b"a picture of yours")
    lines = ["name,prompt", "cat,a", "../../cat,b", "set/dog,c", "mine,d", "CAT,e"]
    lines += ["\u00e4,f", "\u00c4,g", "a\u0308,h", "set.png/dog,i", "set,j"]  # one name on some disks, a folder's name
    assert desk.run(desk.rows("\n".join(lines), "r.csv"), servers=desk.serve()).complete
    assert (out / "mine.png").read_bytes() == b"a picture of yours"
    names = set(desk.pictures())
    assert {"cat.png", "set/dog.png", "set.png", "\u00e4.png"} < names and "mine.png" in names and len(names) == 11
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) == 11
    assert {path.name for path in desk.folder.iterdir()} == {"out", "r.csv", "workflow.json"}


# Stops of every kind


def test_a_driver_that_ends_between_two_steps_loses_and_repeats_nothing(desk, monkeypatch):
    """At every step of writing a picture the process may end; what the disk holds then decides."""
    rows, servers = desk.rows("apple\nrobot\n"), desk.serve()

    def end(*_):
        raise Stop("the power went")

    for place, owner in (("note_files", Manifest), ("write", results.OutputFolder), ("finish", Manifest)):
        monkeypatch.setattr(owner, place, end)
        monkeypatch.setattr(Manifest, "give_back_others", lambda self, workers: None)
        with pytest.raises(Stop, match="power"):
            desk.run(rows, place, servers=servers)
        monkeypatch.undo()
        assert desk.run(rows, place, servers=servers).complete
        assert check(desk, place) == 0
    assert desk.painted == 2, "what a server has painted is fetched, not painted again"


def test_a_picture_that_the_server_finished_while_nobody_listened_is_fetched(desk, tmp_path):
    rows, servers = desk.rows("apple\n"), desk.serve(seconds=0.6)
    driver = start_driver(
        tmp_path / "log", rows, "--out", tmp_path / "out", "--workflow", desk.workflow, "--servers", servers
    )
    await_that(lambda: desk.fakes[0].running)
    driver.kill()
    await_that(lambda: desk.painted == 1)
    assert desk.run(rows, servers=servers).complete
    assert desk.painted == 1 and check(desk) == 0


def test_interrupt_stops_at_once_and_keeps_all(desk, tmp_path):
    """One server paints quickly; the other's picture would take minutes, and nobody waits for it."""
    servers = f"{desk.serve(seconds=0.3)},{desk.serve(seconds=600.0)}"
    arguments = ("--out", tmp_path / "out", "--workflow", desk.workflow, "--servers", servers, "--count", 20)
    driver = start_driver(tmp_path / "log", desk.rows(SIX), *arguments)
    await_that(lambda: desk.painted >= 4 and desk.fakes[1].running)
    driver.process.send_signal(signal.SIGINT)
    assert driver.wait(60.0) == 130, driver.text
    await_that(lambda: not any(fake.running or fake.pending for fake in desk.fakes))
    counts = count_states(desk)
    assert counts[DONE] == len(desk.pictures()) >= 4 and counts[DONE] + counts[ASKED] == 120


@pytest.mark.parametrize("full", ["picture", "manifest"])
def test_a_full_disk_stops_with_a_sentence_and_loses_nothing(desk, monkeypatch, full):
    rows, servers = desk.rows(SIX), desk.serve()
    if full == "picture":
        write = results.OutputFolder.write

        def fill(self, name, data):
            if len(desk.pictures()) >= 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(self, name, data)

        monkeypatch.setattr(results.OutputFolder, "write", fill)
    else:
        finish, told = Manifest.finish, sqlite3.OperationalError("in whatever words")
        told.sqlite_errorcode = 13

        def fill(self, *values):
            if len(desk.pictures()) >= 3:
                raise told
            finish(self, *values)

        monkeypatch.setattr(Manifest, "finish", fill)
    with pytest.raises(results.OutputFull, match="make room and give the same command again"):
        desk.run(rows, servers=servers)
    monkeypatch.undo()
    assert count_states(desk)[DONE] >= 2 and not list((desk.folder / "out" / results.PARTIAL).glob("*"))
    assert desk.run(rows, servers=servers).complete
    assert desk.painted == 6, "what was painted when the disk was full is fetched from the server"
    assert check(desk) == 0


def test_a_row_that_takes_its_server_along_is_set_aside_in_the_end(desk, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_manifest, "MOST_LOSSES", 2)
    monkeypatch.setattr(batch_driver, "AWAY_SECONDS", 0.2)
    port = find_free_port()
    fake = start_fake(port, tmp_path / "fake", 0.0)
    stop = threading.Event()

    def keep() -> None:
        nonlocal fake
        while not stop.is_set():
            if fake.wait(0.1) is not None:
                fake = start_fake(port, tmp_path / "fake", 0.0)

    keeper = threading.Thread(target=keep)
    keeper.start()
    try:
        outcome = desk.run(desk.rows("apple\nit crashes\nfrog\n"), servers=f"http://127.0.0.1:{port}")
    finally:
        stop.set()
        keeper.join()
        fake.kill()
    assert outcome.counts[DONE] == 2 and outcome.counts["set aside"] == 1


def kill_and_go_on(desk, tmp_path, kills, pictures):
    """Paint, and end a server or the driver at random moments spread over the whole run."""
    chance = random.Random(kills)
    ports = [find_free_port() for _ in range(3)]
    fakes = [start_fake(port, tmp_path / f"fake{port}", 0.05) for port in ports]
    servers = ",".join(f"http://127.0.0.1:{port}" for port in ports)
    command = (desk.rows(SIX), "--out", tmp_path / "out", "--workflow", desk.workflow, "--servers", servers)
    command = (*command, "--count", pictures // 6, "--sheet", 0)
    driver = start_driver(tmp_path / "log", *command)
    try:
        for written in sorted(chance.sample(range(pictures - 10), kills)):
            await_that(lambda least=written: len(desk.pictures()) >= least, 60.0)
            time.sleep(chance.uniform(0.0, 0.1))
            if chance.random() < 0.4:
                driver.kill()
                driver = start_driver(tmp_path / "log", *command)
            else:
                number = chance.randrange(3)
                fakes[number].kill()
                fakes[number] = start_fake(ports[number], tmp_path / f"fake{number}", 0.05)
        assert driver.wait(120.0) == 0, driver.text[-2000:]
    finally:
        driver.kill()
        for fake in fakes:
            fake.kill()


@pytest.mark.parametrize(
    "kills, pictures", [(10, 60), pytest.param(100, 600, marks=pytest.mark.soak)], ids=["short", "hundred"]
)
def test_kills_at_random_moments_leave_every_picture_once(desk, tmp_path, kills, pictures):
    desk.run(desk.rows(SIX), "one", servers=desk.serve(), count=pictures // 6)
    kill_and_go_on(desk, tmp_path, kills, pictures)
    assert desk.pictures("out") == desk.pictures("one") and len(desk.pictures("out")) == pictures
    assert check(desk) == 0
