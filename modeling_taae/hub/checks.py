"""What makes a folder fit to be published: it loads back, and its card says what its results say.

`inspect` looks at a folder before `taae push` sends anything. A model is loaded through the code that lies in the
folder, as someone without this package gets it.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..errors import TaaeInputError, one_line
from ..evaluation.report import metric_heading, quality_table
from ..taae_file import model_identity

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from ..modeling_taae import TaaeModel

# Left behind: hidden files, caches, and of an evaluation its own rows, and its page with the recordings it was made on:
# they are others', and their licences are not in the folder.
LEFT_OUT = (".*", "*/.*", "__pycache__/*", "*/__pycache__/*", "results/*rows.jsonl", "results/*report.html")
# Unpickling a file runs whatever its author put into it, so nobody should be asked to.
PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
# Capitals alone: "todo" is a word of Spanish and Portuguese.
PLACEHOLDER = re.compile(r"\b(?:TODO|FIXME|TBD|XXX)\b|(?i:\[More Information Needed\])|\{\{|\{%")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # in one file, or in shards
CARD, RESULTS, MANIFEST = "README.md", "results/results.json", "manifest.json"


PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Publication:
    """A folder that may be published."""

    folder: Path
    repo_type: str  # as huggingface_hub calls it: model, dataset or space
    summary: str  # what it is, for people
    files: dict[str, int]  # bytes, by path
    sdk: str | None = None  # of a Space
    with_package: bool = False  # whether this package goes along, for a Space whose program imports it


def inspect(folder: str | Path) -> Publication:
    """Checks a folder with a model, with tokens of `taae tokenize`, or with a Space.

    Raises:
        TaaeInputError: if it is none of these, or naming all that stands in the way of publishing it.
    """
    folder = Path(folder)
    files = list_files(folder)
    repo_type = recognize(folder)
    problems = [f"{name} is pickled, store it as safetensors" for name in files if Path(name).suffix in PICKLES]
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
    """Sizes in bytes of the files that would be sent, by their path in the folder.

    Raises:
        TaaeInputError: if there is no such folder, or nothing in it.
    """
    from huggingface_hub.utils import filter_repo_objects

    if not folder.is_dir():
        raise TaaeInputError(f"{folder}: is no folder; expected one with a model, with tokens or with a Space")
    paths = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path: (folder / path).stat().st_size for path in filter_repo_objects(paths, ignore_patterns=[*LEFT_OUT])}
    if not files:
        raise TaaeInputError(f"{folder}: is empty; expected a model, tokens or a Space")
    return files


def recognize(folder: Path) -> str:
    """Whether a folder holds a model, a data set of tokens or a Space, in huggingface_hub's words.

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
    """A text file's content; empty if there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def read_card(folder: Path) -> tuple["ModelCard", list[str]]:
    """The card, and what is wrong with it whatever it is of: no header, no licence, gaps."""
    from huggingface_hub import ModelCard

    text = read_text(folder / CARD)
    if not text:
        return ModelCard(""), [f"{CARD} is missing"]
    try:
        card = ModelCard(text)
    # A header that is no mapping, or no YAML.
    except Exception as error:
        return ModelCard(""), [f"the header of {CARD} cannot be read ({one_line(error)})"]
    problems = []
    if (gap := PLACEHOLDER.search(text)) is not None:
        line = text.count("\n", 0, gap.start()) + 1
        problems.append(f"{CARD} has a gap in line {line} ({gap.group()})")
    if not card.data.get("license"):
        problems.append(f"{CARD} names no license in its header, such as the line license: cc-by-4.0")
    elif card.data.license == "other" and not (card.data.get("license_name") and card.data.get("license_link")):
        problems.append(f"{CARD} says license: other, which needs license_name and license_link beside it")
    return card, problems


def check_model(folder: Path, card: "ModelCard") -> tuple[str, list[str]]:
    """What the model is, and what is missing: its code, weights, licence or results."""
    problems = [] if [*folder.glob("LICEN[CS]E*")] else ["a LICENSE file with the licence of the weights is missing"]
    if all((folder / name).is_file() for name in WEIGHTS):
        problems.append(f"it holds {WEIGHTS[0]} and shards, of which one would be loaded, remove the other")
    try:
        model = load_back(folder)
    # Damaged files raise whatever their reader raises.
    except Exception as error:
        return "", [*problems, f"it does not load back ({one_line(error)})"]
    problems += check_results(folder, card, model_identity(model))
    license_name = card.data.get("license_name") or card.data.get("license")
    return f"a model of {model.num_parameters():,} parameters, under {license_name}", problems


def load_back(folder: Path) -> "TaaeModel":
    """The model as it is loaded where this package is not installed, every weight in its place and audio coming out.

    Raises:
        TaaeInputError: if weights are missing, left over or of another shape, or what they decode is not finite.
    """
    import torch
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    def loaded(file: str, auto_class: str, **options):
        reference = json.loads((folder / file).read_text(encoding="utf-8"))["auto_map"][auto_class]
        return get_class_from_dynamic_module(reference, str(folder)).from_pretrained(folder, **options)

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
    """What stands between a model's card and its evaluation: none, one of other weights, or other figures."""
    path = folder / RESULTS
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [f"{RESULTS} is missing or damaged, run `taae evaluate … --model {folder} -o {path.parent}`"]
    ours = [system for system in results["systems"] if system["kind"] == "TAAE"]
    if {system["model_identity"] for system in ours} != {identity}:
        return [f"{RESULTS} is of other weights than these ({identity}), evaluate them"]
    shown = [name for name, facts in results["metrics"].items() if metric_heading(facts) in card.text]
    if not shown or quality_table(results, shown) not in card.text:
        return [f"{CARD} does not show the table that follows from {RESULTS}, write it with hub_cards/make_card.py"]
    missing = [name for name in shown if any(system["metrics"][name]["mean"] is None for system in ours)]
    known = {value["mean"] for system in ours for value in system["metrics"].values()}
    wrong = [result.metric_type for result in card.data.eval_results or () if result.metric_value not in known]
    return [f"{RESULTS} has no figure for {name}" for name in missing] + [
        f"the header of {CARD} has another figure for {name} than {RESULTS}" for name in wrong
    ]


def check_tokens(folder: Path, card: "ModelCard") -> tuple[str, list[str]]:
    """What the data set of tokens is, and which of its shards are missing, changed or none of its own."""
    try:
        manifest = json.loads(read_text(folder / MANIFEST))
        checksums = {shard["file"]: shard["sha256"] for shard in manifest["shards"]}
        rows, hours, model = manifest["rows"], manifest["seconds"] / 3600, manifest["model"]["name"]
    except (KeyError, TypeError, ValueError) as error:
        return "", [f"{MANIFEST} is not what `taae tokenize` writes ({one_line(error)})"]
    problems = []
    for name in tqdm(checksums, desc="Checking shards", leave=False, disable=None):
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
            continue
        with open(folder / name, "rb") as shard:
            if hashlib.file_digest(shard, "sha256").hexdigest() != checksums[name]:
                problems.append(f"{name} is not what {MANIFEST} says")
    strangers = {path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")} - checksums.keys()
    problems += [f"{MANIFEST} does not know {name}" for name in sorted(strangers) if not name.startswith(".")]
    if f"{rows:,} recordings" not in card.text:
        problems.append(f"{CARD} does not say how many recordings there are, {rows:,}")
    return f"tokens of {rows:,} recordings, {hours:,.2f} hours, by {model}", problems


def check_space(folder: Path, card: "ModelCard") -> tuple[str, list[str]]:
    """What the Space is, and whether its program is there."""
    sdk = card.data.get("sdk")
    program = card.data.get("app_file") or {"gradio": "app.py", "static": "index.html"}.get(sdk)
    missing = program is not None and not (folder / program).is_file()
    return f"a Space of the kind {sdk}", [f"{program}, which {CARD} names, is missing"] if missing else []


CHECKS: dict[str, Callable[[Path, "ModelCard"], tuple[str, list[str]]]] = {
    "model": check_model,
    "dataset": check_tokens,
    "space": check_space,
}
