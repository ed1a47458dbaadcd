"""Whatever the network does: the file is absent or bit-exact, a later run completes it, and little is fetched twice."""

from __future__ import annotations

import re
import statistics
import time
from dataclasses import replace

import pytest
from downloads import safetensors
from faulty_server import Fault, File

from cascade_studio.nodes.checkpoints.errors import BadFile, FetchFailed, Interrupted

SIZE = 1 << 20
ALLOWED = 1.05


def test_a_file_comes_whole_and_once(place):
    [result] = place.fetch()
    place.assert_exact()
    assert (result.path, result.verified, result.fetched) == (place.target, "catalogue", SIZE)
    assert place.server.sent == SIZE and len(place.server.requests) == 1
    assert place.fetch() == [] and len(place.server.requests) == 1


@pytest.mark.parametrize("cut", (0, 1, 8, 255, 4096, 65537, SIZE // 2 + 13, SIZE - 1))
def test_a_cut_is_continued(place, cut):
    place.server.faults(Fault(cut=cut))
    place.fetch()
    place.assert_exact()
    assert place.server.sent <= ALLOWED * SIZE
    assert place.server.requests[1].headers["Range"] == f"bytes={cut}-{SIZE - 1}"


@pytest.mark.parametrize("connections", (1, 4))
def test_every_answer_is_cut(place, connections):
    place.server.always(Fault(cut=70_000))
    place.fetch(connections=connections, parallel_from=1, piece=200_000)
    place.assert_exact()
    assert place.server.sent <= ALLOWED * SIZE


def test_a_server_that_gives_nothing_is_given_up_and_what_is_here_is_kept(place):
    place.server.script = lambda number, request: Fault(cut=300_000 if number == 0 else 0)
    with pytest.raises(FetchFailed, match=r"connection was cut, 6 times in a row.* kB of it are kept.*By hand"):
        place.fetch()
    place.assert_absent()
    place.server.script = lambda number, request: None
    assert place.plan().missing[0].here == 300_000
    place.fetch()
    place.assert_exact()
    assert place.server.sent <= ALLOWED * SIZE


@pytest.mark.parametrize("connections", (1, 4))
def test_a_wrong_byte_is_noticed_and_set_aside(place, connections):
    place.server.script = lambda number, request: Fault(flip=700_001) if place.server.sent < SIZE else None
    place.fetch(connections=connections, parallel_from=1, piece=200_000)
    place.assert_exact()
    assert place.server.sent == 2 * SIZE
    bad = place.target.with_name("x.safetensors.bad").read_bytes()
    assert bad != place.data and len(bad) == SIZE


def test_a_file_that_stays_wrong_is_never_used(place):
    place.server.always(Fault(flip=3000))
    with pytest.raises(BadFile, match=r"damaged 2 times: Its SHA-256 is \w{64} instead of \w{64}.*x\.safetensors\.bad"):
        place.fetch()
    place.assert_absent()
    assert place.server.sent == 2 * SIZE
    place.server.forget()
    place.fetch()
    place.assert_exact()
    assert place.server.sent == SIZE


@pytest.mark.parametrize("size", (SIZE - 1, SIZE + 1))
def test_a_file_of_another_length_is_not_even_fetched(place, size):
    place.server.files["x"] = File(safetensors(size))
    with pytest.raises(FetchFailed, match=rf"has a file of .*\({size:,} bytes\) where .*\({SIZE:,} bytes\) belong"):
        place.fetch()
    place.assert_absent()


def test_an_announced_length_that_is_not_true(place):
    place.server.files["x"].ranges = False
    place.server.faults(Fault(announce=SIZE - 10))
    with pytest.raises(FetchFailed, match=r"bytes\) belong"):
        place.fetch()
    place.assert_absent()
    place.fetch()
    place.assert_exact()


@pytest.mark.parametrize(
    "marks",
    (
        {"etag": '"two"'},
        {"etag": '"two"', "if_range": False},
        {"etag": 'W/"two"'},
        {"etag": "", "modified": "Tue, 02 Jan 2024 00:00:00 GMT"},
    ),
)
def test_a_file_that_is_replaced_between_two_tries_is_not_mixed(place, marks):
    begun = 600_000
    place.serve(
        place.data,
        etag="" if not marks["etag"] else marks["etag"].replace("two", "one"),
        modified="Mon, 01 Jan 2024 00:00:00 GMT" if not marks["etag"] else "",
    )
    place.server.script = lambda number, request: Fault(cut=begun if number == 0 else 0)
    with pytest.raises(FetchFailed):
        place.fetch()
    place.server.forget()
    place.serve(safetensors(SIZE, seed=1), **marks)
    place.fetch()
    place.assert_exact()
    # Without If-Range the old rest is on its way already when its mark is seen to be another.
    assert place.server.sent <= SIZE + (256 << 10)
    assert not place.target.with_name("x.safetensors.bad").exists()


def test_a_file_that_is_replaced_without_any_mark_costs_one_more(place):
    place.serve(place.data, etag="")
    place.server.script = lambda number, request: Fault(cut=600_000 if number == 0 else 0)
    with pytest.raises(FetchFailed):
        place.fetch()
    place.server.forget()
    place.serve(safetensors(SIZE, seed=1), etag="")
    place.fetch()
    place.assert_exact()
    assert place.server.sent == SIZE - 600_000 + SIZE


def test_a_file_that_is_replaced_while_it_is_fetched(place):
    new = safetensors(SIZE, seed=1)

    def script(number, request):
        if number == 3:
            place.server.files["x"] = File(new, etag='"two"')

    place.server.script = script
    place.entry = replace(place.entry, sha256=None)
    with pytest.raises(BadFile, match="does not hold what 'stage_a' needs"):
        place.fetch(parallel_from=1, connections=2, piece=150_000)
    assert place.target.with_name("x.safetensors.bad").read_bytes() == new


def test_a_range_that_does_not_exist_any_more(place):
    place.server.faults(Fault(cut=500_000), Fault(status=416))
    place.fetch()
    place.assert_exact()
    assert place.server.sent <= 500_000 + SIZE


@pytest.mark.parametrize("etag", ('"one"', ""))
def test_without_ranges_it_begins_again(place, etag):
    place.serve(place.data, ranges=False, etag=etag)
    place.server.faults(Fault(cut=900_000))
    place.fetch()
    place.assert_exact()
    assert place.server.sent <= 900_000 + SIZE


def test_without_a_length_it_reads_to_the_end(place):
    place.serve(place.data, ranges=False, chunked=True)
    place.server.faults(Fault(cut=100_000))
    place.fetch()
    place.assert_exact()
    assert place.server.sent == 100_000 + SIZE


def test_retry_after_is_waited_for(place):
    place.server.faults(Fault(status=429, headers={"Retry-After": "1"}))
    notes = set()
    begun = time.monotonic()
    place.fetch(progress=lambda moment: notes.add(moment.note))
    assert time.monotonic() - begun >= 1
    place.assert_exact()
    assert any("asked too often (429); trying again in" in note for note in notes)


@pytest.mark.parametrize("status", (429, 500, 502, 503, 504))
def test_passing_errors_pass(place, status):
    place.server.faults(Fault(status=status), Fault(cut=100_000), Fault(status=status))
    place.fetch()
    place.assert_exact()
    assert place.server.sent == SIZE


@pytest.mark.parametrize("connections", (1, 4))
@pytest.mark.parametrize(
    "fault",
    (
        Fault(stall=200_000, seconds=60),
        Fault(loris=200_000, seconds=0.05),
        Fault(dribble=True, seconds=60),
        Fault(stall=0, seconds=60),
    ),
)
def test_a_server_that_falls_asleep_is_asked_again(place, fault, connections):
    place.server.faults(fault)
    begun = time.monotonic()
    place.fetch(connections=connections, parallel_from=1, piece=250_000, connect=1.0, stall=1.0)
    assert time.monotonic() - begun < 40, "it sleeps for a minute, or would take hours"
    place.assert_exact()
    assert place.server.sent <= ALLOWED * SIZE + 65536


def test_several_connections_share_the_work(place):
    place.serve(safetensors(4 << 20))
    place.server.rate = 4e6
    place.fetch(connections=4, parallel_from=1, piece=256 << 10)
    place.assert_exact()
    assert place.server.most_open > 2 and place.server.sent == 4 << 20
    ranges = [request.headers["Range"] for request in place.server.requests]
    assert len(set(ranges)) == len(ranges) == 16


def test_small_files_take_one_connection(place):
    place.fetch(connections=4)
    assert place.server.most_open == 1 and len(place.server.requests) == 1


@pytest.mark.parametrize(
    "fault, connections",
    (
        (None, 1),
        (Fault(stall=100_000, seconds=60), 1),
        (None, 4),
        (Fault(status=503, headers={"Retry-After": "60"}), 1),
    ),
)
def test_an_interrupt_is_quick_and_keeps_what_came(place, fault, connections):
    """It is looked for twice a second, however busy the machine is now and then, and never as late as the network."""
    place.server.rate = 200_000
    place.server.faults(fault)
    asked = []
    with pytest.raises(Interrupted, match="the next try goes on from it"):
        place.fetch(
            cancelled=lambda: asked.append(time.monotonic()) or len(asked) > 8,
            connections=connections,
            parallel_from=1,
            stall=30,
        )
    waits = [after - before for before, after in zip(asked, asked[1:])]
    assert statistics.median(waits) <= 0.5
    assert max(*waits, time.monotonic() - asked[-1]) < 15, "the server makes everybody wait for 30 s and more"
    place.assert_absent()
    place.server.rate = None
    here = place.plan().missing[0].here
    assert here > 0 or fault and fault.status
    place.server.forget()
    place.fetch()
    place.assert_exact()
    assert place.server.sent == SIZE - here


def test_the_interrupt_of_a_host_passes_through(place):
    class Stop(Exception):
        pass

    def check():
        raise Stop

    with pytest.raises(Stop):
        place.fetch(cancelled=check)
    place.fetch()
    place.assert_exact()


def test_a_web_page_instead_of_the_file(place):
    place.entry = replace(place.entry, sha256=None, bytes=None)
    place.server.always(Fault(body=b"<!DOCTYPE html><html>Log in</html>"))
    with pytest.raises(BadFile, match="is a web page saved under a model's name"):
        place.fetch()
    place.assert_absent()


def test_a_compressed_answer_is_refused(place):
    place.server.always(Fault(headers={"Content-Encoding": "gzip"}))
    with pytest.raises(FetchFailed, match="sends the file compressed"):
        place.fetch()


def test_a_damaged_part_is_found_by_its_hash(place):
    place.server.script = lambda number, request: Fault(cut=600_000 if number == 0 else 0)
    with pytest.raises(FetchFailed):
        place.fetch()
    place.server.forget()
    part = place.target.with_name("x.safetensors.part")
    part.write_bytes(b"\0" * 100 + part.read_bytes()[100:])
    place.fetch()
    place.assert_exact()
    assert place.server.sent == SIZE - 600_000 + SIZE


@pytest.mark.parametrize(
    "spoil",
    (
        lambda text: "",
        lambda text: text[:-5],
        lambda text: text.replace("600000", "900000"),
        lambda text: "[]",
        lambda text: text.replace('"version": 1', '"version": 99'),
    ),
)
def test_a_spoilt_sidecar_costs_at_most_what_was_here(place, spoil):
    place.server.script = lambda number, request: Fault(cut=600_000 if number == 0 else 0)
    with pytest.raises(FetchFailed):
        place.fetch()
    sidecar = place.target.with_name("x.safetensors.part.json")
    sidecar.write_text(spoil(sidecar.read_text()))
    place.server.forget()
    place.fetch()
    place.assert_exact()
    assert place.server.sent <= SIZE


def test_progress_tells_bytes_speed_and_time(place):
    place.server.rate = 1.5e6
    moments = []
    place.fetch(progress=moments.append)
    assert [m.done for m in moments] == sorted(m.done for m in moments)
    assert {m.total for m in moments} == {SIZE} and moments[-1].done == SIZE
    middle = moments[len(moments) // 2]
    assert 0.3e6 < middle.speed < 3e6 and 0 < middle.left < 5
    assert re.fullmatch(r"x\.safetensors: \d+ % of 1\.05 MB, [\d.]+ [kM]B/s, \d+ s left", middle.describe())
