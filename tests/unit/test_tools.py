"""What `dev.py` does around a server: linking the pack, stopping processes, websockets, choices, pictures."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest

from cascade_studio.commands.messages import Stop
from cascade_studio.commands.processes import end_group, own_group
from cascade_studio.commands.workflow.api_prompt import Converted
from tools import server
from tools.edit import fit_files, parse_size, set_prompt, set_seed, set_size
from tools.png import text_chunks
from tools.websocket import Closed, WebSocket


@pytest.mark.parametrize("rights", (True, False))
def test_the_pack_is_linked_or_copied_and_never_lost(tmp_path, monkeypatch, rights):
    pack = tmp_path / "pack"
    (pack / ".git").mkdir(parents=True)
    (pack / "__init__.py").write_text("1")
    if not rights:

        def refuse(*_, **__):
            raise OSError("no right to make links")

        monkeypatch.setattr(Path, "symlink_to", refuse)
    target = server.link_pack(tmp_path / "custom_nodes", pack, "mine")
    assert (target / "__init__.py").read_text() == "1" and target.is_symlink() == rights
    server.unlink_pack(target)
    assert not target.exists() and (pack / "__init__.py").is_file() and (pack / ".git").is_dir()
    target.mkdir()
    (target / "work.py").write_text("someone's clone")
    server.unlink_pack(target)
    assert (target / "work.py").is_file()
    with pytest.raises(Stop, match="is there already"):
        server.link_pack(tmp_path / "custom_nodes", pack, "mine")


@pytest.mark.parametrize("rights", (True, False))
def test_a_host_that_is_restarted_at_once_keeps_the_pack(tmp_path, monkeypatch, rights):
    """The second one starts before the first has ended: only the last to end takes the pack away."""
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "__init__.py").write_text("1")
    if not rights:
        monkeypatch.setattr(
            Path, "symlink_to", lambda *_, **__: (_ for _ in ()).throw(OSError("no right to make links"))
        )
    first = server.Base(tmp_path / "base", pack)
    second = server.Base(tmp_path / "base", pack)
    (second.link / "left_by_python").write_text("") if not rights else None
    first.close()
    assert (second.link / "__init__.py").is_file()
    second.close()
    assert not second.link.exists() and (pack / "__init__.py").is_file()


def test_a_server_is_stopped_with_everything_that_it_started():
    code = (
        "import subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, **own_group())
    child = int(process.stdout.readline())
    end_group(process)
    process.stdout.close()
    assert process.returncode is not None
    limit = time.monotonic() + 10
    while _alive(child) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not _alive(child)


def test_a_process_that_has_ended_is_not_ended_again(monkeypatch):
    """Its number may be another program's by now."""
    process = subprocess.Popen([sys.executable, "-c", ""], **own_group())
    process.wait()
    monkeypatch.setattr(os, "killpg", lambda *what: pytest.fail("a group was signalled"), raising=False)
    end_group(process)


def test_a_server_ends_with_its_starter(tmp_path):
    script = tmp_path / "main.py"
    script.write_text("import os, sys, time; print(os.getpid(), sys.argv, sys.path[0], flush=True); time.sleep(60)")
    guard = str(server.REPOSITORY / "commands" / "guard.py")
    starter = (
        "import subprocess, sys, time;"
        "started = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True);"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", starter, sys.executable, guard, str(script), "--flag"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
    number, rest = process.stdout.readline().strip().split(" ", 1)
    assert rest == f"{[str(script), '--flag']} {tmp_path}"
    process.kill()
    process.wait()
    process.stdout.close()
    limit = time.monotonic() + 10
    while _alive(int(number)) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not _alive(int(number))


def _alive(number: int) -> bool:
    if os.name == "nt":
        command = ["tasklist", "/FI", f"PID eq {number}"]
        return str(number) in subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8").stdout
    try:
        with open(f"/proc/{number}/stat", encoding="utf-8") as file:
            return file.read().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def frame(kind: int, payload: bytes, last: bool = True) -> bytes:
    size = len(payload)
    length = (
        bytes([size])
        if size < 126
        else (b"\x7e" + struct.pack(">H", size) if size < 1 << 16 else b"\x7f" + struct.pack(">Q", size))
    )
    return bytes([kind | (0x80 if last else 0)]) + length + payload


def test_websocket_messages_arrive_whole():
    long, longer = b"x" * 300, b"y" * 70000
    sent = frame(1, "grüß".encode()) + frame(9, b"beat") + frame(2, long[:100], last=False) + frame(0, long[100:])
    sent += frame(2, longer)
    listener = socket.create_server(("127.0.0.1", 0))
    heard: list[bytes] = []
    waited = threading.Event()

    def serve():
        connection, _ = listener.accept()
        with connection:
            while b"\r\n\r\n" not in connection.recv(4096):
                pass
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + sent[:7])
            waited.wait(60)
            connection.sendall(sent[7:])
            heard.append(connection.recv(4096))
            connection.sendall(frame(8, b""))

    thread = threading.Thread(target=serve)
    thread.start()
    with WebSocket("127.0.0.1", listener.getsockname()[1], "/ws") as connection:
        with pytest.raises(TimeoutError):
            connection.receive(timeout=0.1)  # a part of a message is none
        waited.set()
        assert [connection.receive(timeout=60) for _ in range(3)] == ["grüß", long, longer]
        with pytest.raises(Closed):
            connection.receive(timeout=60)
    thread.join()
    listener.close()
    first = heard[0]
    assert first[0] == 0x8A and bytes(byte ^ first[2:6][i % 4] for i, byte in enumerate(first[6:10])) == b"beat"


# What a person may choose for the demo


def sampling() -> Converted:
    return Converted(
        {
            "1": {"class_type": "Text", "inputs": {"text": "old", "clip": ["9", 0]}, "_meta": {"title": "Text"}},
            "2": {"class_type": "Text", "inputs": {"text": "bad", "clip": ["9", 0]}, "_meta": {"title": "Text"}},
            "3": {"class_type": "Pass", "inputs": {"conditioning": ["1", 0]}, "_meta": {"title": "Pass"}},
            "4": {
                "class_type": "Sample",
                "inputs": {"positive": ["3", 0], "negative": ["2", 0], "seed": 1},
                "_meta": {"title": "Sample"},
            },
            "5": {"class_type": "Canvas", "inputs": {"width": 8, "height": 8}, "_meta": {"title": "Canvas"}},
            "6": {"class_type": "Scale", "inputs": {"width": 3, "height": ["5", 1]}, "_meta": {"title": "Scale"}},
            "9": {"class_type": "Load", "inputs": {"file": "stage_c_bf16.safetensors"}, "_meta": {"title": "Load"}},
        }
    )


def test_choices_reach_the_right_inputs():
    converted = sampling()
    set_prompt(converted, "new")
    set_seed(converted, 7)
    set_size(converted, *parse_size("640x480"))
    prompt = converted.prompt
    assert (prompt["1"]["inputs"]["text"], prompt["2"]["inputs"]["text"]) == ("new", "bad")
    assert prompt["4"]["inputs"]["seed"] == 7
    assert prompt["5"]["inputs"] == {"width": 640, "height": 480} and prompt["6"]["inputs"]["width"] == 3
    with pytest.raises(Stop, match="--size big is not a size"):
        parse_size("big")
    for change in (
        lambda empty: set_prompt(empty, "x"),
        lambda empty: set_seed(empty, 1),
        lambda empty: set_size(empty, 1, 1),
    ):
        with pytest.raises(Stop, match="has no effect"):
            change(Converted({}))


def test_missing_files_are_replaced_by_the_nearest_or_asked_for():
    files = ["stage_b.safetensors", "stage_c.safetensors", "none"]
    info = {"Load": {"input": {"required": {"file": [files]}}}}
    converted = sampling()
    lines = fit_files(converted, info)
    assert converted.prompt["9"]["inputs"]["file"] == "stage_c.safetensors" and len(lines) == 1
    assert fit_files(converted, info) == []
    info["Load"]["input"]["required"]["file"] = ["COMBO", {"options": ["none"]}]
    with pytest.raises(Stop, match="needs the file stage_c_bf16.safetensors as file"):
        fit_files(sampling(), info)


def test_a_file_that_would_be_fetched_is_not_here():
    """Loaders offer published files, too: a run on other files replaces those as it does unknown ones."""
    options = {"options": ["stage_b.safetensors", "stage_c.safetensors", "stage_c_bf16.safetensors"]}
    info = {"Load": {"input": {"required": {"file": ["COMBO", options]}}}}
    assert fit_files(sampling(), info) == []
    options["published"] = ["stage_c_bf16.safetensors"]
    converted = sampling()
    fit_files(converted, info)
    assert converted.prompt["9"]["inputs"]["file"] == "stage_c.safetensors"


def test_png_texts_are_read():
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", b"prompt\0{}")
    data += chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"[1]"))
    data += chunk(b"iTXt", b"name\0\0\0de\0\0" + "grün".encode())
    whole = data + chunk(b"IEND", b"")
    assert text_chunks(whole) == {"prompt": "{}", "workflow": "[1]", "name": "grün"}
    for broken in (data, b"GIF89a"):
        with pytest.raises(ValueError):
            text_chunks(broken)
