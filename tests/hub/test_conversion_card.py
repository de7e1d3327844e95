"""Converted weights keep their licence, say where they come from, and can be published once they are evaluated."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from support import stable_codec_reference as reference

from modeling_taae import TaaeModel, cli
from modeling_taae.errors import TaaeInputError
from modeling_taae.hub.checks import inspect
from modeling_taae.hub.conversion import STABILITY_NOTICE, conversion_card

LICENSE = "STABILITY AI COMMUNITY LICENSE AGREEMENT\nLast Updated: July 5, 2024\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A stable-codec folder without a licence, of the frame rate that the evaluation of models expects."""
    folder = tmp_path / "stable-codec"
    folder.mkdir()
    shape = reference.Shape()
    (folder / "model_config.json").write_text(json.dumps(shape.model_config()))
    save_file(reference.recipe_state(reference.tensor_shapes(shape), seed=1), folder / "model.safetensors")
    return folder


def convert(source: Path) -> Path:
    """Converts as a user does, and returns the new folder."""
    target = source.parent / "converted"
    assert cli.main(["convert", str(source), str(target)]) == 0
    return target


def test_the_released_weights_keep_their_licence(source):
    (source / "LICENSE.md").write_text(LICENSE)
    folder = convert(source)
    assert (folder / "LICENSE.md").read_text() == LICENSE
    notice = (folder / "NOTICE").read_text()
    assert notice.startswith(STABILITY_NOTICE) and "Changed by `taae convert`" in notice
    card = ModelCard.load(folder / "README.md")
    header = (card.data.license, card.data.license_name, card.data.license_link)
    assert header == ("other", "stabilityai-ai-community", "LICENSE.md")
    for words in ("original licence: Stability AI Community License", "Powered by Stability AI", "(NOTICE)"):
        assert words in card.text


def test_a_notice_that_came_along_stays(source):
    (source / "LICENSE.md").write_text(LICENSE)
    (source / "Notice.txt").write_text(f"{STABILITY_NOTICE}\nand somebody else's\n")
    folder = convert(source)
    assert not (folder / "NOTICE").exists()
    notice = (folder / "Notice.txt").read_text()
    assert "and somebody else's" in notice and "Changed by `taae convert`" in notice


def test_another_licence_is_kept_as_its_card_has_it(source):
    (source / "LICENSE").write_text("Permission is hereby granted\n")
    (source / "README.md").write_text("---\nlicense: mit\nlanguage: nl\n---\n# Mine\n")
    card = ModelCard.load(convert(source) / "README.md")
    assert card.data.license == "mit" and "original licence: mit" in card.text
    assert "Stability AI" not in card.text.replace("Stability AI Community", "")


def test_without_a_licence_it_says_so_and_is_not_published(source):
    (source / "README.md").write_text("---\n: [no header\n---\n")
    folder = convert(source)
    assert "The licence of the weights is not known" in (folder / "README.md").read_text()
    with pytest.raises(TaaeInputError, match=r"a LICENSE file .* is missing.*|names no license"):
        inspect(folder)


def test_says_what_was_converted(source):
    folder = convert(source)
    checksum = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    text = (folder / "README.md").read_text()
    assert "The weights of `stable-codec`" in text and checksum in text
    assert json.loads((folder / "conversion.json").read_text())["source"]["sha256"] == checksum
    assert "has not been evaluated yet" in text


def test_once_evaluated_it_can_be_published(source, tmp_path):
    (source / "LICENSE.md").write_text(LICENSE)
    folder = convert(source)
    with pytest.raises(TaaeInputError, match=r"results.json is missing"):
        inspect(folder)
    soundfile.write(tmp_path / "speech.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    command = ["evaluate", str(tmp_path / "speech.wav"), "--model", str(folder), "-o", str(folder / "results")]
    options = ["--metrics", "si_sdr", "--workers", "1", "--samples", "0", "--no-speed", "--bottleneck", "native"]
    assert cli.main([*command, *options]) == 0
    model = TaaeModel.from_pretrained(folder)
    (folder / "README.md").write_text(conversion_card(folder, model))
    assert "under stabilityai-ai-community" in inspect(folder).summary

    results = json.loads((folder / "results" / "results.json").read_text())
    results["systems"][0]["model_identity"] = "0" * 16
    (folder / "results" / "results.json").write_text(json.dumps(results))
    assert "has not been evaluated yet" in conversion_card(folder, model)
