"""Data sets of the Hub in every command: Parquet, and recordings, for which `datasets` would want torchcodec."""

from pathlib import Path

import datasets
import pytest
from huggingface_hub import HfFileSystem, constants
from support.corpora import NAMES, RATE, SPOKEN, bytes_and_paths, lines, recordings, write
from support.hub_server import HubServer, Repository

from modeling_taae import TaaeFeatureExtractor
from modeling_taae.data.utterances import Utterances
from training.data import StreamedCrops, TrainingCrops
from training.recipe import CorpusConfig, CTCConfig, DataConfig
from training.transcribed import TranscribedSpeech


@pytest.fixture
def data_set(request, tmp_path, monkeypatch) -> str:
    """The name of a data set on a Hub of this machine."""
    if request.param == "tables":
        bytes_and_paths(tmp_path / "in").rename(tmp_path / "in/train-00000-of-00001.parquet")
    else:
        write(tmp_path / "in/metadata.csv", lines(("file_name", "text"), *((f"{n}.flac", t) for n, t in NAMES.items())))
        recordings(tmp_path / "in")
    name = f"me/{request.param}"
    with HubServer() as hub:
        repository = hub.repositories["dataset", name] = Repository("dataset", name, {"visibility": "public"})
        files = {file.name: file.read_bytes() for file in Path(tmp_path / "in").iterdir()}
        repository.commit("main", files, "speech")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        for place, setting in ((datasets.config, "HF_ENDPOINT"), (constants, "ENDPOINT")):
            monkeypatch.setattr(place, setting, hub.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants._HF_DEFAULT_ENDPOINT, hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        for place in (datasets.config, constants):
            monkeypatch.setattr(place, "HF_HUB_OFFLINE", False)
        HfFileSystem.clear_instance_cache()
        yield name
    HfFileSystem.clear_instance_cache()


@pytest.mark.parametrize("data_set", ["tables", "recordings"], indirect=True)
def test_the_hub_in_every_command(data_set):
    utterances = list(Utterances([data_set], split="train"))
    assert {each.facts["text"]: len(each.audio) / RATE for each in utterances} == SPOKEN
    data, extractor = DataConfig(corpora=[CorpusConfig(data_set)], crop_frames=8), TaaeFeatureExtractor()
    crops = TrainingCrops(data, extractor, 0)
    assert crops.skipped == 0 and crops.corpora[0].samples == RATE * sum(SPOKEN.values())
    streamed = list(zip(range(3), StreamedCrops(data, extractor, 0, 0, 1, 0), strict=False))
    assert all(crop.abs().sum() > 0 for _, crop in streamed)
    (corpus,) = TranscribedSpeech(CTCConfig(data.corpora), extractor, 0).corpora
    assert corpus.texts == list(SPOKEN)
