"""What README.md, docs/ and the notebook say, done as a reader would do it, page by page and top to bottom.

The models that this checkout publishes are tiny ones here, recordings are noise, and what takes long is cut short. What
cannot be done in a test is in `NOT_RUN` with the reason, and looked at as far as it goes.
"""

import base64
import copy
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import nbformat
import numpy as np
import pytest
import soundfile
import torch
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from datasets import Dataset
from huggingface_hub import constants
from safetensors.torch import save_file
from support import stable_codec_reference
from support.tiny_language_models import byte_tokenizer, language_model

from modeling_taae import TaaeConfig, TaaeFeatureExtractor, TaaeModel
from modeling_taae.cli import build_parser
from modeling_taae.cli import main as taae
from modeling_taae.hub.cards import PROJECT_URL, install_command
from modeling_taae.hub.checks import inspect
from modeling_taae.taae_file import TaaeFile
from training.recipe import parse_recipe

pytestmark = pytest.mark.slow

# datasets waits this many seconds for its readers at the end of a stream: long for files of a few kilobytes.
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0

CHECKOUT = Path(__file__).resolve().parents[2]
NANO, CAUSAL, SMALL = (f"hub_cards/taae-speech-16k-{name}" for name in ("nano", "nano-causal", "small"))


@dataclass(frozen=True)
class Page:
    """What has come of a page at its end.

    Args:
        printed: by each block of Python, in part.
        written: files and folders, or patterns of them.
    """

    printed: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)


PAGES = {
    "README.md": Page(
        ["torch.Size([2, 1, 50])"],
        [
            *(
                "demo_out/speech_decoded.wav",
                "decoded.wav",
                "again.wav",
                "better.wav",
                "encoded/a.taae",
                "encoded/b.taae",
                "tokens/manifest.json",
            ),
            *("said.wav", "continued.wav", "runs/mine/model/model.safetensors", "results/report.html"),
        ],
    ),
    "docs/convert_official_weights.md": Page(
        ["torch.Size([1, 2, 50]) torch.Size([1, 1, 32000])"], ["taae-speech-16k/README.md", "decoded.wav"]
    ),
    "docs/api.md": Page(),
    "docs/architecture.md": Page(),
    "docs/recordings.md": Page(),
    "docs/troubleshooting.md": Page(),
    "docs/export.md": Page(["(1, 1, 50)\n(1, 1, 32000)"], ["exported/encoder.onnx", "exported/decoder.onnx"]),
    "CONTRIBUTING.md": Page([], ["speech.taae", "runs/norm_eps/model/model.safetensors", "results/results.json"]),
    "docs/fine_tune_a_language.md": Page(
        ["train 2\ntest 1", "english_after {'pesq_wb': "],
        ["runs/dutch/model/config.json", "runs/dutch/samples/step-1/0-decoded.wav", "after.wav"],
    ),
    "docs/a_million_hours.md": Page(
        ["hours of speech, 0 folders"], ["trial/report.json", "tokens_of_all/train/README.md"]
    ),
    "docs/speech_language_model.md": Page(["torch.Size([2, 50])", "0 samples beside whole frames"], ["taught.wav"]),
    "docs/stream.md": Page(["True", "torch.Size([1, 1, 1500]) True"], ["heard.wav", "heard.raw", "lecture.wav"]),
    "docs/taae_format.md": Page(["241 (2, 50)"]),
    "docs/train_through_the_codec.md": Page(["loss "]),
    "docs/tokenize_a_corpus.md": Page(
        [
            "50 frames of 2 tokens",
            "torch.Size([1, 1, 32000])",
            "2 rows, 4.0 seconds",
            "recordings/a.flac (2, 50)",
        ],
        ["tokens/report.json", "tokens_of_parquet/README.md"],
    ),
    "hub_cards/web/README.md": Page(["744 characters, 10.0 seconds"]),
}

# Commands that are only looked at, by what they begin with, and why.
NOT_RUN = {
    "pip install": "it fetches packages; every other test runs in what it installs",
    "git clone": "the project has no address yet",
    "python3 -m venv": "it makes an environment of its own",
    "make": "it makes an environment of its own, and .ci/run calls it",
    "hf": "it needs an account on the Hub",
    "tensorboard": "it serves until it is stopped",
    "taae push": "test_push.py and test_training_hub.py push, to a Hub on loopback",
    "taae tokenize facebook/voxpopuli": "it reads from the Hub",
    "taae tokenize manifests/train.jsonl": "it reads from folders of a site; test_sources.py reads such lists",
    "taae tokenize recordings/ -o tokens_by_ray": "it takes long to start Ray; test_tokenize.py does",
    "python -m http.server": "it serves until it is stopped",
}

# Further options, with which what takes long does not; a later option is the one that counts.
RUN = "--max_steps 1 --batch_size 1 --validation.utterances 1"
SIZES = {"hidden_sizes": [16, 16], "strides": [2, 2], "encoder_depths": [0, 1], "decoder_depths": [0, 1]}
TINY = json.dumps(SIZES | {"head_dim": 16})
TINY_SPEECH = '[{"source": "my_speech/train.parquet"}]'
BRIEF = {
    "taae evaluate": "--limit 1 --samples 1 --workers 1 --no-speed --metrics pesq_wb si_sdr",
    "training/train.py training/recipes/nano.yaml": f"{RUN} --config '{TINY}' --data.corpora '{TINY_SPEECH}' "
    "--validation.corpus.source my_speech/train.parquet",
    "training/train.py training/recipes/finetune_language.yaml": RUN,
    "training/train_speech_lm.py": "--budget.max_steps 1 --budget.layers 1 --budget.hidden_size 16 --samples 0",
    "training/speak.py": "--seconds 1",
    "training/speech_lm/teach.py": "--max-steps 1 --batch-size 2",
}


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and content of each block of code."""
    return re.findall(r"```(\w+)\n(.*?)```", (CHECKOUT / page).read_text(), flags=re.DOTALL)


def commands(code: str) -> list[str]:
    """The commands in a block of shell, without comments, lines that go on joined."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+#.*", "", line).strip() for line in lines) if line]


@pytest.fixture
def workplace(tmp_path, tiny_model, tiny_model_folder, monkeypatch) -> Path:
    """A folder with what the pages read, the current one: recordings, models, and the checkout's programs."""
    generator = np.random.default_rng(0)
    speech = generator.normal(size=32_000) * np.sin(np.arange(32_000) / 800) ** 2 * 0.1
    recordings = ["speech.wav", "recordings/a.flac", "recordings/b.ogg"]
    recordings += ["dutch/jan/1.flac", "dutch/piet/1.flac", "dutch/maria/1.flac"]
    for file in recordings:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / file, speech, 16_000)
    for part in ("train", "validation"):
        shutil.copytree(tmp_path / "recordings", tmp_path / "my_voices" / part)
        (tmp_path / "my_voices" / part / "metadata.csv").write_text("file_name,text\na.flac,Good\nb.ogg,morning.\n")
    (tmp_path / "my_speech").mkdir()
    audio = {"bytes": (tmp_path / "speech.wav").read_bytes(), "path": "speech.wav"}
    Dataset.from_dict({"audio": [audio] * 3}).to_parquet(tmp_path / "my_speech" / "train.parquet")
    tokenizer = byte_tokenizer()
    for part in (tokenizer, language_model(len(tokenizer))):
        part.save_pretrained(tmp_path / "my_language_model")
    write_stable_codec(tmp_path / "stable-codec-speech-16k")
    for folder in (NANO, SMALL):
        shutil.copytree(tiny_model_folder, tmp_path / folder)
    TaaeModel(TaaeConfig(**tiny_model.config.to_dict() | {"causal": True})).save_pretrained(tmp_path / CAUSAL)
    TaaeFeatureExtractor().save_pretrained(tmp_path / CAUSAL)
    (tmp_path / "LICENSE-of-my-weights").write_text("Do what you like.\n")
    (tmp_path / "training").symlink_to(CHECKOUT / "training")
    (tmp_path / "hub_cards" / "demo.py").symlink_to(CHECKOUT / "hub_cards" / "demo.py")
    recording = tmp_path / SMALL / "samples" / "english-woman-original.flac"
    recording.parent.mkdir()
    soundfile.write(recording, speech, 16_000)
    monkeypatch.setenv("TAAE_MODEL", str(tmp_path / NANO))
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_stable_codec(folder: Path) -> None:
    """A tiny checkpoint as the official ones are, with frames of their length."""
    shape = stable_codec_reference.Shape(patch_size=320, c_mults=(1, 1), strides=(1, 2))
    folder.mkdir()
    (folder / "model_config.json").write_text(json.dumps(shape.model_config()))
    (folder / "LICENSE.md").write_text("Stability AI Community License\n")
    state = stable_codec_reference.recipe_state(stable_codec_reference.tensor_shapes(shape), seed=0)
    save_file(state, folder / "model.safetensors")


class Shell:
    """Runs commands as a shell does, those of this project in this process.

    Args:
        monkeypatch: takes back what a command changes.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.monkeypatch = monkeypatch
        self.missing: set[str] = set()  # programs of others that are not installed here

    def run(self, command: str) -> None:
        """Runs a command, a pipeline of them, or as much of it as a test can."""
        programs = {**dict.fromkeys(NOT_RUN, look_at), "taae": self.taae, "python": self.python}
        programs |= {"accelerate launch": self.accelerate, "export": self.export, "unset": self.unset}
        programs |= {"rec": self.microphone, "play": lambda words, content: b""}
        content = b""
        for words, source, target in stages(command):
            content = Path(source).read_bytes() if source else content
            text = " ".join(words)
            name = max((name for name in programs if f"{text} ".startswith(f"{name} ")), key=len, default=None)
            if name is None and shutil.which(words[0]) is None:
                self.missing.add(words[0])
                return
            run = programs[name] if name else other_program
            content = run(words, content)
            if target:
                Path(target).write_bytes(content)

    def taae(self, words: list[str], content: bytes) -> bytes:
        """A command of the package."""
        with self.standard_streams(content) as written:
            assert taae([*words[1:], *brief(" ".join(words))]) == 0, words
        return written.getvalue()

    def python(self, words: list[str], content: bytes) -> bytes:
        """A program of the checkout; a trained model finds no way to the Hub."""
        script, *arguments = words[1:]
        with self.standard_streams(content) as written:
            complaint = self.start(script, [*arguments, *brief(" ".join(words[1:]))])
        if "--hub.repo" in arguments:
            assert "Not published" in complaint and "HF_HUB_OFFLINE is set" in complaint
        else:
            assert not complaint, words
        return written.getvalue()

    def accelerate(self, words: list[str], content: bytes) -> bytes:
        """The trainer in this process, as the launcher would start it in another."""
        launched = launch_command_parser().parse_args(words[2:])
        script, arguments = launched.training_script, launched.training_script_args
        assert not self.start(script, [*arguments, *brief(f"{script} {arguments[0]}")]), words
        return b""

    def start(self, path: str, arguments: list[str]) -> int | str | None:
        """Runs a program of the checkout; its exit status, or the message that it ends with."""
        AcceleratorState._reset_state(reset_partial_state=True)
        with self.monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [path, *arguments])
            try:
                runpy.run_path(path, run_name="__main__")
            except SystemExit as end:
                return end.code
        return None

    def export(self, words: list[str], content: bytes) -> bytes:
        self.monkeypatch.setenv(*words[1].split("="))
        return b""

    def unset(self, words: list[str], content: bytes) -> bytes:
        """Takes away a variable: of the model, the one that stands in for that of the checkout comes back."""
        assert words == ["unset", "TAAE_MODEL"]
        self.monkeypatch.setenv("TAAE_MODEL", NANO)
        return b""

    def microphone(self, words: list[str], content: bytes) -> bytes:
        """What `rec` would record, had this machine a microphone."""
        return other_program(["sox", "speech.wav", *words[1:]], b"")

    @contextmanager
    def standard_streams(self, content: bytes) -> Iterator[io.BytesIO]:
        """Standard input of these bytes, and standard output for bytes; text goes where it went."""
        written = io.BytesIO()
        with self.monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
            patch.setattr(sys, "stdout", OutputStream(sys.stdout, written))
            yield written


class OutputStream:
    """Standard output whose bytes are kept."""

    def __init__(self, text: io.TextIOBase, buffer: io.BytesIO):
        self.text, self.buffer = text, buffer

    def __getattr__(self, name: str) -> object:
        return getattr(self.text, name)


def stages(command: str) -> Iterator[tuple[list[str], str | None, str | None]]:
    """The commands of a pipeline: words, and the files that standard input and output are redirected to."""
    reader = shlex.shlex(command, posix=True, punctuation_chars="|<>")
    reader.whitespace_split, reader.commenters = True, ""
    words, files, redirection = [], {}, None
    for word in [*reader, "|"]:
        if word == "|":
            yield words, files.get("<"), files.get(">")
            words, files = [], {}
        elif word in ("<", ">"):
            redirection = word
        elif redirection:
            files[redirection], redirection = word, None
        else:
            words.append(word)


def brief(text: str) -> list[str]:
    """The further options of a command."""
    return [word for name, options in BRIEF.items() if text.startswith(name) for word in shlex.split(options)]


def other_program(words: list[str], content: bytes) -> bytes:
    """Standard output of somebody else's program."""
    return subprocess.run(words, input=content, stdout=subprocess.PIPE, check=True).stdout


def look_at(words: list[str], content: bytes) -> bytes:
    """What can be said of a command that is not run: that its options, targets and folders exist, and may be pushed."""
    match words:
        case ["pip", "install", *requirements]:
            setup = ConfigParser()
            setup.read(CHECKOUT / "setup.cfg")
            extras = re.findall(r"\[([\w,]+)\]", " ".join(requirements))
            assert set(",".join(extras).split(",")) - {""} <= set(setup["options.extras_require"])
            pinned = (CHECKOUT / "constraints.txt").read_text().splitlines()
            assert all(name in pinned for name in requirements if "==" in name)
        case ["make", target, *_]:
            makefiles = (CHECKOUT / "Makefile", CHECKOUT / "hub_cards" / "cards" / "release.mk")
            assert any(re.search(rf"^{target}:", file.read_text(), flags=re.MULTILINE) for file in makefiles)
        case ["tensorboard", "--logdir", folder]:
            assert list(Path(folder).glob("**/events.out.tfevents.*"))
        case ["taae", *arguments]:
            parsed = build_parser().parse_args(arguments)
            # What hub_cards/ holds is not here, but what a page has made is.
            if parsed.command == "push" and not parsed.folder.startswith("hub_cards/"):
                inspect(parsed.folder)
    return b""


@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says(workplace, page, monkeypatch, capsys):
    torch.manual_seed(0)
    shell, names, printed = Shell(monkeypatch), {"__name__": "page"}, iter(PAGES[page].printed)
    if page.startswith("hub_cards/web"):
        names["fragment"] = link_of_ten_seconds()
    for language, code in blocks(page):
        if language == "bash":
            for command in commands(code):
                shell.run(command)
        elif language == "python":
            capsys.readouterr()
            exec(compile(code, page, "exec"), names)
            assert next(printed) in capsys.readouterr().out, code
    assert not list(printed)
    if shell.missing:
        pytest.skip(f"all but the commands with {', '.join(shell.missing)} did what they say: not installed here")
    for pattern in PAGES[page].written:
        assert list(workplace.glob(pattern)), pattern


def link_of_ten_seconds() -> str:
    """The fragment of a link, as the page of hub_cards/web makes it."""
    tokens = np.random.default_rng(0).integers(0, 46_656, (1, 250))
    file = TaaeFile(
        audio_codes=tokens,
        vocabulary_sizes=(46_656,),
        bottleneck="1x46656_400bps",
        num_samples=160_000,
        hop_length=640,
        sampling_rate=16_000,
        model_identity="00c0ffee12345678",
    )
    return base64.urlsafe_b64encode(file.to_bytes()).decode().rstrip("=")


TEMPLATES = CHECKOUT / "modeling_taae" / "hub" / "templates"


def texts() -> dict[str, str]:
    """Every page, card and template of one, by its path."""
    folders = (CHECKOUT, CHECKOUT / "docs", CHECKOUT / "training", TEMPLATES)
    files = [file for folder in folders for file in folder.glob("*.md")]
    files += [file for folder in ("hub_cards", "modeling_taae") for file in (CHECKOUT / folder).rglob("*.md")]
    return {str(file.relative_to(CHECKOUT)): file.read_text() for file in files if "dist" not in file.parts}


def test_the_paper_is_cited_alike_everywhere():
    citation = (TEMPLATES / "_citation.md").read_text().strip()
    cited = {name: re.findall(r"```bibtex.*?```", text, flags=re.DOTALL) for name, text in texts().items()}
    assert cited["README.md"] == [citation]
    assert {entry for entries in cited.values() for entry in entries} == {citation}


def test_the_project_has_one_address():
    """The constant in cards.py is what setup.cfg and all pages name."""
    setup = ConfigParser()
    setup.read(CHECKOUT / "setup.cfg")
    assert setup["metadata"]["url"] == PROJECT_URL
    named = {name: set(re.findall(r"https?://[\w.-]+\.invalid[^;\s\"')]*", text)) for name, text in texts().items()}
    assert set().union(*named.values()) <= {PROJECT_URL}
    for name in ("README.md", "hub_cards/taae-speech-16k-nano/README.md"):
        assert install_command() in texts()[name], name


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_that_the_map_names_exist(page):
    named = re.findall(r"`((?:modeling_taae|training|hub_cards|tests)/[\w./-]*)`", (CHECKOUT / page).read_text())
    assert named and not [name for name in named if not (CHECKOUT / name).exists()]


def test_the_reference_is_complete():
    path = CHECKOUT / "docs" / "make_api.py"
    assert subprocess.run([sys.executable, path, "--check"], check=False).returncode == 0


def test_every_page_is_tried():
    assert {f"docs/{file.name}" for file in (CHECKOUT / "docs").glob("*.md")} <= PAGES.keys()


def test_the_trainer_takes_what_its_readme_gives_it():
    launches = [
        command
        for language, code in blocks("training/README.md")
        if language == "bash"
        for command in commands(code)
        if command.startswith("accelerate launch")
    ]
    assert len(launches) >= 4
    for command in launches:
        launched = launch_command_parser().parse_args(shlex.split(command)[2:])
        parse_recipe(launched.training_script_args)


def slug(heading: str) -> str:
    """What GitHub calls a heading in links."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, "training/README.md", "docs/example.ipynb"])
def test_files_and_headings_that_a_page_links_to_exist(page):
    text = (CHECKOUT / page).read_text()
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        file = (CHECKOUT / page).parent / target if target else CHECKOUT / page
        assert file.exists(), f"{page} links to {target}"
        if heading:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
            assert heading in map(slug, headings), f"{page} links to {target}#{heading}"


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(CHECKOUT / "docs" / "example.ipynb", as_version=4)


def test_the_notebook_is_stored_with_what_it_shows(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 5 and all(cell.execution_count == place for place, cell in enumerate(cells, 1))
    assert not any(output.get("name") == "stderr" for cell in cells for output in cell.outputs), "of one machine"
    assert (CHECKOUT / "docs" / "example.ipynb").stat().st_size < 1e6


@pytest.mark.skipif(not (CHECKOUT / NANO).is_dir(), reason="the model is in a checkout of the project only")
def test_the_notebook_runs_from_top_to_bottom_on_the_published_model(notebook):
    tools = runpy.run_path(str(CHECKOUT / "docs" / "make_notebook.py"))
    ran = tools["run"](copy.deepcopy(notebook))
    outputs = [output for cell in ran.cells for output in cell.get("outputs", ())]
    shown = [output.data for output in outputs if "data" in output]
    assert sum("<audio" in data.get("text/html", "") for data in shown) == 7
    assert sum("image/png" in data for data in shown) == 1
    printed = tools["printed"](ran)
    assert printed == tools["printed"](notebook), "run `make notebook`"
    rates = dict(re.findall(r"(\w+): (\d+) bit/s", printed))
    assert rates == {"1x46656_400bps": "388", "2x15625_700bps": "697", "4x729_1000bps": "951", "native": "613"}
    assert "'say it: ' (4, " in printed
