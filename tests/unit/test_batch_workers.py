"""The workers of a batch: what each gets, who joins and leaves, and stage by stage."""

from __future__ import annotations

import copy
import json
import threading
import time

import pytest
from batches import PROMPT, SIX, await_that, check, count_states, make_fake_host, start_driver

from cascade_studio.commands.batch import command, driver, manifest, run, run_batch, workers
from cascade_studio.commands.batch.address import Unreachable
from cascade_studio.commands.batch.manifest import ASKED, DONE
from cascade_studio.commands.batch.results import PaintedFile
from cascade_studio.commands.batch.server import Lost, Painted
from cascade_studio.commands.messages import Stop
from cascade_studio.commands.places import find_free_port
from cascade_studio.commands.workflow.api_prompt import Converted

# Workers


def test_rows_of_one_model_stay_with_one_worker(desk):
    models = ["stage_c_lite_bf16.safetensors", "my_style.safetensors", "other.safetensors"]
    lines = [json.dumps({"prompt": text, "prior": models[index % 3]}) for index, text in enumerate("abcdefghijkl")]
    assert desk.run(desk.rows("\n".join(lines), "r.jsonl"), servers=desk.serve(3, seconds=0.05)).complete
    for fake in desk.fakes:
        told = [prompt["1"]["inputs"]["prior"] for prompt in fake.painted]
        assert sum(one != other for one, other in zip(told, told[1:], strict=False)) <= 1, told


def test_rows_of_one_text_stay_with_one_worker_while_there_are_others(desk):
    rows = desk.rows("apple\nrobot\nfrog\n")
    assert desk.run(rows, servers=desk.serve(3, seconds=0.05), count=8).complete
    told = [[prompt["3"]["inputs"]["text"] for prompt in fake.painted] for fake in desk.fakes]
    changes = sum(one != other for texts in told for one, other in zip(texts, texts[1:], strict=False))
    assert sum(map(len, told)) == 24 and changes <= 6, told


class Fragile:
    """One worker with two slots that ends whenever it paints a row called ``crash``, and all that it holds with it."""

    name, slots = "fragile", 2

    def __init__(self) -> None:
        self.card = threading.Lock()
        self.lives, self.excused, self.queued = 0, 0, 0

    def refresh(self):
        return [self]

    def connect(self, stop):
        pass

    def lacks(self, classes):
        return []

    def memory(self):
        return None

    def paint(self, job, stop, alive):
        life, self.queued = self.lives, self.queued + 1
        end = time.monotonic() + 0.3
        while self.queued < 2 and time.monotonic() < end:
            time.sleep(0.01)  # until both slots hold a row, where there are two
        with self.card:
            self.queued -= 1
            if "crash" in job.filled.prompt["3"]["inputs"]["text"]:
                self.lives += 1
            if life != self.lives:
                raise Lost("it ended")
            return Painted([PaintedFile("a.png", b"a picture")], 0.1)

    def excuse(self):
        self.excused += 1

    def close(self):
        pass


def test_rows_that_only_waited_on_a_worker_that_ends_are_never_set_aside(desk, monkeypatch):
    monkeypatch.setattr(manifest, "MOST_LOSSES", 2)
    monkeypatch.setattr(driver, "LOST_SECONDS", 0.05)
    worker = Fragile()
    rows = desk.rows("crash 1\napple\nrobot\ncrash 2\nfrog\ncrash 3\n")
    outcome = run_batch(desk.batch(rows), worker)
    assert outcome.counts[DONE] == 3 and outcome.counts["set aside"] == 3
    assert worker.lives <= 3 * 3 and worker.excused == 3 * 2
    found = desk.manifest()
    losses = dict(found.read("SELECT line, losses FROM rows"))
    found.close()
    assert all(losses[line] == 3 for line in (1, 4, 6)) and all(losses[line] <= 1 for line in (2, 3, 5)), losses


def test_a_small_card_gets_what_fits_it(desk, monkeypatch):
    large = {"prompt": "a", "prior": "stage_c_bf16.safetensors"}
    lines = [json.dumps(large), json.dumps({"prompt": "b", "prior": "stage_c_lite_bf16.safetensors"})]
    rows = desk.rows("\n".join(lines), "r.jsonl")
    monkeypatch.setenv("FAKE_MEMORY", str(6 * 1024**3))
    servers = desk.serve()
    with pytest.raises(Stop, match=r"need 8\.\d GiB .* has 6\.0\. Choose the lite models"):
        desk.run(rows, servers=servers)
    assert count_states(desk) == {DONE: 1, ASKED: 1}
    assert desk.run(rows, servers=servers, any_card=True).complete


def test_servers_join_while_the_batch_runs_and_silent_ones_are_waited_for(desk, monkeypatch):
    monkeypatch.setattr(workers, "REREAD_SECONDS", 0.2)
    monkeypatch.setattr(driver, "KEEP_SECONDS", 0.2)
    listed = desk.folder / "servers.txt"
    listed.write_text(f"# mine\nhttp://127.0.0.1:{find_free_port()}\n", encoding="utf-8")
    timer = threading.Timer(1.0, lambda: listed.write_text(desk.serve() + "\n", encoding="utf-8"))
    timer.start()
    assert desk.run(desk.rows(SIX), servers=f"@{listed}", patience=20.0).complete
    with pytest.raises(Stop, match="No worker was there and painted for 1 s"):
        desk.run(desk.rows("moon"), servers=f"http://127.0.0.1:{find_free_port()}", patience=1.0)


def test_servers_of_our_own_are_started_killed_and_started_again(desk, tmp_path):
    host = make_fake_host(tmp_path / "host")
    arguments = (
        desk.rows(SIX),
        "--out",
        tmp_path / "out",
        "--workflow",
        desk.workflow,
        "--count",
        "5",
        "--workers",
        "2",
    )
    arguments = (*arguments, "--comfyui", host, "--comfyui-flags=--cpu")
    driver = start_driver(tmp_path / "log", *arguments, FAKE_SECONDS="0.1")
    await_that(lambda: len(desk.pictures()) >= 3)
    psutil = pytest.importorskip("psutil")
    children = psutil.Process(driver.process.pid).children()
    assert len(children) == 2
    children[0].kill()
    assert driver.wait(60.0) == 0, driver.text
    assert len(desk.pictures()) == 30 and check(desk) == 0
    assert not any(child.is_running() for child in children) and not list((tmp_path / "out" / run.WORK).iterdir())


def test_servers_of_our_own_end_with_a_killed_driver(desk, tmp_path):
    psutil = pytest.importorskip("psutil")
    host = make_fake_host(tmp_path / "host")
    arguments = (desk.rows(SIX), "--out", tmp_path / "out", "--workflow", desk.workflow, "--comfyui", host)
    driver = start_driver(tmp_path / "log", *arguments, "--comfyui-flags=--cpu", FAKE_SECONDS="5")
    await_that(lambda: psutil.Process(driver.process.pid).children())
    children = psutil.Process(driver.process.pid).children()
    driver.process.kill()
    await_that(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))


def test_a_comfyui_that_does_not_start_ends_the_batch_with_its_last_lines(desk, tmp_path, monkeypatch):
    host = make_fake_host(tmp_path / "host")
    monkeypatch.setenv("FAKE_BROKEN", "1")
    with pytest.raises(Stop, match="a fault that hinders every start"):
        desk.run(desk.rows("apple"), comfyui=str(host), comfyui_flags=("--cpu",), patience=30.0)
    with pytest.raises(Stop, match="it has no main.py"):
        desk.run(desk.rows("apple"), comfyui=str(tmp_path))


# Stage by stage


def test_priors_are_painted_here_and_chosen_ones_finished_elsewhere(desk):
    rows = desk.rows(SIX)
    assert desk.run(rows, "drafts", servers=desk.serve(), stages="c").complete
    drafts = desk.pictures("drafts")
    assert {name.rpartition(".")[2] for name in drafts} == {"latent", "png"} and len(drafts) == 12
    kinds = {entry["class_type"] for entry in desk.fakes[0].painted[0].values()}
    assert not kinds & {"CascadeStudio_SampleDecoder", "CascadeStudio_DecodeStageA"}
    for name in list(drafts)[4:]:
        (desk.folder / "drafts" / name).unlink()
    desk.fakes.clear()
    outcome = desk.run(desk.folder / "drafts", "finals", servers=desk.serve(), stages="ba", workflow=None)
    assert outcome.complete and outcome.counts[DONE] == 2
    (fake,) = desk.fakes
    assert sorted(fake.uploads.values()) == sorted(
        data for name, data in list(drafts.items())[:4] if name.endswith("latent")
    )
    for prompt in fake.painted:
        assert "CascadeStudio_SamplePrior" not in {entry["class_type"] for entry in prompt.values()}
        assert prompt["6"]["inputs"]["prior"] == ["prior_1", 0] and prompt["6"]["inputs"]["latent"] == ["2", 1]
    assert {name.rpartition(".")[0] for name in desk.pictures("finals")} == {
        name.rpartition(".")[0] for name in list(drafts)[:4]
    }
    with pytest.raises(Stop, match="no folder of drafts"):
        desk.run(rows, "x", servers=desk.serve(), stages="ba")


# Elsewhere


def test_an_object_store_holds_the_files(desk):
    fsspec = pytest.importorskip("fsspec")
    address = "memory://bucket/batch"
    assert desk.run(desk.rows(SIX), servers=desk.serve(), store=address).complete
    assert len(fsspec.filesystem("memory").find("/bucket/batch")) == 6 and not desk.pictures()
    assert command.main(["-", "--out", str(desk.folder / "out"), "--check", "--store", address]) == 0
    before = desk.painted
    assert desk.run(desk.rows(SIX), servers=desk.serve(), store=address).complete and desk.painted == before


@pytest.mark.slow
def test_the_machines_of_a_ray_cluster_paint_the_same_while_they_join_and_leave(desk, tmp_path):
    """Machines of Ray's own stand-in, on this one: each is a raylet with one processor."""
    pytest.importorskip("ray", reason="Ray is not in this environment: python -m pip install ray")
    from ray.cluster_utils import Cluster

    host, rows = make_fake_host(tmp_path / "host"), desk.rows(SIX)
    desk.run(rows, "one", servers=desk.serve(), count=20)
    machine = {"num_cpus": 1, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**machine, "include_dashboard": False})
    driver = None

    def painters() -> set[str]:
        """The machines that have painted, by Ray's ids for them."""
        manifest = desk.manifest()
        try:
            return {name.split()[1] for (name,) in manifest.read("SELECT worker FROM rows WHERE state=?", DONE)}
        finally:
            manifest.close()

    try:
        leaving = cluster.add_node(**machine)
        arguments = (rows, "--out", tmp_path / "out", "--workflow", desk.workflow, "--count", 20, "--sheet", 0)
        arguments = (*arguments, "--ray", cluster.address, "--comfyui", host, "--comfyui-flags=--cpu")
        driver = start_driver(tmp_path / "log", *arguments, FAKE_SECONDS="0.3")
        await_that(desk.pictures, 200.0)
        await_that(lambda: len(painters()) == 2, 200.0)
        cluster.remove_node(leaving, allow_graceful=False)
        cluster.add_node(**machine)
        await_that(lambda: len(painters()) == 3, 200.0)
        assert driver.wait(300.0) == 0, driver.text
    finally:
        if driver:
            driver.kill()
        cluster.shutdown()
    assert desk.pictures() == desk.pictures("one") and len(desk.pictures()) == 120 and check(desk) == 0


def test_the_command_says_what_it_needs(desk, capsys):
    rows, out, servers = str(desk.rows("a\n")), ["--out", str(desk.folder / "x")], ["--servers", desk.serve()]
    for wrong, words in (
        ([str(desk.rows("# nothing\n", "no.txt")), *out, *servers], "asks for no picture"),
        (["nowhere.txt", *out, *servers], "There is no list of rows nowhere.txt"),
        ([rows, *out, *servers, "--workflow", "no.json"], "The workflow no.json cannot be read"),
        ([rows, "--out", str(desk.workflow), *servers], "cannot be made"),
        ([rows, *out, *servers, "--ray", "auto"], "two kinds of workers"),
        ([rows, *out, *servers, "--count", "0"], "too few"),
        ([rows, *out, "--servers", ","], "names no server"),
        ([rows, *out, "--servers", "@nowhere"], "cannot be read"),
        ([rows, "--out", str(desk.folder / "nothing"), "--check"], "There is no batch"),
    ):
        given = [] if "--workflow" in wrong else ["--workflow", str(desk.workflow)]
        assert command.main([*wrong, *given]) == (2 if words in ("two kinds of workers", "too few") else 1)
        told = capsys.readouterr().err
        assert told.startswith("studio.py batch: ") and words in told
    assert command.main([]) == 0 and "for example:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option, words",
    [
        ("--shard=9/8", "--shard 9/8 is no part"),
        ("--seeds=5-1", "--seeds 5-1 is no list"),
        ("--seeds=0-99999999", "more than"),
        ("--grid=cfg", "--grid cfg is no grid"),
        ("--sheet=-1", "no number of pictures"),
        ("--patience=nan", "--patience nan is no time"),
        ("--patience=-1", "--patience -1 is no time"),
        ("--comfyui-flags='", "a quote without its second one"),
    ],
)
def test_options_that_cannot_be_meant_are_wrong_usage(desk, capsys, option, words):
    """As argparse ends with for others; the text says what is meant."""
    assert command.main([str(desk.rows("a\n")), "--out", str(desk.folder / "x"), option]) == 2
    assert words in capsys.readouterr().err and not (desk.folder / "x").exists()


def test_status_tells_how_it_is_asked(capsys):
    for arguments, code in ((["--help"], 0), ([], 2), (["a", "b"], 2)):
        with pytest.raises(SystemExit) as end:
            command.main(["status", *arguments])
        told = capsys.readouterr()
        assert end.value.code == code and "studio.py batch status" in told.out + told.err
    assert "the folder that --out named" in "".join(told) or "unrecognized" in told.err


def test_a_saved_workflow_waits_for_its_first_server(desk, monkeypatch, capsys):
    """As one in the API format does; a server that will never do is not waited for."""
    monkeypatch.setattr(run, "ASK_SECONDS", 0.05)
    saved = desk.folder / "saved.json"
    saved.write_text(json.dumps({"nodes": [], "links": [], "version": 0.4}), encoding="utf-8")
    asked = []

    def convert_later(data, nodes):
        asked.append(nodes)
        return Converted(copy.deepcopy(PROMPT))

    class Late(workers.NamedPainter):
        tries = 0

        def connect(self, stop):
            self.tries += 1
            if self.tries < 4:
                raise Unreachable("nobody is there")
            super().connect(stop)

        def describe_nodes(self):
            return {}

    monkeypatch.setattr(run, "convert", convert_later)
    monkeypatch.setattr(workers, "NamedPainter", Late)
    assert desk.run(desk.rows("apple\n"), workflow=saved, servers=desk.serve(), patience=60.0).complete
    assert len(asked) == 1 and "Waiting 60 s for one" in capsys.readouterr().err
    with pytest.raises(Stop, match="No server tells its nodes.*nobody is there"):
        desk.run(desk.rows("moon\n"), "other", workflow=saved, servers=desk.serve(), patience=0.0)
    assert json.loads(desk.workflow.read_text()) == PROMPT
