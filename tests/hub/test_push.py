"""`taae push` checks a folder, sends it, and what was sent loads where this package is not installed."""

import gzip
import io
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from support.hub_server import OWNER, TOKEN, logged_in_hub

from modeling_taae import TaaeFeatureExtractor, TaaeModel, cli
from modeling_taae.errors import TaaeInputError
from modeling_taae.evaluation.report import quality_table
from modeling_taae.evaluation.results import Results
from modeling_taae.hub.cards import PLACEHOLDER_DOMAIN, PROJECT_URL, install_command
from modeling_taae.hub.checks import RESULTS, inspect
from modeling_taae.hub.push import PushError, push_folder

pytestmark = pytest.mark.slow

README = Path(__file__).resolve().parents[2] / "README.md"
HEADER = "---\nlicense: cc0-1.0\n---\n# A model\n\n"


@pytest.fixture(scope="module")
def made(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder, fit to be published."""
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path_factory.mktemp("push") / "taae-tiny"))
    speech = folder.parent / "speech"
    speech.mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).normal(0, 0.1, 16_000)
        soundfile.write(speech / f"{number}.wav", noise, 16_000)
    command = ["evaluate", str(speech), "--model", str(folder), "-o", str(folder / "results"), "--metrics", "si_sdr"]
    assert cli.main([*command, "--workers", "1", "--samples", "1", "--no-speed"]) == 0
    (folder / "README.md").write_text(HEADER + quality_table(Results.read(folder / RESULTS)) + "\n")
    (folder / "LICENSE").write_text("Do what you like.\n")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(made, tmp_path / made.name))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with logged_in_hub(monkeypatch, tmp_path) as server:
        yield server


def rewrite_weights(folder: Path, change: Callable[[dict], dict]) -> None:
    """Stores a model's weights again, changed."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def spoil_results(folder: Path) -> None:
    results = json.loads((folder / RESULTS).read_text())
    results["systems"][0]["metrics"]["si_sdr"]["mean"] += 1
    (folder / RESULTS).write_text(json.dumps(results))


def rewrite_card(folder: Path, before: str, after: str) -> None:
    card = folder / "README.md"
    assert before in card.read_text()
    card.write_text(card.read_text().replace(before, after))


def append_to_card(folder: Path, text: str) -> None:
    rewrite_card(folder, "# ", f"{text}\n\n# ")


def shard_of(folder: Path) -> Path:
    return next(folder.glob("data/train-00000-of-00001-*.parquet"))


LICENSE = "license: cc0-1.0"
# What makes a folder unfit: how to spoil it, and what the refusal says.
SPOILT = {
    "pickled weights": (lambda folder: (folder / "optimizer.pt").write_bytes(b"x"), "optimizer.pt is pickled"),
    "no licence": (lambda folder: (folder / "LICENSE").unlink(), "a LICENSE file .* is missing"),
    "no card": (lambda folder: (folder / "README.md").unlink(), "README.md is missing"),
    "no licence in the card": (lambda folder: rewrite_card(folder, LICENSE, "language: en"), "names no license"),
    "a licence without a name": (
        lambda folder: rewrite_card(folder, LICENSE, "license: other"),
        "needs license_name and license_link",
    ),
    "a damaged header": (
        lambda folder: rewrite_card(folder, LICENSE, "license: [cc0"),
        "header of README.md cannot be read",
    ),
    "a gap": (lambda folder: append_to_card(folder, "TODO: say more"), r"has a gap in line \d+ \(TODO\)"),
    "a gap in a template": (
        lambda folder: append_to_card(folder, "{{ hours }} hours"),
        r"has a gap in line \d+ \(\{\{\)",
    ),
    "no results": (lambda folder: (folder / RESULTS).unlink(), "results.json is missing"),
    "other results": (spoil_results, "does not show the table that follows from"),
    "no code": (lambda folder: (folder / "modeling_taae.py").unlink(), "does not load back"),
    "no extractor": (lambda folder: (folder / "preprocessor_config.json").unlink(), "does not load back"),
    "cut weights": (lambda folder: os.truncate(folder / "model.safetensors", 100_000), "does not load back"),
    "two sets of weights": (
        lambda folder: TaaeModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="300KB"),
        "holds model.safetensors and shards",
    ),
    "too few weights": (
        lambda folder: rewrite_weights(folder, lambda state: dict(list(state.items())[1:])),
        "its weights have missing keys, such as decoder",
    ),
    "too many weights": (
        lambda folder: rewrite_weights(folder, lambda state: state | {"encoder.more": torch.zeros(1)}),
        "its weights have unexpected keys, such as encoder.more",
    ),
    "weights that are no numbers": (
        lambda folder: rewrite_weights(folder, lambda state: {n: t * torch.nan for n, t in state.items()}),
        "does not load back .The latents of item 0 are NaN",
    ),
    "a decoder of no numbers": (
        lambda folder: rewrite_weights(
            folder, lambda state: {n: t * torch.nan if n.startswith("decoder") else t for n, t in state.items()}
        ),
        "what it decodes is not finite",
    ),
    "other weights": (
        lambda folder: rewrite_weights(folder, lambda state: {n: 2 * t for n, t in state.items()}),
        "is of other weights than these",
    ),
}


class TestInspect:
    def test_a_fit_model(self, folder):
        publication = inspect(folder)
        parameters = TaaeModel.from_pretrained(folder).num_parameters()
        assert (publication.repo_type, publication.sdk) == ("model", None)
        assert publication.summary == f"a model of {parameters:,} parameters, under cc0-1.0"
        assert publication.files["model.safetensors"] == (folder / "model.safetensors").stat().st_size

    def test_what_stays_behind(self, folder):
        left = (".env", ".cache/huggingface/x", "__pycache__/modeling_taae.cpython-311.pyc", "results/.x.tmp")
        for name in (*left, "results/robustness/rows.jsonl", "results/robustness/report.html"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("not for others")
        assert (folder / "results" / "report.html").is_file()
        files = inspect(folder).files
        assert {"README.md", "LICENSE", "modeling_taae.py", "results/results.csv", "results/report.md"} <= set(files)
        append_to_card(folder, "Un modelo para todo el mundo.")
        assert inspect(folder).files.keys() == files.keys()
        assert not [name for name in files if re.search(r"(^|/)\.|pyc|rows.jsonl|report.html", name)]

    @pytest.mark.parametrize("fault", SPOILT)
    def test_unfit_models_are_refused(self, folder, fault):
        spoil, message = SPOILT[fault]
        spoil(folder)
        with pytest.raises(TaaeInputError, match=message):
            inspect(folder)

    def test_all_that_is_wrong_is_told_at_once(self, folder):
        (folder / "weights.bin").write_bytes(b"x")
        (folder / "LICENSE").unlink()
        append_to_card(folder, "TBD")
        spoil_results(folder)
        with pytest.raises(TaaeInputError) as refusal:
            inspect(folder)
        for part in ("weights.bin is pickled", "LICENSE", "gap", "does not show the table"):
            assert part in str(refusal.value)

    def test_other_folders_are_refused(self, tmp_path):
        with pytest.raises(TaaeInputError, match="is no folder"):
            inspect(tmp_path / "missing")
        with pytest.raises(TaaeInputError, match="is empty"):
            inspect(tmp_path)
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(TaaeInputError, match="holds nothing to publish"):
            inspect(tmp_path)

    def test_spaces(self, tmp_path):
        (tmp_path / "README.md").write_text("---\nsdk: gradio\nlicense: apache-2.0\n---\n")
        with pytest.raises(TaaeInputError, match="app.py, which README.md names, is missing"):
            inspect(tmp_path)
        (tmp_path / "app.py").write_text("print()")
        assert (inspect(tmp_path).repo_type, inspect(tmp_path).sdk) == ("space", "gradio")


def nested(content: bytes) -> bytes:
    """An archive with a compressed file in it, as others publish what they pickled."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("model/weights", gzip.compress(content))
    return archive.getvalue()


def array_of_objects() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


class Calling:
    """An object whose unpickling calls a function."""

    def __reduce__(self):
        return print, ("run by unpickling",)


KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"
# Files that do not belong to a model: name, content, and what the refusal says.
STRANGERS = {
    "a key without a suffix": ("id_rsa", b"AAAA", "id_rsa is no file of a model"),
    "a key by another name": ("notes.md", KEY.encode(), "notes.md contains a private key"),
    "a token in a script": ("helper.py", f"TOKEN = 'hf_{'a' * 34}'".encode(), "helper.py contains a private key or"),
    "a disk image": ("backup.img", b"\0" * 600, "backup.img is no file of a model"),
    "a pickle by another name": ("results/curves.csv", pickle.dumps([1]), "curves.csv is pickled"),
    "an early pickle": ("notes.txt", pickle.dumps(Calling(), protocol=0), "notes.txt is pickled"),
    "a pickle in an archive": ("program.pt2", nested(pickle.dumps([1])), "program.pt2 is pickled"),
    "compressed": ("metrics.data", zlib.compress(pickle.dumps([1])), "metrics.data is pickled"),
    "objects in an array": ("curves.data", array_of_objects(), "curves.data is pickled"),
}


class TestWhatBelongs:
    @pytest.mark.parametrize("stranger", STRANGERS)
    def test_what_does_not_is_refused(self, folder, stranger):
        name, content, message = STRANGERS[stranger]
        (folder / name).write_bytes(content)
        with pytest.raises(TaaeInputError, match=message):
            inspect(folder)

    @pytest.mark.parametrize("linked", ["secret.md", "folder"])
    def test_links_to_elsewhere_are_refused(self, folder, linked, tmp_path):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "secret.md").write_text("not for others")
        target = elsewhere / "secret.md" if linked.endswith(".md") else elsewhere
        (folder / linked).symlink_to(target)
        with pytest.raises(TaaeInputError, match=f"{linked} is a link to .*elsewhere.*put a copy"):
            inspect(folder)

    def test_links_within_the_folder_and_kept_files_are_sent(self, folder):
        (folder / "results.md").symlink_to(folder / "results" / "report.md")
        (folder / "NOTICE").write_text("by many")
        (folder / "program.data").write_bytes(nested(b"weights"))
        (folder / "requirements.txt").write_text("Pillow\nconstriction\nnumpy\nRay\n")
        assert {"results.md", "NOTICE", "program.data", "requirements.txt"} <= set(inspect(folder).files)


class TestPush:
    def test_a_dry_run_sends_nothing(self, hub, folder, capsys):
        assert cli.main(["push", str(folder), "mine", "--dry-run"]) == 0
        output = capsys.readouterr().out
        assert f"{(folder / 'model.safetensors').stat().st_size:,}  model.safetensors" in output
        assert f"to {hub.url}/{OWNER}/mine (new, private), branch main" in output
        assert hub.written == [] and not hub.repositories

    def test_a_dry_run_without_a_login_checks_the_folder(self, hub, folder, capsys, monkeypatch):
        monkeypatch.delenv("HF_TOKEN")
        assert cli.main(["push", str(folder), "mine", "--dry-run"]) == 0
        output = capsys.readouterr().out
        assert "  model.safetensors" in output and "Not checked: mine on the Hub, because nobody is logged in" in output
        assert "`hf auth login`" in output and hub.requests == []
        (folder / "LICENSE").unlink()
        assert cli.main(["push", str(folder), "mine", "--dry-run"]) == 2

    def test_the_placeholder_of_the_project_s_address_is_refused(self, hub, folder):
        append_to_card(folder, install_command())
        with pytest.raises(TaaeInputError, match=r"the placeholder of the project's address.* in line \d+"):
            push_folder(folder, "mine")
        rewrite_card(folder, PROJECT_URL, "https://github.com/a-team/taae")
        assert push_folder(folder, "mine")

    def test_all_files_arrive(self, hub, folder, capsys):
        assert cli.main(["push", str(folder), f"{OWNER}/mine", "--message", "First"]) == 0
        repository = hub.repository(f"{OWNER}/mine")
        files = repository.files()
        assert {name: len(content) for name, content in files.items() if name != ".gitattributes"} == inspect(
            folder
        ).files
        assert all((folder / name).read_bytes() == files[name] for name in inspect(folder).files)
        assert repository.private and repository.messages[-1] == "First"
        assert (
            capsys.readouterr().out.splitlines()[-1] == f"{hub.url}/{OWNER}/mine/commit/{repository.branches['main']}"
        )

    def test_public_only_if_asked(self, hub, folder, capsys):
        push_folder(folder, "mine", private=False)
        assert not hub.repository(f"{OWNER}/mine").private
        with pytest.raises(PushError, match="is public already; push with --public"):
            push_folder(folder, "mine")

    def test_a_branch(self, hub, folder):
        push_folder(folder, "mine")
        append_to_card(folder, "Second version.")
        push_folder(folder, "mine", revision="v2")
        repository = hub.repository(f"{OWNER}/mine")
        assert b"Second version." in repository.files("v2")["README.md"]
        assert b"Second version." not in repository.files("main")["README.md"]

    def test_weights_of_an_earlier_version_are_taken_away(self, hub, folder, capsys):
        push_folder(folder, "mine")
        repository = hub.repository(f"{OWNER}/mine")
        repository.commit("main", repository.files() | {"notes.txt": b"kept"}, "by hand")
        TaaeModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="300KB")
        (folder / "model.safetensors").unlink()
        push_folder(folder, "mine", report=print)
        assert "takes away model.safetensors" in capsys.readouterr().out
        assert "model.safetensors" not in repository.files() and repository.files()["notes.txt"] == b"kept"
        assert "model.safetensors.index.json" in repository.files()

    def test_spaces(self, hub, tmp_path):
        (tmp_path / "README.md").write_text("---\nsdk: static\nlicense: apache-2.0\n---\n")
        (tmp_path / "index.html").write_text("<p>Hello")
        push_folder(tmp_path, "page", private=False)
        space = hub.repository(f"{OWNER}/page", "space")
        assert space.facts["sdk"] == "static" and space.files()["index.html"] == b"<p>Hello"

    def test_spaces_bring_the_package_that_they_import(self, hub, tmp_path):
        (tmp_path / "README.md").write_text("---\nsdk: gradio\nlicense: apache-2.0\n---\n")
        (tmp_path / "app.py").write_text("import gradio\n\nfrom modeling_taae.codec import load_codec\n")
        push_folder(tmp_path, "space")
        files = hub.repository(f"{OWNER}/space", "space").files()
        package = Path(cli.__file__).parents[1]
        assert files["modeling_taae/codec.py"] == (package / "codec.py").read_bytes()
        assert set(files) == {".gitattributes", *inspect(tmp_path).files}

    def test_an_unfit_folder_does_not_reach_the_hub(self, hub, folder, capsys):
        (folder / "LICENSE").unlink()
        assert cli.main(["push", str(folder), "mine"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert hub.requests == []


# Loads from the Hub in every way that users do, then from the cache, with every request forbidden. Blocks the package,
# wherever it may be installed.
SCRIPT = """
import json, sys
sys.modules["modeling_taae"] = None
import torch
from huggingface_hub import constants
from transformers import AutoFeatureExtractor, AutoModel

repo, target = sys.argv[1:]
speech = (0.1 * torch.randn(9000, generator=torch.Generator().manual_seed(0))).numpy()
options = {
    "main": {},
    "branch": {"revision": "v2"},
    "shards": {"revision": "shards", "device_map": "auto"},
    "half": {"revision": "shards", "dtype": torch.bfloat16},
}
report = {}
for network in ("online", "offline"):
    constants.HF_HUB_OFFLINE = network == "offline"
    for name in options:
        extractor = AutoFeatureExtractor.from_pretrained(repo, trust_remote_code=True)
        model = AutoModel.from_pretrained(repo, trust_remote_code=True, **options[name])
        with torch.no_grad():
            encoded = model.encode(**extractor(speech, sampling_rate=16_000, return_tensors="pt"))
        modules = sorted({type(part).__module__.partition(".")[0] for part in (extractor, model, model.config)})
        report[f"{name} {network}"] = [modules, str(model.dtype), encoded.audio_codes.tolist()]
json.dump(report, open(target, "w"))
"""


def test_what_was_pushed_loads_elsewhere(hub, folder, tmp_path, make_tiny_model):
    push_folder(folder, "mine")
    sharded = Path(shutil.copytree(folder, tmp_path / "sharded"))
    (sharded / "model.safetensors").unlink()
    TaaeModel.from_pretrained(folder).save_pretrained(sharded, max_shard_size="300KB")
    assert len([*sharded.glob("model-0*.safetensors")]) > 2
    push_folder(sharded, "mine", revision="shards")
    repository = hub.repository(f"{OWNER}/mine")
    make_tiny_model(seed=1).save_pretrained(tmp_path / "other")
    other = {"model.safetensors": (tmp_path / "other" / "model.safetensors").read_bytes()}
    repository.commit("v2", repository.files() | other, "other weights")

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    arguments = [sys.executable, "-c", SCRIPT, f"{OWNER}/mine", tmp_path / "report.json"]
    run = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "report.json").read_text())

    speech = (0.1 * torch.randn(9000, generator=torch.Generator().manual_seed(0))).numpy()
    inputs = TaaeFeatureExtractor.from_pretrained(folder)(speech, sampling_rate=16_000, return_tensors="pt")
    expected = {"main": (folder, torch.float32), "branch": (tmp_path / "other", torch.float32)}
    expected |= {"shards": (folder, torch.float32), "half": (folder, torch.bfloat16)}
    for name, (source, dtype) in expected.items():
        with torch.no_grad():
            codes = TaaeModel.from_pretrained(source, dtype=dtype).encode(**inputs).audio_codes
        for network in ("online", "offline"):
            assert report[f"{name} {network}"] == [["transformers_modules"], str(dtype), codes.tolist()]
    assert report["main online"] != report["branch online"]


@pytest.mark.skipif(not README.is_file(), reason="the README is in a checkout of the project only")
def test_the_commands_of_the_readme(hub, monkeypatch, tmp_path):
    folder = tmp_path / "hub_cards" / "taae-speech-16k-nano"
    shutil.copytree(README.parent / "hub_cards" / "taae-speech-16k-nano", folder)
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^taae (push .*?)\s*(?:#.*)?$", README.read_text(), re.MULTILINE)
    assert len(commands) == 2
    if PLACEHOLDER_DOMAIN in PROJECT_URL:
        assert cli.main(shlex.split(commands[1])) == 2
        rewrite_card(folder, PROJECT_URL, "https://github.com/a-team/taae")
    for command in commands:
        assert cli.main(shlex.split(command)) == 0
    assert [name for _, name in hub.repositories] == [f"{OWNER}/taae-speech-16k-nano"]


class TestErrors:
    """Every one is a line that says what to do, with exit status 1, and leaves the repository as it was."""

    def refused(self, folder: Path, capsys, repo: str = "mine") -> str:
        assert cli.main(["push", str(folder), repo]) == 1
        error = capsys.readouterr().err
        assert error.startswith((f"taae: error: {repo}: ", f"taae: error: {OWNER}/{repo}: "))
        assert "Traceback" not in error
        return error.splitlines()[0]

    def test_nobody_is_logged_in(self, hub, folder, capsys, monkeypatch):
        monkeypatch.delenv("HF_TOKEN")
        assert "nobody is logged in; log in with `hf auth login`" in self.refused(folder, capsys)
        assert hub.requests == []

    def test_a_wrong_token(self, hub, folder, capsys, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        assert "the token was not accepted" in self.refused(folder, capsys)

    def test_somebody_else_s_name(self, hub, folder, capsys):
        assert "this token may not write there" in self.refused(folder, capsys, "other/mine")
        assert not hub.repositories

    def test_no_name(self, hub, folder, capsys):
        assert cli.main(["push", str(folder), "a/b/c"]) == 2
        assert "is no name for a repository" in capsys.readouterr().err

    def test_a_header_that_the_hub_does_not_accept(self, hub, folder, capsys):
        rewrite_card(folder, LICENSE, "license: nonsense")
        assert "must be one of the known licences" in self.refused(folder, capsys)

    @pytest.mark.parametrize(
        ("step", "status", "reason"),
        [
            ("PUT /lfs", 503, "the Hub answered 503"),
            ("PUT /lfs", None, "cannot be reached"),
            ("POST .*/commit/", 500, "the Hub answered 500"),
        ],
    )
    def test_an_interrupted_push_can_be_taken_up(self, hub, folder, capsys, step, status, reason):
        hub.refusals[step] = status
        assert reason in self.refused(folder, capsys)
        repository = hub.repository(f"{OWNER}/mine")
        assert set(repository.files()) == {".gitattributes"}
        hub.refusals.clear()
        stored, before = set(hub.stored), len(hub.requests)
        push_folder(folder, "mine")
        assert set(repository.files()) == {".gitattributes", *inspect(folder).files}
        sent_again = [request for request in hub.requests[before:] if request.removeprefix("PUT /lfs/") in stored]
        assert sent_again == []

    def test_the_hub_is_gone(self, hub, folder, capsys, monkeypatch):
        hub.shutdown()
        hub.server_close()
        assert f"{hub.url} cannot be reached" in self.refused(folder, capsys)

    def test_offline(self, hub, folder, capsys, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE is set" in self.refused(folder, capsys)


@pytest.fixture(scope="module")
def made_tokens(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of tokens, fit to be published."""
    folder = tmp_path_factory.mktemp("push") / "tokens"
    command = ["tokenize", str(made.parent / "speech"), "-o", str(folder), "--model", str(made), "--license", "cc0-1.0"]
    assert cli.main(command) == 0
    return folder


@pytest.fixture
def tokens(made_tokens: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(made_tokens, tmp_path / "tokens"))


class TestTokens:
    def test_they_load_from_the_hub(self, hub, tokens, tmp_path, monkeypatch):
        push_folder(tokens, "words")
        assert set(hub.repository(f"{OWNER}/words", "dataset").files()) == {".gitattributes", *inspect(tokens).files}
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        rows = datasets.load_dataset(f"{OWNER}/words", split="train", cache_dir=str(tmp_path / "cache"))
        local = datasets.load_dataset(str(tokens), split="train", cache_dir=str(tmp_path / "cache"))
        assert rows.to_list() == local.to_list() and len(rows) == 2

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda folder: shard_of(folder).unlink(), r"data/train-00000-of-00001-\w+\.parquet is missing"),
            (lambda folder: shard_of(folder).write_bytes(b"PAR1"), r"-00001-\w+\.parquet has 4 bytes, not"),
            (
                lambda folder: shutil.copy(shard_of(folder), folder / "data" / "more.parquet"),
                "data/more.parquet is not in manifest.json",
            ),
            (lambda folder: (folder / "manifest.json").write_text("{}"), "is not what `taae tokenize` writes"),
            (lambda folder: (folder / "manifest.json").write_text("{"), "is not what `taae tokenize` writes"),
            (lambda folder: rewrite_card(folder, "2 recordings", "3 recordings"), "how many recordings there are, 2"),
            (lambda folder: rewrite_card(folder, f"{LICENSE}\n", ""), "names no license"),
        ],
    )
    def test_unfit_ones_are_refused(self, tokens, spoil, message):
        assert inspect(tokens).summary == "tokens of 2 recordings, 0.00 hours, by taae-tiny"
        spoil(tokens)
        with pytest.raises(TaaeInputError, match=message):
            inspect(tokens)
