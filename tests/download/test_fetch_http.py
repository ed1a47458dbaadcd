"""Tokens, redirects, mirrors, proxies and refusals: who is told what, and what people are told."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from downloads import QUICK
from faulty_server import Fault, File

from cascade_studio.nodes.checkpoints import connections, http
from cascade_studio.nodes.checkpoints.errors import BadCatalogue, BadFile, FetchFailed, Offline
from cascade_studio.nodes.checkpoints.fetch import _Job, sources
from cascade_studio.nodes.checkpoints.partial import Partial
from cascade_studio.nodes.checkpoints.plan import Missing
from cascade_studio.nodes.checkpoints.progress import Meter
from cascade_studio.nodes.checkpoints.settings import FetchSettings
from cascade_studio.nodes.checkpoints.transfer import Transfer

TOKEN = "hf_secretSECRETsecret"
HUB = "https://huggingface.co/org/repo/resolve/main/x"


def tokens(server) -> list[str | None]:
    return [request.headers.get("Authorization") for request in server.requests]


@pytest.fixture
def authorised(place):
    """The place with a token, which its server alone may see."""
    place.settings = replace(QUICK, token=TOKEN, endpoint=place.server.url("").rstrip("/"))
    return place


# Tokens


def test_the_token_goes_to_the_endpoint(authorised):
    authorised.fetch()
    assert tokens(authorised.server) == [f"Bearer {TOKEN}"]


def test_the_token_goes_nowhere_else(place):
    place.fetch(token=TOKEN)
    assert tokens(place.server) == [None]


@pytest.mark.parametrize("host", ("127.0.0.1", "localhost"))
def test_a_redirect_does_not_carry_the_token_to_another_server(authorised, servers, host):
    other = servers()
    other.files["cdn"] = File(authorised.data)
    authorised.server.always(Fault(redirect=other.url("cdn", host) + "?Signature=geheim"))
    authorised.fetch(connections=4, parallel_from=1, piece=300_000)
    authorised.assert_exact()
    assert set(tokens(authorised.server)) == {f"Bearer {TOKEN}"} and set(tokens(other)) == {None}
    assert len(authorised.server.requests) == 1, "the address that it leads to is used for the other pieces"


def test_a_redirect_within_the_server_keeps_the_token(authorised):
    authorised.server.faults(Fault(redirect="/x?again"))
    authorised.fetch()
    assert tokens(authorised.server) == [f"Bearer {TOKEN}"] * 2


def test_a_stale_token_is_left_out(authorised):
    authorised.server.script = lambda number, request: Fault(status=401) if "Authorization" in request.headers else None
    authorised.fetch()
    authorised.assert_exact()
    assert tokens(authorised.server) == [f"Bearer {TOKEN}", None]


def test_a_login_that_is_needed_is_asked_for_once_each_way(authorised):
    authorised.server.always(Fault(status=401))
    with pytest.raises(FetchFailed, match="wants a login.*401.*HF_TOKEN.*By hand: download"):
        authorised.fetch()
    assert tokens(authorised.server) == [f"Bearer {TOKEN}", None]


def test_no_secret_is_ever_shown(authorised, servers, caplog):
    caplog.set_level(logging.DEBUG, logger="cascade_studio")
    other = servers()
    other.always(Fault(cut=0))
    authorised.server.always(Fault(redirect=other.url("cdn") + "?Signature=geheim"))
    other.files["cdn"] = File(authorised.data)
    with pytest.raises(FetchFailed) as failure:
        authorised.fetch()
    seen = [caplog.text, str(failure.value), repr(failure.value), repr(authorised.settings)]
    seen += [path.read_text(errors="replace") for path in authorised.target.parent.iterdir()]
    assert "connection was cut" in caplog.text
    assert not [text for text in seen if TOKEN in text or "geheim" in text]
    assert failure.value.__cause__ is None


def test_netrc_is_not_used(place, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    place.fetch()
    assert tokens(place.server) == [None]


def test_a_token_that_cannot_be_one_is_refused_before_it_is_sent():
    with pytest.raises(BadCatalogue, match="HF_TOKEN holds characters") as error:
        FetchSettings.from_environment({"HF_TOKEN": "one\ntwo"})
    assert "one" not in str(error.value).replace("one,", "")


# Redirects


@pytest.mark.parametrize(
    "where", ("http://192.0.2.1/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "http://user:pw@127.0.0.1/x")
)
def test_a_redirect_to_anything_but_https_is_not_followed(place, where):
    place.server.always(Fault(redirect=where))
    with pytest.raises(FetchFailed, match="redirects to .* is neither https nor http on this computer") as failure:
        place.fetch()
    assert "pw" not in str(failure.value)
    place.assert_absent()


@pytest.mark.parametrize("number", ["127.0.0.1", "10.1.2.3", "[::1]", "[::ffff:10.0.0.1]", "169.254.169.254"])
def test_a_redirect_from_outside_into_a_private_network_is_not_followed(number):
    begun = "https://8.8.8.8/x"
    with pytest.raises(FetchFailed, match="redirects to this computer itself or into the network"):
        http.RangeClient._check_redirect(begun, f"https://{number}/x", begun)


NAMES = {
    "a name of this computer": [["127.0.0.1"]],
    "a name that stands for several": [["203.0.113.1", "127.0.0.1"]],
    "a name that changes between two looks": [["203.0.113.1"], ["127.0.0.1"]],
}
"""What a name on the way stands for, at each look; nobody answers at 203.0.113.1."""


@pytest.fixture
def outside(place, monkeypatch) -> Callable[[list[list[str]]], str]:
    """The place's server as one of the outside, and the name ``there`` as whatever it is to stand for."""
    look_up, looks = socket.getaddrinfo, []

    def stand_for(answers: list[list[str]]) -> str:
        def look(host: str, port: Any, *more: Any, **others: Any) -> list[Any]:
            if host != "there.example":
                return look_up(host, port, *more, **others)
            looks.append(host)
            now = answers[min(len(looks), len(answers)) - 1]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, port)) for number in now]

        monkeypatch.setattr(socket, "getaddrinfo", look)
        monkeypatch.setattr(http, "leads_inside", lambda host: False)
        return "there.example"

    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return stand_for


@pytest.mark.parametrize("answers", NAMES.values(), ids=NAMES)
def test_a_name_on_the_way_does_not_lead_into_a_private_network(place, servers, outside, answers):
    """The address of the open connection counts, and not a byte is sent to it."""
    here, name = servers(), outside(answers)
    if len(answers) > 1:
        socket.getaddrinfo(name, 0)  # the look at which it was still a public one
    place.server.always(Fault(redirect=f"https://{name}:{here.port}/x"))
    with pytest.raises(FetchFailed, match="redirect leads to there.example, which is this computer itself or in"):
        place.fetch()
    assert not here.requests
    assert not [path for path in place.models.rglob("*") if path.is_file()], "nothing is left of a refusal"


def test_whoever_begins_inside_is_led_inside(place, servers):
    """A mirror in one's own network redirects to its neighbours."""
    assert connections.leads_inside("127.0.0.1") and connections.leads_inside("localhost")
    assert not connections.leads_inside("203.0.113.1.example.invalid")
    other = servers()
    other.files["cdn"] = File(place.data)
    place.server.always(Fault(redirect=other.url("cdn")))
    place.fetch()
    place.assert_exact()


def test_a_proxy_may_be_anywhere(place, monkeypatch):
    """It alone knows where a name lies, so only the connection to it is ours."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", place.server.url(""))
    client = http.RangeClient(QUICK)
    client._own.buffer = 0
    with client._ask("http://there.example/x", {}, outside_only=True) as response:
        assert response.content == place.data


def test_circles_end(place):
    place.server.always(Fault(redirect="/x"))
    with pytest.raises(FetchFailed, match="redirects in circles"):
        place.fetch()
    assert len(place.server.requests) == http.HOPS


def test_a_name_in_an_answer_is_not_used(place):
    place.server.always(Fault(headers={"Content-Disposition": 'attachment; filename="../../evil.safetensors"'}))
    place.fetch()
    place.assert_exact()


def test_a_signed_address_that_ran_out_is_asked_for_again(place, servers):
    other = servers()
    other.files["cdn"] = File(place.data)
    place.server.always(Fault(redirect=other.url("cdn")))
    other.faults(Fault(cut=300_000), Fault(status=403))
    place.fetch()
    place.assert_exact()
    assert [len(server.requests) for server in (place.server, other)] == [2, 3] and other.sent == len(place.data)


# Mirrors and proxies


def test_addresses_of_the_hub_go_through_the_endpoint_and_the_mirrors(place):
    entry = replace(place.entry, url=HUB, mirrors=("https://elsewhere.example/x",))
    environment = {
        "HF_ENDPOINT": "https://hub.example/",
        "CASCADE_STUDIO_MIRRORS": "https://one.example, https://two.example/hf/",
    }
    assert sources(entry, FetchSettings.from_environment(environment)) == [
        "https://hub.example/org/repo/resolve/main/x",
        "https://one.example/org/repo/resolve/main/x",
        "https://two.example/hf/org/repo/resolve/main/x",
        "https://elsewhere.example/x",
    ]
    assert sources(entry, FetchSettings.from_environment({}))[0] == HUB
    assert sources(place.entry, FetchSettings.from_environment(environment)) == [place.server.url("x")]
    with pytest.raises(BadCatalogue, match="HF_ENDPOINT.*neither https"):
        FetchSettings.from_environment({"HF_ENDPOINT": "http://hub.example"})


def test_the_next_mirror_goes_on_where_the_last_one_failed(place, servers):
    path, mirror = "org/repo/resolve/main/x", servers()
    place.entry = replace(place.entry, url=HUB)
    for server, etag in ((place.server, '"a"'), (mirror, '"b"')):
        server.files[path] = File(place.data, etag=etag)
    place.server.script = lambda number, request: Fault(cut=600_000 if number == 0 else 0)
    [result] = place.fetch(endpoint=place.server.url("").rstrip("/"), mirrors=(mirror.url("").rstrip("/"),), tries=2)
    place.assert_exact()
    assert mirror.sent == len(place.data) - 600_000
    assert result.verified == "catalogue"


def test_a_mirror_is_never_believed_about_hashes(place):
    """It tells a hash as the official host does, for a file that nobody else has told one of."""
    told = {"X-Linked-Etag": f'"{place.entry.sha256}"'}
    place.server.files["org/repo/resolve/main/x"] = File(place.data, headers=told)
    place.entry = replace(place.entry, url=HUB, sha256=None, provenance=None)
    with pytest.raises(BadFile, match="does not hold what 'stage_a' needs"):
        place.fetch(endpoint=place.server.url("").rstrip("/"))


def test_a_file_without_a_trusted_hash_is_marked(place, tiny_stage_a, caplog):
    place.serve(tiny_stage_a)
    place.entry = replace(place.entry, sha256=None, provenance=None)
    [result] = place.fetch()
    place.assert_exact()
    assert result.verified == "" and "unverified" in caplog.text
    assert place.plan().found


def reply_of_the_official_host(digest: str, size: int) -> http.Reply:
    return http.Reply(None, 0, size, size, True, '"e"', digest)


@pytest.mark.parametrize("provenance", ("official page", "official commit"))
def test_a_file_that_was_replaced_officially_is_not_fetched(place, provenance):
    transfer = Transfer(replace(place.entry, provenance=provenance), HUB, None, http.RangeClient(QUICK))
    transfer._judge(reply_of_the_official_host(place.entry.sha256, len(place.data)))
    with pytest.raises(FetchFailed, match="huggingface.co has replaced the file: its SHA-256 is now b{64}, the"):
        transfer._judge(reply_of_the_official_host("b" * 64, len(place.data)))


def test_the_official_host_knows_better_than_a_copy(place, tmp_path):
    entry, official = replace(place.entry, provenance="copy"), "b" * 64
    Transfer(entry, HUB, None, http.RangeClient(QUICK))._judge(
        reply_of_the_official_host(official, len(place.data) + 1)
    )
    partial = Partial(tmp_path / "x")
    job = _Job(Missing(entry, tmp_path / "x"), http.RangeClient(QUICK), Meter({}), bool, 0)
    assert job._choose_digest(partial) == (entry.sha256, "catalogue")
    partial.belongs_to(HUB, "", None, official)
    assert job._choose_digest(partial) == (official, "official host")
    partial.close()


def test_only_the_official_host_over_https_tells_hashes():
    digest = "a" * 64
    assert http.read_official_hash(HUB, {"X-Linked-Etag": f'"{digest}"'}) == digest
    for url in (
        HUB.replace("https", "http"),
        HUB.replace("huggingface.co", "huggingface.co.example"),
        HUB.replace("huggingface.co", "huggingface.co:8443"),
        "https://cdn.huggingface.co/x",
    ):
        assert http.read_official_hash(url, {"X-Linked-Etag": digest}) is None
    assert http.read_official_hash(HUB, {"X-Linked-Etag": '"b54f"', "ETag": digest}) is None


def test_proxies_are_used(place, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", place.server.url(""))
    place.entry = replace(place.entry, url="http://127.0.0.1:9/x")
    place.fetch()
    place.assert_exact()


# Refusals


@pytest.mark.parametrize(
    "status, words",
    (
        (403, "licence may have to be accepted"),
        (404, "no such file"),
        (410, "removed"),
        (418, "answers with the error 418"),
    ),
)
def test_refusals_are_sentences_with_the_manual_steps(place, status, words):
    place.server.always(Fault(status=status))
    with pytest.raises(FetchFailed, match=words) as failure:
        place.fetch()
    assert f"By hand: download {place.server.url('x')} and save it as {place.target}." in str(failure.value)
    assert len(place.server.requests) == 1


@pytest.mark.parametrize(
    "status, words",
    (
        (429, r"asked too often \(429\), 3 times in a row"),
        (503, r"a fault or too much to do \(503\), 3 times in a row"),
    ),
)
def test_what_does_not_pass_is_given_up(place, status, words):
    place.server.always(Fault(status=status))
    with pytest.raises(FetchFailed, match=words + ".*By hand"):
        place.fetch(tries=3)
    assert len(place.server.requests) == 3


def test_a_long_wait_is_left_to_the_person(place):
    place.server.always(Fault(status=429, headers={"Retry-After": "7200"}))
    with pytest.raises(FetchFailed, match="left alone for 120 minutes"):
        place.fetch()


def test_a_server_that_is_not_there(place):
    place.server.close()
    with pytest.raises(FetchFailed, match="the connection was refused, 2 times in a row"):
        place.fetch(tries=2)


@pytest.mark.parametrize("variable", ("CASCADE_STUDIO_OFFLINE", "HF_HUB_OFFLINE"))
def test_the_switch_turns_all_networking_off(place, variable):
    place.settings = FetchSettings.from_environment({variable: "1"})
    with pytest.raises(Offline, match=f"networking is switched off.*\n.*save it as {place.target}"):
        place.fetch()
    assert place.server.requests == []
    assert not FetchSettings.from_environment({variable: "0"}).offline


@pytest.mark.parametrize("value, seconds", (("3", 3), ("", None), (None, None), ("soon", None)))
def test_retry_after_is_read(value, seconds):
    assert http.retry_after(value) == seconds
    assert 0 <= http.retry_after("Mon, 01 Jan 2024 00:00:00 GMT") == 0
