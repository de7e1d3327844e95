"""The card of a data set of tokens."""

import json
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

from ..taae_file import parse_bottleneck
from .manifest import Manifest
from .parts import OUR_COLUMNS

TEMPLATE = Path(__file__).with_name("card.md")
# The Hub's categories of the number of rows.
HUB_SIZES = {"n<1K": 1e3, "1K<n<10K": 1e4, "10K<n<100K": 1e5, "100K<n<1M": 1e6, "1M<n<10M": 1e7, "10M<n<100M": 1e8}
DEVICES = {"cpu": "a CPU", "cuda": "a GPU"}


def token_card(name: str, manifest: Manifest, license: str | None) -> str:
    """Returns the card of a token folder.

    Args:
        name: the data set's name.
        manifest: the folder's manifest.
        license: the licence of the recordings, as an identifier of the Hub.
    """
    plan = manifest.plan
    data_files = {"split": plan.split, "path": f"data/{plan.split}-*-{manifest.fingerprint}.parquet"}
    content = DatasetCard.from_template(
        DatasetCardData(
            license=license,
            pretty_name=name,
            tags=["audio", "speech", "speech-tokens", "taae"],
            size_categories=[next((size for size, limit in HUB_SIZES.items() if manifest.rows < limit), "n>1B")],
            configs=[{"config_name": "default", "data_files": [data_files]}],
        ),
        template_path=str(TEMPLATE),
        name=name,
        manifest=manifest,
        own_columns=[in_table(column) for column in manifest.columns if column not in OUR_COLUMNS],
        vocabulary=" + ".join(f"{size:,}" for size in manifest.bottleneck.vocabulary_sizes),
        bottleneck=json.dumps(parse_bottleneck(plan.bottleneck)),
        loudness="left at their own level" if plan.loudness is None else f"normalised to {plan.loudness:g} LUFS",
        device=DEVICES.get(plan.device, plan.device),
    )
    return str(content).rstrip() + "\n"


def in_table(name: str) -> str:
    """Escapes a column's name for a cell of a Markdown table."""
    return "".join(character if character.isprintable() else " " for character in name).replace("|", "\\|")


def relicensed(card: Path, license: str) -> bytes:
    """Returns a card, with the changes that users have made, with another licence in its header."""
    content = DatasetCard.load(card)
    content.data.license = license
    return str(content).encode()
