"""`taae tokenize`: from a corpus of recorded speech to a data set of tokens."""

import argparse
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import DatasetCard, DatasetCardData
from tqdm import tqdm

from .. import __version__
from ..codec import Codec, chosen_bottleneck, default_model, load_codec
from ..data.sources import Corpus
from ..errors import TaaeInputError
from ..evaluation.codecs import model_name
from ..files import as_json
from ..taae_file import format_bottleneck, parse_bottleneck
from ..tokenize.encoder import OUR_COLUMNS, CorpusEncoder, Encoding, Part
from ..tokenize.folder import CARD, REJECTS, Contents, TokenFolder
from ..tokenize.ray_workers import RayWorkers, Weights

FORMAT = "taae tokens, version 1"
REPORT = "report.json"
CARD_TEMPLATE = Path(__file__).parent.parent / "tokenize" / "card.md"
# Threads that read audio where nobody says how many, by type of device: beside a GPU, one is not enough.
READERS = {"cpu": 1}
DEFAULT_READERS = 8
# Rows, as the Hub names them.
HUB_SIZES = {"n<1K": 1e3, "1K<n<10K": 1e4, "10K<n<100K": 1e5, "100K<n<1M": 1e6, "1M<n<10M": 1e7, "10M<n<100M": 1e8}


def run(args: argparse.Namespace) -> int:
    """Tokenises as the arguments say and returns the exit status.

    Raises:
        TaaeInputError: if the model, a source, the folder or an option cannot be used, or no row could be tokenised.
    """
    if args.workers is not None and args.ray is None:
        raise TaaeInputError("--workers: goes with --ray; add --ray local for workers on this machine")
    check_output(args.sources, args.output)
    corpus = Corpus(args.sources, args.audio_column, args.id_column, args.split, args.subset)
    name = args.model or default_model()
    is_on_hub = not os.path.isdir(name)
    # Workers may run in another folder.
    name = name if is_on_hub else os.path.abspath(name)
    with RayWorkers(args.ray, args.workers, args.device) if args.ray else nullcontext() as cluster:
        codec = load_codec(name, "cpu" if cluster else args.device, args.loudness)
        device = cluster.device if cluster else codec.model.device.type
        bottleneck = chosen_bottleneck(codec, args.bottleneck) or codec.model.config.bottleneck
        readers = args.readers or READERS.get(device, DEFAULT_READERS)
        encoding = Encoding(bottleneck, args.dtype, args.min_seconds, readers)
        plan = make_plan(args, codec, corpus, encoding, device)
        with TokenFolder(Path(args.output), plan, len(corpus)) as folder:
            if folder.complete:
                if args.license is not None:
                    folder.write(folder.path / CARD, relicensed(folder.path / CARD, args.license))
                print(f"{args.output}: is complete, nothing is left to do")
                return 0
            units = folder.missing()
            if cluster:
                speed = Speed(device, cluster.workers)
                parts = cluster.parts(corpus, encoding, Weights(name, codec.identity, args.loudness), units)
            else:
                speed = Speed(device, 1, torch.get_num_threads() if device == "cpu" else 1)
                parts = CorpusEncoder(corpus, encoding, codec).parts(units)
            for part in speed.measured(parts, len(corpus), done=len(corpus) - len(units)):
                folder.add(part)
            contents = folder.assemble(plan["split"], args.shard_hours)
            manifest = make_manifest(plan, codec, name if is_on_hub else model_name(name), corpus, contents)
            report = speed.report(args.price_per_hour)
            folder.write(folder.path / REPORT, as_json(report))
            folder.finish(card(folder.path.resolve().name, manifest, args.license), manifest)
    print(*summary(args.output, manifest, report), sep="\n")
    return 0


def check_output(sources: list[str], output: str) -> None:
    """Refuses an output folder that the source would find its own tokens in."""
    for source in sources:
        if os.path.isdir(source) and Path(os.path.abspath(output)).is_relative_to(os.path.abspath(source)):
            raise TaaeInputError(f"-o {output}: is in {source}, which is read; choose a folder outside of it")


def make_plan(args: argparse.Namespace, codec: Codec, corpus: Corpus, encoding: Encoding, device: str) -> dict:
    """All that the shards depend on, in words for people: what must not change where a run goes on."""
    return {
        "model": codec.identity,
        "bottleneck": format_bottleneck(encoding.bottleneck),
        "loudness": codec.extractor.target_loudness,
        "dtype": encoding.dtype,
        "device": device,
        "source": [f"{source['fingerprint']}-{source['units']}" for source in corpus.sources],
        "split": args.split or "train",
        "subset": args.subset,
        "audio column": args.audio_column,
        "id column": args.id_column,
        "minimum of seconds": encoding.shortest,
        "number of hours in a shard": args.shard_hours,
    }


def make_manifest(plan: dict, codec: Codec, name: str, corpus: Corpus, contents: Contents) -> dict:
    """What the corpus is, of what and how it was made, and what is in each of its files."""
    config, quantizer = codec.model.config, codec.model.bottleneck(parse_bottleneck(plan["bottleneck"]))
    return {
        "format": FORMAT,
        "versions": {"modeling_taae": __version__, "torch": torch.__version__},
        "model": {
            "name": name,
            **codec.token_source(parse_bottleneck(plan["bottleneck"])).to_json(),
            "sampling_rate": config.sampling_rate,
            "hop_length": config.hop_length,
            "frame_rate": config.frame_rate,
        },
        "bottleneck": {
            "name": plan["bottleneck"],
            "vocabulary_sizes": list(quantizer.codebook_sizes),
            "bit_rate": round(quantizer.bits_per_frame * config.frame_rate, 1),
        },
        "sources": corpus.sources,
        "plan": plan,
        "split": plan["split"],
        "columns": contents.schema.names,
        "rows": contents.total("rows"),
        "frames": contents.total("frames"),
        "seconds": contents.total("seconds"),
        "fingerprint": contents.fingerprint,
        "shards": contents.shards,
        "rejected": contents.reasons,
    }


def card(name: str, manifest: dict, license: str | None) -> str:
    """The data set's card, of its manifest and the licence of the recordings."""
    plan, sizes = manifest["plan"], manifest["bottleneck"]["vocabulary_sizes"]
    data_files = {"split": manifest["split"], "path": f"data/{manifest['split']}-*-{manifest['fingerprint']}.parquet"}
    content = DatasetCard.from_template(
        DatasetCardData(
            license=license,
            pretty_name=name,
            tags=["audio", "speech", "speech-tokens", "taae"],
            size_categories=[next((name for name, limit in HUB_SIZES.items() if manifest["rows"] < limit), "n>1B")],
            configs=[{"config_name": "default", "data_files": [data_files]}],
        ),
        template_path=str(CARD_TEMPLATE),
        name=name,
        manifest=manifest,
        own_columns=[name for name in manifest["columns"] if name not in OUR_COLUMNS],
        vocabulary=" + ".join(f"{size:,}" for size in sizes),
        bottleneck=json.dumps(parse_bottleneck(plan["bottleneck"])),
        loudness="left at their own level" if plan["loudness"] is None else f"brought to {plan['loudness']:g} LUFS",
        device={"cpu": "a CPU", "cuda": "a GPU"}.get(plan["device"], plan["device"]),
    )
    return str(content).rstrip() + "\n"


def relicensed(card: Path, license: str) -> bytes:
    """A card, whatever was made of it since, with another licence in its header."""
    content = DatasetCard.load(card)
    content.data.license = license
    return str(content).encode()


def summary(output: str, manifest: dict, report: dict) -> Iterator[str]:
    """What was done and how fast, in a few lines."""
    rows, shards, hours = manifest["rows"], len(manifest["shards"]), manifest["seconds"] / 3600
    yield f"{output}: {rows:,} rows, {hours:,.2f} hours of speech, {shards:,} shard{'s' if shards > 1 else ''}"
    if manifest["rejected"]:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in manifest["rejected"].items())
        yield f"rejected: {reasons}; {Path(output) / REJECTS} tells more"
    if "speed" in report:
        unit, million = report["unit"], report["million_hours"]
        yield (
            f"speed: {report['speed']:,.1f} seconds of audio a second, {report['speed_per_unit']:,.1f} per {unit} once "
            f"it is at work; the model was busy for {report['model_busy_share']:.0%} of the time"
        )
        cost = "" if million["cost"] is None else f", and cost {million['cost']:,.2f}"
        yield f"a million hours would take {million['unit_hours']:,.0f} hours of a {unit}{cost}"


@dataclass
class Speed:
    """How fast units became parts in this run.

    Args:
        device: what the model ran on: cpu, cuda, ...
        workers: how many models there were.
        cores: that each of them had to itself, on CPUs.
        seconds: of audio.
        elapsed: from start to end, in seconds.
        worked: by all workers together, without loading the model.
        waited: of these, for audio that was being read.
    """

    device: str
    workers: int
    cores: int = 1
    seconds: float = 0.0
    elapsed: float = 0.0
    worked: float = 0.0
    waited: float = 0.0

    def measured(self, parts: Iterable[Part], units: int, done: int) -> Iterator[Part]:
        """Passes the parts on, and shows how it goes; `done` of the units were so before."""
        start = time.perf_counter()
        with tqdm(desc="Tokenising", total=units, initial=done, unit="unit", disable=None) as progress:
            for part in parts:
                yield part
                self.elapsed = time.perf_counter() - start
                for name in ("seconds", "worked", "waited"):
                    setattr(self, name, getattr(self, name) + getattr(part, name))
                rate = self.seconds / self.elapsed
                progress.set_postfix_str(f"{self.seconds / 3600:.2f} h of audio, {rate:.0f} s/s", refresh=False)
                progress.update()

    def report(self, price_per_hour: float | None) -> dict:
        """Figures for who plans a larger run: of no more than the machine, if nothing was left to be encoded.

        Args:
            price_per_hour: of one unit, which is a GPU or a core.

        Returns:
            `speed` in seconds of audio per second, start and loading included; `speed_per_unit` without them;
            `model_speed_per_unit`, what that would be did the model never wait for audio; `model_busy_share`, how close
            to that it came.
        """
        machine = {
            "device": self.device,
            "workers": self.workers,
            "unit": "core" if self.device == "cpu" else "GPU",
            "units": self.workers * self.cores,
        }
        if not self.seconds:
            return machine
        speed_per_unit = self.seconds / self.worked / self.cores
        hours = 1e6 / speed_per_unit
        return machine | {
            "audio_seconds": round(self.seconds, 3),
            "elapsed_seconds": round(self.elapsed, 3),
            "speed": round(self.seconds / self.elapsed, 2),
            "speed_per_unit": round(speed_per_unit, 2),
            "model_speed_per_unit": round(self.seconds / (self.worked - self.waited) / self.cores, 2),
            "model_busy_share": round(1 - self.waited / self.worked, 4),
            "million_hours": {
                "unit_hours": round(hours, 1),
                "cost": None if price_per_hour is None else round(hours * price_per_hour, 2),
            },
        }
