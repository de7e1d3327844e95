"""Checks that a folder can be published: it loads back, and its card agrees with its results.

`inspect` runs before anything is sent. A model is loaded with the code in its folder, as by someone without this
package.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import TaaeInputError, one_line
from ..evaluation.report import metric_heading, quality_table
from ..evaluation.results import Results
from ..taae_file import model_identity
from .pickles import SUFFIXES as PICKLED_SUFFIXES
from .pickles import is_pickled

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from ..modeling_taae import TaaeModel

# Not uploaded: hidden files, caches, and an evaluation's per-utterance rows and listening page, which contain other
# people's recordings.
LEFT_OUT = (".*", "*/.*", "__pycache__/*", "*/__pycache__/*", "results/*rows.jsonl", "results/*report.html")
# Kinds of files that may be published; the push is rejected if there are others.
TEXTS = {"license", "licence", "notice", "copying", "citation", "readme"}
DOCUMENTS = {*".md .txt .cff .csv .json .jsonl .yaml .yml .png .jpg .jpeg .svg .webp".split()}
SOUNDS = {*".flac .ogg .opus .wav .mp3 .m4a .taae".split()}
PROGRAMS = {*".py .html .js .mjs .css .ico .toml .wasm .gz .webmanifest .map .woff2 .sh .ipynb".split()}
BELONGING = {
    "model": {*DOCUMENTS, *SOUNDS, ".py", ".safetensors", ".onnx", ".data", ".pt2", ".html"},
    "dataset": {*DOCUMENTS, ".parquet"},
    "space": {*DOCUMENTS, *SOUNDS, *PROGRAMS, ".onnx", ".safetensors", ".data"},
}
SECRET = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----|\bhf_[A-Za-z0-9]{30,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_\w{36}"
)
LARGEST_TEXT = 2**20  # largest file that is searched for secrets, in bytes
# Only words in capitals, because "todo" is a Spanish and Portuguese word. `cards.PROJECT_URL` may be a placeholder.
PLACEHOLDER = re.compile(
    r"\b(?:TODO|FIXME|TBD|XXX)\b|(?i:\[More Information Needed\])|\{\{|\{%|\bhttps?://[\w.-]+\.invalid\b"
)
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # in one file, or in shards
CARD, RESULTS, MANIFEST = "README.md", "results/results.json", "manifest.json"
PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Publication:
    """A folder that may be published."""

    folder: Path
    repo_type: str  # model, dataset or space, as in huggingface_hub
    summary: str  # a description for people
    files: dict[str, int]  # sizes in bytes, by path
    sdk: str | None = None  # the SDK of a Space
    with_package: bool = False  # whether this package is sent too, for a Space whose program imports it


def inspect(folder: str | Path) -> Publication:
    """Checks a folder with a model, with tokens of `taae tokenize`, or with a Space.

    Raises:
        TaaeInputError: if it is none of these or has problems; the message lists all problems.
    """
    folder = Path(folder)
    files = list_files(folder)
    repo_type = recognize(folder)
    problems = [*find_strangers(folder, files, repo_type)]
    problems += [f"{name} is pickled, store it as safetensors" for name in files if is_pickled(folder / name)]
    card, card_problems = read_card(folder)
    problems += card_problems
    summary, further_problems = CHECKS[repo_type](folder, card)
    problems += further_problems
    if problems:
        raise TaaeInputError(f"{folder}: cannot be published as it is: {'; '.join(problems)}")
    if repo_type != "space":
        return Publication(folder, repo_type, summary, files)
    programs = (read_text(folder / name) for name in files if name.endswith(".py"))
    with_package = card.data.sdk != "static" and any(
        re.search(rf"^\s*(?:from|import) {PACKAGE.name}\b", text, re.MULTILINE) for text in programs
    )
    package = {f"{PACKAGE.name}/{name}": size for name, size in list_files(PACKAGE).items()} if with_package else {}
    return Publication(folder, repo_type, summary, files | package, card.data.sdk, with_package)


def list_files(folder: Path) -> dict[str, int]:
    """Returns the sizes in bytes of the files that would be sent, by their path in the folder.

    Raises:
        TaaeInputError: if there is no such folder, or it is empty.
    """
    from huggingface_hub.utils import filter_repo_objects

    if not folder.is_dir():
        raise TaaeInputError(f"{folder}: is no folder; expected one with a model, with tokens or with a Space")
    paths = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path: (folder / path).stat().st_size for path in filter_repo_objects(paths, ignore_patterns=[*LEFT_OUT])}
    if not files:
        raise TaaeInputError(f"{folder}: is empty; expected a model, tokens or a Space")
    return files


def find_strangers(folder: Path, files: Iterable[str], repo_type: str) -> Iterator[str]:
    """Yields problems with files that do not belong to a model, to tokens or to a Space.

    Args:
        folder: the folder.
        files: paths in the folder of the files that would be sent.
        repo_type: the kind of the folder's content, as in huggingface_hub.
    """
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.is_file():
            yield f"{path.relative_to(folder)} is a link to {path.resolve()}, which would not be sent; put a copy there"
    inside = folder.resolve()
    for name in files:
        path = folder / name
        if not path.resolve().is_relative_to(inside):
            yield f"{name} is a link to {path.resolve()}, outside the folder; put a copy in its place, or remove it"
        elif contains_secret(path):
            yield f"{name} contains a private key or an access token; remove it, and revoke it if others have seen it"
        elif not belongs(path, repo_type):
            yield f"{name} is no file of a {repo_type}; move it out of the folder"


def belongs(path: Path, repo_type: str) -> bool:
    """Returns whether a file is of a kind that may be published, or a pickle, which is rejected separately."""
    named = path.stem.lower() in TEXTS or re.match(r"licen[cs]e", path.name.lower()) is not None
    return named or path.suffix.lower() in BELONGING[repo_type] | PICKLED_SUFFIXES


def contains_secret(path: Path) -> bool:
    """Returns whether a small file contains a private key or an access token."""
    return path.stat().st_size <= LARGEST_TEXT and SECRET.search(path.read_bytes()) is not None


def recognize(folder: Path) -> str:
    """Returns the kind of a folder's content, as in huggingface_hub: model, dataset (tokens) or space.

    Raises:
        TaaeInputError: if it is none of these.
    """
    if (folder / "config.json").is_file():
        return "model"
    if (folder / MANIFEST).is_file():
        return "dataset"
    if re.search(r"^sdk:", read_text(folder / CARD), re.MULTILINE):
        return "space"
    raise TaaeInputError(
        f"{folder}: holds nothing to publish; expected a model (config.json), tokens of `taae tokenize` "
        f"({MANIFEST}) or a Space ({CARD} with sdk: in its header)"
    )


def read_text(path: Path) -> str:
    """Returns a text file's content; empty if there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def read_card(folder: Path) -> tuple["ModelCard", list[str]]:
    """Returns the card and its problems: no header, no licence, gaps."""
    from huggingface_hub import ModelCard

    text = read_text(folder / CARD)
    if not text:
        return ModelCard(""), [f"{CARD} is missing"]
    try:
        card = ModelCard(text)
    # The header is no mapping or no YAML.
    except Exception as error:
        return ModelCard(""), [f"the header of {CARD} cannot be read ({one_line(error)})"]
    problems = []
    if (gap := PLACEHOLDER.search(text)) is not None:
        line = text.count("\n", 0, gap.start()) + 1
        what, cure = "a gap", ""
        if ".invalid" in gap.group():
            what = "the placeholder of the project's address"
            cure = ", write the address there, or set PROJECT_URL in modeling_taae/hub/cards.py and run `make card`"
        problems.append(f"{CARD} has {what} in line {line} ({gap.group()}){cure}")
    if not card.data.get("license"):
        problems.append(f"{CARD} names no license in its header, such as the line license: cc-by-4.0")
    elif card.data.license == "other" and not (card.data.get("license_name") and card.data.get("license_link")):
        problems.append(f"{CARD} says license: other, which needs license_name and license_link beside it")
    return card, problems


def check_model(folder: Path, card: "ModelCard") -> tuple[str, list[str]]:
    """Returns a model's description, and its problems with code, weights, licence or results."""
    problems = [] if [*folder.glob("LICEN[CS]E*")] else ["a LICENSE file with the licence of the weights is missing"]
    if all((folder / name).is_file() for name in WEIGHTS):
        problems.append(f"it holds {WEIGHTS[0]} and shards, of which one would be loaded, remove the other")
    try:
        model = load_back(folder)
    # Damaged files make their readers raise errors of many types.
    except Exception as error:
        return "", [*problems, f"it does not load back ({one_line(error)})"]
    problems += check_results(folder, card, model_identity(model))
    license_name = card.data.get("license_name") or card.data.get("license")
    return f"a model of {model.num_parameters():,} parameters, under {license_name}", problems


def load_back(folder: Path) -> "TaaeModel":
    """Loads a model as someone without this package does, and decodes noise with it.

    Raises:
        TaaeInputError: if weights are missing, left over or of another shape, or the decoded audio is not finite.
    """
    import torch
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    from ..codec import quiet_transformers

    def loaded(file: str, auto_class: str, **options):
        reference = json.loads((folder / file).read_text(encoding="utf-8"))["auto_map"][auto_class]
        return get_class_from_dynamic_module(reference, str(folder)).from_pretrained(folder, **options)

    with quiet_transformers():
        model, loading = loaded("config.json", "AutoModel", output_loading_info=True)
    if model.config.model_type != "taae":
        raise TaaeInputError(f"it is a model of the type {model.config.model_type}, not taae")
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading[what]:
            raise TaaeInputError(f"its weights have {what.replace('_', ' ')}, such as {min(loading[what])}")
    extractor = loaded("preprocessor_config.json", "AutoFeatureExtractor")
    noise = torch.randn(extractor.sampling_rate // 2, generator=torch.Generator().manual_seed(0))
    inputs = extractor(0.1 * noise.numpy(), sampling_rate=extractor.sampling_rate, return_tensors="pt")
    with torch.inference_mode():
        audio = model(**inputs).audio_values
    if not audio.isfinite().all():
        raise TaaeInputError("what it decodes is not finite")
    return model


def check_results(folder: Path, card: "ModelCard", identity: str) -> list[str]:
    """Returns problems with a model's evaluation: no results, other weights, or figures that differ from the card."""
    path = folder / RESULTS
    try:
        results = Results.read(path)
    except TaaeInputError:
        return [f"{RESULTS} is missing or damaged, run `taae evaluate … --model {folder} -o {path.parent}`"]
    ours = [system for system in results.systems if system.kind == "TAAE"]
    if results.model_identities != {identity}:
        return [f"{RESULTS} is of other weights than these ({identity}), evaluate them"]
    shown = [name for name, facts in results.metrics.items() if metric_heading(facts) in card.text]
    if not shown or quality_table(results, shown) not in card.text:
        return [f"{CARD} does not show the table that follows from {RESULTS}, write it with hub_cards/make_card.py"]
    missing = [name for name in shown if any(system.metrics[name].mean is None for system in ours)]
    known = {mean.mean for system in ours for mean in system.metrics.values()}
    wrong = [result.metric_type for result in card.data.eval_results or () if result.metric_value not in known]
    return [f"{RESULTS} has no figure for {name}" for name in missing] + [
        f"the header of {CARD} has another figure for {name} than {RESULTS}" for name in wrong
    ]


def check_tokens(folder: Path, card: "ModelCard") -> tuple[str, list[str]]:
    """Returns a data set's description, and its problems: missing, changed and unknown shards."""
    from ..tokenize import read_manifest
    from ..tokenize.verification import problems_of

    try:
        manifest, reason = read_manifest(folder), "it is empty"
    except TaaeInputError as error:
        manifest, reason = None, one_line(error)
    if manifest is None:
        return "", [f"{MANIFEST} is not what `taae tokenize` writes ({reason})"]
    problems, rows = problems_of(folder, manifest), f"{manifest.rows:,} recordings"
    if rows not in card.text:
        problems.append(f"{CARD} does not say how many recordings there are, {manifest.rows:,}")
    return f"tokens of {rows}, {manifest.seconds / 3600:,.2f} hours, by {manifest.model.name}", problems


def check_space(folder: Path, card: "ModelCard") -> tuple[str, list[str]]:
    """Returns a Space's description, and a problem if its program is missing."""
    sdk = card.data.get("sdk")
    program = card.data.get("app_file") or {"gradio": "app.py", "static": "index.html"}.get(sdk)
    missing = program is not None and not (folder / program).is_file()
    return f"a Space of the kind {sdk}", [f"{program}, which {CARD} names, is missing"] if missing else []


CHECKS: dict[str, Callable[[Path, "ModelCard"], tuple[str, list[str]]]] = {
    "model": check_model,
    "dataset": check_tokens,
    "space": check_space,
}
