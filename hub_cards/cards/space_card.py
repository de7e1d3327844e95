"""The card of the Space, which `make_card.py` writes beside `app.py`, with its limits and its version of Gradio."""

import re
import runpy
from pathlib import Path

from huggingface_hub import SpaceCardData

from modeling_taae.hub.cards import write_card

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = Path(__file__).with_name("templates") / "space_card.md"
TITLE = "Speech in 400 bits per second"


def space_files(folder: Path) -> dict[Path, str]:
    """Returns the files to write for the Space's folder, by path."""
    card = write_card(
        TEMPLATE,
        SpaceCardData(
            title=TITLE,
            emoji="🗣️",
            colorFrom="indigo",
            colorTo="pink",
            sdk="gradio",
            sdk_version=re.search(r"^gradio==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group(1),
            python_version="3.12",
            app_file="app.py",
            license="apache-2.0",
            short_description="Hear your voice after a TAAE speech codec",
            tags=["audio", "speech", "audio-codec", "taae"],
        ),
        title=TITLE,
        limits=runpy.run_path(str(folder / "limits.py")),
    )
    return {folder / "README.md": card}
