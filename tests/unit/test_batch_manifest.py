"""What a batch tells and proves: --check, status, table and sheets, one driver at a time, a damaged manifest."""

from __future__ import annotations

import csv
import socket
import time

import pytest
from batches import SIX, await_that, check, start_driver

from cascade_studio.commands.batch import command, results
from cascade_studio.commands.batch.lock import beat, drives, driving, find_driver
from cascade_studio.commands.batch.manifest import DONE, Manifest
from cascade_studio.commands.messages import Stop


def test_check_tells_of_every_kind_of_wrong(desk, capsys):
    desk.run(desk.rows(SIX), servers=desk.serve())
    out = desk.folder / "out"
    gone, changed, *_ = sorted(desk.pictures())
    (out / gone).unlink()
    data = bytearray((out / changed).read_bytes())
    data[-20] ^= 1
    (out / changed).write_bytes(bytes(data))
    for name in ("stranger.png", ".DS_Store", "Thumbs.db"):
        (out / name).write_bytes(b"")
    capsys.readouterr()
    assert check(desk) == command.INCOMPLETE
    told = capsys.readouterr().out
    for words in (
        f"{gone} (line",
        "is gone",
        f"{changed} (line",
        "not what was painted",
        "stranger.png is not of this batch",
    ):
        assert words in told
    assert "3 things are wrong" in told
    before = desk.painted
    (out / changed).unlink()
    assert desk.run(desk.rows(SIX), servers=desk.serve()).complete
    assert desk.painted == before + 2


def test_a_new_start_lists_the_folder_once(desk, monkeypatch):
    """Only files that are not as the manifest says are looked at one by one."""
    rows, servers = desk.rows("name,prompt\na/b/one,apple\na/two,robot\nthree,frog\n", "r.csv"), desk.serve()
    assert desk.run(rows, servers=servers).complete
    (desk.folder / "out" / "a" / "two.png").write_bytes(b"cut short")
    looked, listed = [], []
    look, listing = results.OutputFolder.size, results.OutputFolder.list_files

    def count_looks(self, name):
        looked.append(name)
        return look(self, name)

    def count_listings(self):
        listed.append(self)
        return listing(self)

    monkeypatch.setattr(results.OutputFolder, "size", count_looks)
    monkeypatch.setattr(results.OutputFolder, "list_files", count_listings)
    assert desk.run(rows, servers=servers).complete
    assert looked == ["a/two.png"] and len(listed) == 1
    assert check(desk) == 0


def test_pictures_that_are_gone_are_painted_again_only_where_the_list_asks_for_them(desk):
    assert desk.run(desk.rows("apple\nrobot\n"), servers=desk.serve()).complete
    for name in desk.pictures():
        (desk.folder / "out" / name).unlink()
    before = desk.painted
    assert desk.run(desk.rows("robot\nfrog\n"), servers=desk.serve()).complete
    assert desk.painted == before + 2 and len(desk.pictures()) == 2
    assert check(desk) == 0


def test_a_damaged_manifest_ends_every_command_with_a_sentence(desk, capsys):
    rows, servers = desk.rows("apple"), desk.serve()
    assert desk.run(rows, servers=servers).complete
    path = desk.folder / "out" / "manifest.sqlite"
    whole = path.read_bytes()
    out = ["--out", str(desk.folder / "out"), "--workflow", str(desk.workflow), "--servers", servers]
    for damaged in (b"", b"no database", whole[:5000], whole[:4096] + bytes(len(whole) - 4096)):
        path.write_bytes(damaged)
        for arguments in (["status", out[1]], ["-", *out, "--check"]):
            capsys.readouterr()
            assert command.main(arguments) == 1, damaged[:20]
            assert "manifest" in capsys.readouterr().err
        if damaged:
            assert command.main([str(rows), *out]) == 1
            assert "manifest.sqlite" in capsys.readouterr().err
    path.write_bytes(whole)
    assert check(desk) == 0


def test_one_driver_at_a_time(desk):
    """On this machine whatever the clock says; elsewhere while it beats."""
    desk.run(desk.rows("apple"), servers=desk.serve())
    manifest, second = Manifest(desk.folder / "out"), Manifest(desk.folder / "out")

    def may_start() -> bool:
        try:
            with driving(second):
                return True
        except Stop as busy:
            assert "already" in str(busy)
            return False

    assert may_start()
    for jump in (0.0, 3600.0, -3600.0):
        with driving(manifest):
            manifest.set("driver", {**manifest.get("driver"), "beat": time.time() + jump})
            assert not may_start() and find_driver(second)
    for age, free in ((0.0, False), (-60.0, True), (3600.0, True)):
        manifest.set("driver", {"host": "elsewhere", "pid": 1, "beat": time.time() + age, "since": 0.0})
        assert may_start() == free
    manifest.set("driver", {"host": socket.gethostname(), "pid": 2**22 + 12345, "beat": time.time(), "since": 0.0})
    assert find_driver(second) is None and may_start()
    with driving(manifest):  # and slept, while another machine took over
        beat(manifest)
        other = {"host": "elsewhere", "pid": 1, "beat": time.time(), "since": 0.0}
        manifest.set("driver", other)
        with pytest.raises(Stop, match="elsewhere"):
            beat(manifest)
        assert not drives(manifest)
    assert manifest.get("driver") == other
    manifest.close()
    second.close()


def test_status_table_and_sheets_tell_the_results(desk, capsys):
    outcome = desk.run(desk.rows("apple\nit fails\n"), servers=desk.serve(), sheet=10)
    assert [path.name for path in outcome.files] == ["results.csv", "sheet_1.jpg"]
    rows = list(csv.DictReader((desk.folder / "out" / "results.csv").open(encoding="utf-8")))
    assert [row["state"] for row in rows] == [DONE, "set aside"] and rows[0]["prompt"] == "apple"
    assert rows[0]["file"] in desk.pictures() and rows[1]["error"] == "KSampler: it was told to fail"
    capsys.readouterr()
    assert command.main(["status", str(desk.folder / "out")]) == 0
    told = capsys.readouterr().out
    assert "1/2" in told and "1 set aside" in told and "line 2 is set aside: KSampler" in told
    assert command.main(["status", str(desk.folder)]) == 1


def test_status_of_a_running_batch_tells_its_workers(desk, tmp_path, capsys):
    servers = desk.serve(2, seconds=0.5)
    arguments = (
        desk.rows(SIX),
        "--out",
        tmp_path / "out",
        "--workflow",
        desk.workflow,
        "--servers",
        servers,
        "--count",
        20,
    )
    driver = start_driver(tmp_path / "log", *arguments)
    try:

        def told() -> str:
            command.main(["status", str(tmp_path / "out")])
            return capsys.readouterr().out

        await_that(lambda: desk.painted >= 2)
        await_that(lambda: "pictures/min" in (text := told()) and text.count("http://127.0.0.1:") == 2)
    finally:
        driver.kill()
