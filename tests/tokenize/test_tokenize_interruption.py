"""`taae tokenize` killed and disturbed, and on a Ray cluster; with a tiny model."""

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from support.token_folders import (
    contents,
    many_rows,
    parquet,
    refusal,
    row,
    tokenize,
)

from modeling_taae import cli
from modeling_taae.codec import load_codec
from modeling_taae.data import readers as corpus_readers


@pytest.fixture(scope="module")
def processes():
    """Processes that start at once, because they begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["modeling_taae.cli", "modeling_taae.cli.tokenize", "datasets"])
    return context


def tokenize_child(arguments: list[str], number: int, limit: int, moment: float) -> None:
    """A run of its own with small units, which is disturbed.

    Args:
        arguments: of the command.
        number: of the file before which it is killed, just as that is about to be put in its place; 0 for none.
        limit: size of the largest file that it may write.
        moment: after how many seconds of computing from its first part on it is killed; 0 for never.
    """
    sys.stderr = open("log.txt", "w")
    corpus_readers.UNIT_ROWS = 5
    replace, writes = os.replace, []

    def disturbed(source, target) -> None:
        writes.append(target)
        if len(writes) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        if moment and len(writes) == 3:
            signal.setitimer(signal.ITIMER_PROF, moment)
        replace(source, target)

    os.replace = disturbed
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(cli.main(["tokenize", *arguments]))


class TestInterruption:
    @pytest.fixture(autouse=True)
    def small_units(self, monkeypatch):
        monkeypatch.setattr(corpus_readers, "UNIT_ROWS", 5)

    @pytest.fixture
    def start(self, processes):
        def start(*arguments, number: int = 0, limit: int = resource.RLIM_INFINITY, moment: float = 0):
            settings = ([*arguments, "-o", "tokens"], number, limit, moment)
            process = processes.Process(target=tokenize_child, args=settings)
            process.start()
            return process

        return start

    @staticmethod
    def source(rows: int) -> list[str]:
        return [parquet("data.parquet", many_rows(rows), row_group_size=5), "--shard-hours", "0.003"]

    def test_killed_at_random_moments(self, start):
        source = self.source(rows=30)
        assert len(tokenize(*source, output="undisturbed/tokens")["shards"]) > 1
        generator, kills = random.Random(0), 0
        while True:
            parts = {path: path.stat().st_mtime_ns for path in Path("tokens/.parts").glob("0*.parquet")}
            process = start(*source, moment=generator.uniform(0.001, 0.05))
            process.join()
            if process.exitcode == 0:
                break
            # The timer's signal, which ends a process as SIGKILL does where nothing handles it.
            assert process.exitcode == -signal.SIGPROF
            kills += 1
            if not Path("tokens/manifest.json").exists():
                assert all(path.stat().st_mtime_ns == when for path, when in parts.items()), "a part was made twice"
        assert kills > 0
        assert contents("tokens") == contents("undisturbed/tokens")

    def test_killed_at_every_write(self, start):
        source = self.source(rows=15)
        tokenize(*source, output="undisturbed/tokens")
        for number in range(1, 100):
            process = start(*source, number=number)
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
        assert number > 7
        assert contents("tokens") == contents("undisturbed/tokens")

    def test_disk_full(self, start):
        source = self.source(rows=10)
        tokenize(*source, output="undisturbed/tokens")
        process = start(*source, limit=1500)
        process.join()
        message = Path("log.txt").read_text()
        assert process.exitcode == 2 and message.count("\n") == 1
        assert "cannot be written (File too large)" in message and "run the same command again" in message
        tokenize(*source)
        assert contents("tokens") == contents("undisturbed/tokens")

    def test_what_has_changed_is_refused(self, start, capsys, make_tiny_model, tiny_model_folder):
        source = self.source(rows=10)
        process = start(*source, number=3)
        process.join()
        assert "another bottleneck" in refusal(capsys, *source, "--bottleneck", "native")
        assert "another loudness (-20.0, now null)" in refusal(capsys, *source, "--no-loudness")
        make_tiny_model(1).save_pretrained("other")
        load_codec(str(tiny_model_folder), device="cpu").extractor.save_pretrained("other")
        assert "another model" in refusal(capsys, *source, "--model", "other")
        changed = os.stat("data.parquet")
        os.utime("data.parquet", (1, 1))
        assert "another source (other files, or" in refusal(capsys, *source)
        os.utime("data.parquet", ns=(changed.st_atime_ns, changed.st_mtime_ns))
        tokenize(*source)

    def test_one_run_at_a_time(self, start, capsys):
        source = self.source(rows=40)
        process = start(*source)
        while not list(Path("tokens/.parts").glob("0*.parquet")):
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            message = refusal(capsys, *source)
        finally:
            os.kill(process.pid, signal.SIGCONT)
        process.join()
        assert "another run is at work" in message and process.exitcode == 0

    def test_a_complete_corpus_is_left_as_it_is(self, capsys):
        source = parquet("data.parquet", many_rows(8))
        tokenize(source)
        before = contents("tokens")
        # What a run leaves behind that is killed when all is there.
        Path("tokens/.parts").mkdir()
        parquet("tokens/.parts/00000000.parquet", many_rows(1))
        tokenize(source)
        assert contents("tokens") == before and "nothing is left to do" in capsys.readouterr().out
        assert "another bottleneck" in refusal(capsys, source, "--bottleneck", "native")

    @pytest.mark.parametrize("name", ["manifest.json", ".parts/plan.json"])
    def test_damaged_notes_are_told(self, capsys, name):
        source = parquet("data.parquet", [row("a")])
        Path("tokens/.parts").mkdir(parents=True)
        Path("tokens", name).write_text('{"plan": ')
        assert f"tokens/{name}: is damaged" in refusal(capsys, source)

    def test_other_folders_are_not_touched(self, capsys):
        Path("photos").mkdir()
        Path("photos/cat.jpg").write_text("meow")
        source = parquet("data.parquet", [row("a")])
        assert "holds no tokenised corpus" in refusal(capsys, source, output="photos")
        assert "cannot be written (Not a directory)" in refusal(capsys, source, output="photos/cat.jpg/tokens")
        assert [path.name for path in Path("photos").iterdir()] == ["cat.jpg"]


def kill_a_worker(folder: Path, killed: list[int]) -> None:
    """Kills one of this process's Ray workers as soon as there are two parts."""
    import psutil

    while not killed and threading.main_thread().is_alive():
        time.sleep(0.05)
        if len(list(folder.glob("0*.parquet"))) >= 2:
            workers = [child for child in psutil.Process().children(recursive=True) if "ray::MapWorker" in child.name()]
            for worker in workers[:1]:
                worker.kill()
                killed.append(worker.pid)


class TestRay:
    def test_same_corpus_though_a_worker_is_killed(self, monkeypatch):
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'modeling_taae[ray]'")
        monkeypatch.setattr(corpus_readers, "UNIT_ROWS", 8)
        source = parquet("data.parquet", many_rows(200), row_group_size=8)
        tokenize(source, output="here/tokens")
        killed: list[int] = []
        killer = threading.Thread(target=kill_a_worker, args=(Path("there/tokens/.parts"), killed))
        killer.start()
        tokenize(source, "--ray", "local", "--workers", "2", output="there/tokens")
        killer.join()
        assert killed and contents("there/tokens") == contents("here/tokens")
        report = json.loads(Path("there/tokens/report.json").read_text())
        assert report["workers"] == report["units"] == 2

    def test_workers_without_a_cluster(self, capsys):
        assert "add --ray local" in refusal(capsys, parquet("data.parquet", [row("a")]), "--workers", "2")

    def test_an_address_where_nothing_is(self, capsys):
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'modeling_taae[ray]'")
        source = parquet("data.parquet", [row("a")])
        assert "Connection refused" in refusal(capsys, source, "--ray", "127.0.0.1:1")
