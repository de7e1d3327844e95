"""Whatever is published with a model belongs to its weights: `make release` makes it anew when these change."""

import functools
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from PIL import Image
from pyarrow import parquet
from support.tiny_priors import make_prior

from modeling_taae.codec import load_codec
from modeling_taae.entropy.prior import PRIOR_FILE, EntropyPrior, find_prior
from modeling_taae.errors import TaaeInputError
from modeling_taae.export.export import round_weights
from modeling_taae.taae_file import TaaeFile, model_identity
from training.publish import publish

ROOT = Path(__file__).parents[2]
HUB_CARDS = ROOT / "hub_cards"
FOLDERS = sorted(file.parent for file in HUB_CARDS.glob("taae-*/config.json"))
# What a model is loaded with, and what is told of the recordings: they would be the same for other weights.
SETTINGS = ("config.json", "preprocessor_config.json", "discriminator.json", "ctc_head.json")
NOT_OF_WEIGHTS = {*SETTINGS, "training_data.json"}
KEYS = {"model_identity", "identity"}


def artefacts(folder: Path) -> list[Path]:
    """Files of a model's folder that can tell which weights they belong to."""
    files = [file for pattern in ("*.json", "*.taae", "*.png", "*.flac", PRIOR_FILE) for file in folder.rglob(pattern)]
    files = [file for file in files if not file.name.endswith("-original.flac")]  # recordings, whatever the weights
    return sorted(file for file in files if file.name not in NOT_OF_WEIGHTS)


def identities(artefact: Path) -> set[str]:
    """Identities of the models that an artefact names."""
    if artefact.suffix == ".taae":
        return {TaaeFile.load(artefact, find_prior(artefact.parent)).model_identity}
    if artefact.name == PRIOR_FILE:
        return {EntropyPrior.load(artefact.parent).model_identity}
    if artefact.suffix == ".flac":
        with soundfile.SoundFile(artefact) as sample:
            return set(re.findall(r"model_identity=(\w+)", sample.comment))
    if artefact.suffix == ".png":
        return {Image.open(artefact).text.get("model_identity")}
    return named(json.loads(artefact.read_text()))


def named(content: object) -> set[str]:
    """Identities that a JSON value names."""
    if isinstance(content, list):
        return set().union(*map(named, content))
    if not isinstance(content, dict):
        return set()
    return {content[key] for key in KEYS & content.keys()}.union(*map(named, content.values()))


@functools.cache
def identity_of(folder: Path, of_tokens: bool = False) -> str:
    """A model's identity, or the one in files of its tokens: that of the oldest model with the same tokens."""
    codec = load_codec(str(folder), device="cpu")
    return codec.file_identity if of_tokens else codec.identity


PUBLISHED = [file for folder in FOLDERS for file in artefacts(folder)]


@pytest.mark.skipif(not FOLDERS, reason="no published model is in this checkout")
@pytest.mark.parametrize("artefact", PUBLISHED, ids=lambda file: str(file.relative_to(HUB_CARDS)))
def test_published_artefacts_belong_to_the_weights_beside_them(artefact):
    """What fails here was made with other weights, or does not tell: `make release` makes it anew."""
    (folder,) = (folder for folder in FOLDERS if folder in artefact.parents)
    of_tokens = artefact.name in ("demo.taae", PRIOR_FILE)
    assert identities(artefact) == {identity_of(folder, of_tokens)}


def test_the_picture_of_all_models_is_of_their_weights():
    judged = [folder for folder in FOLDERS if (folder / "results" / "judged").is_dir()]
    if not judged:
        pytest.skip("no published model was judged by networks in this checkout")
    drawn = Image.open(ROOT / "docs" / "quality.png").text["model_identity"]
    assert set(drawn.split()) == {identity_of(folder) for folder in judged}


@pytest.mark.skipif(not FOLDERS, reason="no published model is in this checkout")
def test_texts_name_published_weights_only():
    """Words of 16 hexadecimal digits in texts are identities of published models, of these in 8 bits, or of judges."""
    rounded = {model_identity(round_weights(load_codec(str(folder), device="cpu").model)) for folder in FOLDERS}
    results = [json.loads(path.read_text()) for path in HUB_CARDS.glob("taae-*/results/judged/results.json")]
    judges = {value for result in results for name, value in result["judges"].items() if name.endswith(" weights")}
    known = rounded | judges | {identity_of(folder) for folder in FOLDERS}
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "training").rglob("*.md")]
    texts += [text for text in HUB_CARDS.rglob("*.md") if "dist" not in text.parts]  # which is not published from here
    named = {(str(text.relative_to(ROOT)), word) for text in texts for word in words(text)}
    assert not {(text, word) for text, word in named if word not in known}


def words(text: Path) -> list[str]:
    return re.findall(r"\b[0-9a-f]{16}\b", text.read_text())


def test_samples_are_complete_and_small():
    """Each recording in every version; what the page plays is there."""
    clips = [path.parent for path in (HUB_CARDS / "samples").glob("*/original.flac")]
    assert len(clips) >= 4
    for folder in FOLDERS:
        for clip in clips:
            copy = folder / "samples" / f"{clip.name}-original.flac"
            assert copy.read_bytes() == (clip / "original.flac").read_bytes()
            assert (folder / "samples" / f"{clip.name}.flac").is_file()
    page = ROOT / "docs" / "samples.html"
    files = {(page.parent / name).resolve() for name in re.findall(r'data-file="([^"]+)"', page.read_text())}
    assert len(files) >= 6 * len(clips) and all(file.is_file() for file in files)
    assert sum(file.stat().st_size for file in files) < 2e6


class TestFinding:
    """That the tests above would find what is wrong."""

    @pytest.fixture
    def folder(self, tiny_model_folder, tmp_path) -> Path:
        folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "taae-tiny"))
        codec = load_codec(str(folder))
        codec.encode(np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)).save(folder / "demo.taae")
        make_prior(codec.identity).save(folder)
        for name in ("results/entropy.json", "results/noise/results.json"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            systems = [{"kind": "PCM"}, {"kind": "TAAE", "model_identity": codec.identity}]
            (folder / name).write_text(json.dumps({"systems": systems}))
        return folder

    def test_all_is_found(self, folder):
        found = {str(file.relative_to(folder)) for file in artefacts(folder)}
        assert found == {"demo.taae", PRIOR_FILE, "results/entropy.json", "results/noise/results.json"}
        assert all(identities(file) == {identity_of(folder)} for file in artefacts(folder))

    def test_other_weights_make_all_of_it_stale(self, folder, make_tiny_model):
        make_tiny_model(1).save_pretrained(folder)
        (identity,) = {load_codec(str(folder)).identity}
        assert not any(identities(file) == {identity} for file in artefacts(folder))

    def test_results_that_do_not_tell_are_stale(self, folder):
        (folder / "results" / "new.json").write_text('{"figures": [1, {"identities": "0"}]}')
        assert identities(folder / "results" / "new.json") == set()


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
class TestMake:
    def commands(self, *variables: str) -> list[str]:
        """The scripts and commands that `make release` would run, in order, each with its arguments."""
        command = ["make", "-n", "release", "RUN=runs/mine", "VENV=v", *variables]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        calls = re.findall(r"v/bin/(?:python |taae )(?!-)((?:.*\\\n)*.*)", said)
        return [
            call.removeprefix("hub_cards/")
            .removeprefix("cards/")
            .removeprefix("training/benchmarks/")
            .removeprefix("training/speech_lm/")
            .removeprefix("training/")
            .removeprefix("measure.py ")
            for call in calls
        ]

    def test_everything_is_made_after_what_it_needs(self):
        commands = self.commands()
        first = {}
        for number, command in enumerate(commands):
            first.setdefault(command.split()[0], number)
        assert commands[0].startswith("publish.py runs/mine/model hub_cards/taae-speech-16k-nano ")
        assert commands[-1].startswith("make_card.py hub_cards/taae-speech-16k-nano ")
        assert first["make_entropy_prior.py"] < first["file_sizes"] < first["compare_speech_lms.py"]
        assert (
            first["web/build.py"] < first["web/measure.py"] and first["make_provenance.py"] < first["make_pictures.py"]
        )
        writers = [HUB_CARDS / "make_card.py", *(HUB_CARDS / "cards").glob("make_*.py")]
        assert {script.name for script in writers} <= first.keys()

    def test_another_model_s_folder_gets_its_own(self):
        card = "hub_cards/taae-speech-16k-nano-causal"
        commands = self.commands(f"CARD={card}")
        assert all(card in command for command in commands if not command.startswith("make_samples.py"))
        assert not any(re.search(r"taae-speech-16k-nano(?!-causal)", command) for command in commands)
        assert commands[-1].startswith(f"make_card.py {card} ")

    def test_what_is_left_can_be_named(self):
        scripts = [command.split()[0] for command in self.commands("RELEASE=determinism card")]
        assert scripts == ["determinism", "make_card.py"]


class TestPublish:
    """`training/publish.py`, the first step of `make release`."""

    @pytest.fixture
    def speech(self, tmp_path) -> list[str]:
        soundfile.write(tmp_path / "speech.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
        return [str(tmp_path / "speech.wav")]

    def test_a_prior_of_other_weights_goes(self, tiny_model_folder, make_tiny_model, speech, tmp_path):
        """It would stand in the way of the new weights, which could not encode until it is made again."""
        target = tmp_path / "taae-tiny"
        publish(tiny_model_folder, target, speech)
        prior = make_prior(load_codec(str(target)).identity)
        prior.save(target)
        publish(tiny_model_folder, target, speech)
        assert EntropyPrior.load(target).identity == prior.identity
        make_tiny_model(1).save_pretrained(tmp_path / "new")
        shutil.copy(tiny_model_folder / "preprocessor_config.json", tmp_path / "new")
        publish(tmp_path / "new", target, speech)
        assert not (target / PRIOR_FILE).exists()
        assert all(identities(file) == {load_codec(str(target)).identity} for file in artefacts(target))

    def test_the_sample_can_be_one_of_many(self, tiny_model_folder, speech, tmp_path):
        parquet.write_table(
            pa.table({"id": ["a", "b"], "audio": [b"", Path(speech[0]).read_bytes()]}), tmp_path / "s.parquet"
        )
        publish(tiny_model_folder, tmp_path / "of-many", [str(tmp_path / "*.parquet"), "b"])
        publish(tiny_model_folder, tmp_path / "of-one", speech)
        samples = [(tmp_path / name / "demo.taae").read_bytes() for name in ("of-many", "of-one")]
        assert samples[0] == samples[1]
        with pytest.raises(TaaeInputError, match="no utterance c"):
            publish(tiny_model_folder, tmp_path / "of-none", [str(tmp_path / "*.parquet"), "c"])

    def test_what_cannot_be_published_changes_nothing(self, tiny_model_folder, speech, tmp_path):
        target = tmp_path / "taae-tiny"
        publish(tiny_model_folder, target, speech)
        before = {file: file.read_bytes() for file in target.iterdir()}
        with pytest.raises(OSError):
            publish(tmp_path / "nothing", target, speech)
        assert {file: file.read_bytes() for file in target.iterdir()} == before
        assert not list(tmp_path.glob(".publish-*"))
