"""`taae tokenize` killed and disturbed, and on a Ray cluster; with a tiny model."""

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.token_folders import clip, contents, flac, many_rows, parquet, refusal, row, tar, tokenize

from modeling_taae.codec import load_codec
from modeling_taae.data.sources import Corpus
from modeling_taae.errors import TaaeInputError
from modeling_taae.tokenize import Manifest, open_token_folder, tokenize_corpus
from modeling_taae.tokenize.encoder import CorpusEncoder, Encoding

pytestmark = pytest.mark.slow

UNIT_ROWS, SHARD_HOURS = 5, 0.003


@pytest.fixture(scope="module")
def processes():
    """Processes that start at once, because they begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["modeling_taae.tokenize", "datasets"])
    return context


def tokenize_child(arguments: list[str], number: int, limit: int, moment: float) -> None:
    """A run of its own with small units, which is disturbed.

    Args:
        arguments: the source and the folder.
        number: the number of the file that it is killed before, just as that is about to take its place; 0 for none.
        limit: the size of the largest file that it may write.
        moment: the seconds of computing after which it is killed, from its first part on; 0 for never.
    """
    sys.stderr = open("log.txt", "w")
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
    try:
        tokenize_corpus(*arguments, unit_rows=UNIT_ROWS, shard_hours=SHARD_HOURS)
    except TaaeInputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


class TestInterruption:
    @pytest.fixture
    def start(self, processes):
        def start(*arguments, number: int = 0, limit: int = resource.RLIM_INFINITY, moment: float = 0):
            settings = ([*arguments, "tokens"], number, limit, moment)
            process = processes.Process(target=tokenize_child, args=settings)
            process.start()
            return process

        return start

    @staticmethod
    def source(rows: int) -> list[str]:
        return [parquet("data.parquet", many_rows(rows), row_group_size=5)]

    @staticmethod
    def tokenize(source: str, output: str = "tokens", **settings: object) -> Manifest:
        return tokenize_corpus(source, output, unit_rows=UNIT_ROWS, shard_hours=SHARD_HOURS, **settings)

    def test_killed_at_random_moments(self, start):
        source = self.source(rows=30)
        assert len(self.tokenize(*source, output="undisturbed/tokens").shards) > 1
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
        self.tokenize(*source, output="undisturbed/tokens")
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
        self.tokenize(*source, output="undisturbed/tokens")
        process = start(*source, limit=1500)
        process.join()
        message = Path("log.txt").read_text()
        assert process.exitcode == 2 and message.count("\n") == 1
        assert "cannot be written (File too large)" in message and "run the same command again" in message
        self.tokenize(*source)
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
        with pytest.raises(TaaeInputError, match="another source .*recordings that were added go into a folder"):
            self.tokenize(*source)
        os.utime("data.parquet", ns=(changed.st_atime_ns, changed.st_mtime_ns))
        self.tokenize(*source)

    def test_one_run_at_a_time(self, start):
        source = self.source(rows=40)
        process = start(*source)
        while not list(Path("tokens/.parts").glob("0*.parquet")):
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(TaaeInputError, match="another run is at work"):
                self.tokenize(*source)
        finally:
            os.kill(process.pid, signal.SIGCONT)
        process.join()
        assert process.exitcode == 0

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


class TestVanishing:
    """Files that are there when a run begins, and gone when their turn comes."""

    @staticmethod
    def folder(kind: str) -> Path:
        Path("in").mkdir()
        for number in range(3):
            if kind == "recordings":
                Path(f"in/{number}.flac").write_bytes(flac(clip(0.5, number)))
            elif kind == "tables":
                parquet(f"in/{number}.parquet", [row(f"r{number}")])
            else:
                tar(f"in/{number}.tar", {"a.flac": flac(clip(0.5, number))})
        return Path("in")

    @pytest.mark.parametrize("kind", ["recordings", "tables", "archives"])
    def test_it_is_no_reject(self, kind):
        codec, corpus = load_codec(None, device="cpu"), Corpus([str(self.folder(kind))], unit_rows=1)
        parts = CorpusEncoder(corpus, Encoding("native", "float32", 0.4, 1), codec).parts(list(range(len(corpus))))
        assert next(parts).unit == 0
        for file in Path("in").iterdir():
            file.unlink()
        with pytest.raises(TaaeInputError, match="is gone since|cannot be read any more"):
            list(parts)

    def test_between_finding_and_opening(self):
        class Vanishing(Corpus):
            def rows(self, unit):
                for each in super().rows(unit):
                    each.audio.unlink()
                    yield each

        codec, corpus = load_codec(None, device="cpu"), Vanishing([str(self.folder("recordings"))])
        with pytest.raises(TaaeInputError, match="is gone since the run began"):
            list(CorpusEncoder(corpus, Encoding("native", "float32", 0.4, 1), codec).parts([0]))

    def test_a_folder_that_tables_name_files_of(self):
        class Vanishing(Corpus):
            def rows(self, unit):
                for each in super().rows(unit):
                    Path("in").rename("away")
                    yield each

        self.folder("recordings")
        parquet("in/data.parquet", [{"audio": {"bytes": None, "path": "0.flac"}}])
        codec, corpus = load_codec(None, device="cpu"), Vanishing(["in/data.parquet"])
        with pytest.raises(TaaeInputError, match="the corpus's folder is gone"):
            list(CorpusEncoder(corpus, Encoding("native", "float32", 0.4, 1), codec).parts([0]))

    def test_what_was_never_there_is_a_reject(self):
        (self.folder("recordings") / "metadata.csv").write_text("file_name,text\n0.flac,a\nnever.flac,b\n")
        assert tokenize_corpus("in", "tokens").rejected == {"missing": 1}


def test_nobody_reads_what_is_printed():
    """As in `taae tokenize … | head -0`: the folder is complete all the same."""
    source = parquet("data.parquet", many_rows(8))
    command = [sys.executable, "-m", "modeling_taae", "tokenize", source, "-o", "tokens"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert "Error" not in process.stderr.read().decode() and process.wait() == 141
    assert open_token_folder("tokens").rows == 7


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


@pytest.mark.ray
class TestRay:
    def test_same_corpus_though_a_worker_is_killed(self):
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'modeling_taae[ray]'")
        source = parquet("data.parquet", many_rows(200), row_group_size=8)
        tokenize_corpus(source, "here/tokens", unit_rows=8)
        killed: list[int] = []
        killer = threading.Thread(target=kill_a_worker, args=(Path("there/tokens/.parts"), killed))
        killer.start()
        tokenize_corpus(source, "there/tokens", unit_rows=8, ray="local", workers=2)
        killer.join()
        assert killed and contents("there/tokens") == contents("here/tokens")
        report = json.loads(Path("there/tokens/report.json").read_text())
        assert report["workers"] == report["units"] == 2

    def test_killed_and_gone_on_with_without_ray(self):
        """The whole run, driver and all; what its workers had done is there."""
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'modeling_taae[ray]'")
        source = parquet("data.parquet", many_rows(200), row_group_size=8)
        code = f"from modeling_taae.tokenize import tokenize_corpus as t; t({source!r}, 'there/tokens', unit_rows=8, "
        child = subprocess.Popen([sys.executable, "-c", code + "ray='local', workers=2)"], stderr=subprocess.DEVNULL)
        parts = Path("there/tokens/.parts")
        while child.poll() is None and len(list(parts.glob("0*.parquet"))) < 3:
            time.sleep(0.01)
        child.kill()
        assert child.wait() == -signal.SIGKILL
        made = {part: part.stat().st_mtime_ns for part in parts.glob("0*.parquet")}
        assert 3 <= len(made) < 25
        tokenize_corpus(source, "here/tokens", unit_rows=8)
        tokenize_corpus(source, "there/tokens", unit_rows=8)
        assert contents("there/tokens") == contents("here/tokens")

    def test_workers_without_a_cluster(self, capsys):
        assert "add --ray local" in refusal(capsys, parquet("data.parquet", [row("a")]), "--workers", "2")

    def test_an_address_where_nothing_is(self, capsys):
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'modeling_taae[ray]'")
        source = parquet("data.parquet", [row("a")])
        assert "Connection refused" in refusal(capsys, source, "--ray", "127.0.0.1:1")
