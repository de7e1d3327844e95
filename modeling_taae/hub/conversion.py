"""Records the origin and the licence of converted weights, and writes their card.

`taae convert` writes `conversion.json` into the model's folder. The card is made from that file, the weights and, if
there are any, the results of `taae evaluate`, so that it can be made again.
"""

import json
import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..evaluation import report
from ..evaluation.results import Results
from ..files import as_json, sha256, write_bytes
from ..modeling_taae import TaaeModel
from ..taae_file import model_identity
from .cards import TAGS, TEMPLATES, model_facts, write_card

CONVERSION = "conversion.json"
TEMPLATE = TEMPLATES / "converted_model_card.md"
LICENSE_FILE = re.compile(r"(licen[cs]e|notice|copying)(\.\w+)?", re.IGNORECASE)
NOTICE = "NOTICE"
LICENSE_FIELDS = ("license", "license_name", "license_link")
# The notice that the licence's section on distribution requires, in its words.
STABILITY_LICENSE = "stabilityai-ai-community"
LICENSE_NAMES = {STABILITY_LICENSE: "Stability AI Community License"}
STABILITY_NOTICE = (
    "This Stability AI Model is licensed under the Stability AI Community License, Copyright © Stability AI Ltd. "
    "All Rights Reserved"
)
CHANGES = (
    "Changed by `taae convert`: tensors renamed, weight normalisation fused, stored in float32. No value was trained."
)


def write_provenance(source: Path, weights: Path, description: Path, destination: Path, model: TaaeModel) -> None:
    """Writes licence, `conversion.json` and card into the folder of a converted model.

    Args:
        source: the converted folder, which contains `weights` and `description`.
        destination: the folder of the converted model.
        model: the converted model.
    """
    license_files = [path for path in sorted(source.iterdir()) if LICENSE_FILE.fullmatch(path.name) and path.is_file()]
    texts = {path.name: path.read_text(encoding="utf-8", errors="replace") for path in license_files}
    license_fields = find_license(source, texts)
    if license_fields.get("license_name") == STABILITY_LICENSE:
        notices = [name for name in texts if name.lower().startswith("notice")]
        notice = notices[0] if notices else NOTICE
        lines = [texts.get(notice, "").rstrip() or STABILITY_NOTICE, CHANGES]
        texts[notice] = "\n\n".join(lines) + "\n"
    for name, text in texts.items():
        write_bytes(destination / name, text.encode())
    from .. import __version__

    conversion = {
        "modeling_taae": __version__,
        "source": {
            "name": source.resolve().name,
            "weights": weights.name,
            "sha256": sha256(weights),
            "description": description.name,
        },
        "license": license_fields,
        "license_files": sorted(texts),
    }
    write_bytes(destination / CONVERSION, as_json(conversion))
    write_bytes(destination / "README.md", conversion_card(destination, model).encode())


def find_license(source: Path, texts: dict[str, str]) -> dict[str, str]:
    """Returns the licence as fields of a card's header, from the source's card or the licence text; empty if unknown.

    Args:
        source: the converted folder.
        texts: the texts of its licence files, by name.
    """
    card = source / "README.md"
    if card.is_file():
        try:
            header = ModelCard(card.read_text(encoding="utf-8")).data.to_dict()
        # Another author's card may be wrong in any way.
        except Exception:
            header = {}
        if header.get("license"):
            return {name: header[name] for name in LICENSE_FIELDS if header.get(name)}
    for name, text in texts.items():
        if re.search(r"stability ai community license", text, re.IGNORECASE):
            return dict(zip(LICENSE_FIELDS, ("other", STABILITY_LICENSE, name), strict=True))
    return {}


def conversion_card(folder: Path, model: TaaeModel) -> str:
    """Returns the card of a converted model.

    Args:
        folder: the model's folder, with `conversion.json` and possibly results.
        model: the model.
    """
    conversion = json.loads((folder / CONVERSION).read_text(encoding="utf-8"))
    fields, identity = conversion["license"], model_identity(model)
    results = results_of(folder, identity)
    license_name = fields.get("license_name") or fields.get("license")
    return write_card(
        TEMPLATE,
        ModelCardData(**fields, library_name="transformers", pipeline_tag="audio-to-audio", tags=list(TAGS)),
        **model_facts(folder.resolve().name, model),
        version=conversion["modeling_taae"],
        source=conversion["source"],
        identity=identity,
        license=LICENSE_NAMES.get(license_name, license_name),
        license_files=" and ".join(f"[{name}]({name})" for name in conversion["license_files"]),
        stability=license_name == STABILITY_LICENSE,
        quality=results and report.quality_table(results),
        setting=results and report.setting(results),
        footnote=results and report.footnote(results),
    )


def results_of(folder: Path, identity: str) -> Results | None:
    """Returns the results in a model's folder; None if there are none for these weights."""
    path = folder / "results" / "results.json"
    results = Results.read(path) if path.is_file() else None
    return results if results is not None and identity in results.model_identities else None
