"""The servers of a batch: those that answer wrongly, that leave and come back, and what no other may learn."""

from __future__ import annotations

import http.server
import threading

import pytest
from batches import SIX, await_that, check

from cascade_studio.commands.batch import driver, server, workers
from cascade_studio.commands.batch.address import Refused
from cascade_studio.commands.batch.manifest import DONE
from cascade_studio.commands.batch.server import Server
from cascade_studio.commands.messages import Stop

ODD_SERVERS = {
    "no JSON": {"/history": (200, b"<html>"), "/queue": (200, b"<html>")},
    "other JSON": {"/history": (200, [1]), "/prompt": (200, 7)},
    "odd entries": {"/history/": (200, {"status": 1})},
    "an error for each prompt": {"/prompt": (500, b"a fault of its own")},
    "no files": {"/view": (500, b"")},
    "nodes it lacks": {"/object_info/": (200, {})},
    "values it lacks": {"/prompt": (400, {"error": {"message": "Value not in list"}})},
    "who are you": {"/system_stats": (401, {})},
    "somebody else": {"/system_stats": (200, ["hello"])},
}
"""Servers that answer wrongly, by what they do: (status, answer) by the start of a path."""


@pytest.mark.parametrize("kind", ODD_SERVERS)
def test_a_server_that_answers_wrongly_takes_no_row_along(desk, monkeypatch, kind):
    """Beside a good one; it is asked again later, and later, or left out."""
    monkeypatch.setattr(server, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(server, "LOOK_SECONDS", 0.3)
    monkeypatch.setattr(driver, "LOST_SECONDS", 0.05)
    servers = f"{desk.serve(changed=ODD_SERVERS[kind])},{desk.serve(seconds=0.05)}"
    outcome = desk.run(desk.rows(SIX), servers=servers)
    assert outcome.complete, outcome.counts
    assert check(desk) == 0 and {len(fake.painted) for fake in desk.fakes[1:]} == {6}


def test_a_batch_with_wrong_servers_alone_ends_with_their_words(desk, monkeypatch):
    monkeypatch.setattr(server, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(driver, "LOST_SECONDS", 0.05)
    for kind, words in (("nodes it lacks", "has no CLIPTextEncode"), ("an error for each prompt", "HTTP 500: a fault")):
        with pytest.raises(Stop, match=words):
            desk.run(desk.rows(SIX), servers=desk.serve(changed=ODD_SERVERS[kind]), patience=2.0)


def test_a_server_that_left_and_came_back_paints_again(desk, monkeypatch):
    monkeypatch.setattr(workers, "REREAD_SECONDS", 0.05)
    monkeypatch.setattr(driver, "KEEP_SECONDS", 0.1)
    one, other = desk.serve(seconds=0.1), desk.serve(seconds=0.1)
    listed = desk.folder / "servers.txt"
    listed.write_text(f"{one}\n{other}\n", encoding="utf-8")

    def leave_and_return() -> None:
        await_that(lambda: desk.fakes[1].painted)
        for time_away in range(1, 4):
            listed.write_text(f"{one}\nftp://what\n", encoding="utf-8")
            await_growth(0, 3)
            listed.write_text(f"{one}\n{other}\n", encoding="utf-8")
            await_growth(1, 1)
            returned.append(time_away)

    def await_growth(server: int, by: int) -> None:
        before = len(desk.fakes[server].painted)
        await_that(lambda: len(desk.fakes[server].painted) >= before + by)

    returned: list[int] = []
    coming = threading.Thread(target=leave_and_return)
    coming.start()
    assert desk.run(desk.rows(SIX), servers=f"@{listed}", count=12).complete
    coming.join()
    assert returned == [1, 2, 3], "it painted after it had come back for the third time"


def test_addresses_with_a_path_are_servers_of_their_own():
    names = [Server(url).name for url in ("http://u:p@h:1/a", "http://h:1/b/", "h:1", "https://[::1]:2")]
    assert names == ["http://h:1/a", "http://h:1/b", "http://h:1", "https://[::1]:2"]
    for wrong in ("http://h:x", "http://[::1", "http://", "file:///etc", "http://h:99999"):
        with pytest.raises(Stop, match="is no address"):
            Server(wrong)


# Safety


def test_secrets_stay_out_of_every_file(desk, capsys):
    servers = desk.serve(secret="me:hush-hush").replace("http://", "http://me:hush-hush@")
    assert desk.run(desk.rows("apple\nit fails\n"), servers=servers, sheet=5).counts[DONE] == 1
    for path in (desk.folder / "out").rglob("*"):
        assert path.is_dir() or b"hush-hush" not in path.read_bytes(), path.name
    told = capsys.readouterr()
    assert "hush" not in told.out + told.err
    with pytest.raises(Stop) as refused:
        desk.run(desk.rows("apple"), servers="ftp://me:hush-hush@127.0.0.1")
    assert "hush" not in str(refused.value)


def test_a_redirect_to_another_address_is_not_followed(desk):
    asked = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", desk.serve() + "/system_stats")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Elsewhere)
    desk.servers.append(server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(Refused, match="302"):
        Server(f"http://127.0.0.1:{server.server_port}").ask("/system_stats")
    assert asked == ["/system_stats"]
