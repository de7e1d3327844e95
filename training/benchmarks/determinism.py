"""Counts the tokens that change with the way of computing: `training/measure.py determinism MODEL …`.

The reference is float32 on the CPU, in one thread, with SDPA, each utterance by itself. Other ways of computing round
differently, and a token changes where a latent crosses a rounding tie. A second table changes only what is computed
together: padded batches, and `encode_clips`, which `taae encode` and `taae tokenize` use and which should change no
token. A third shows the cost of `encode_clips`. Prints Markdown and writes results/determinism.json in the model's
folder.
"""

import copy
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from modeling_taae import TaaeConfig, TaaeModel, convolution_taae
from modeling_taae.batching import encode_clips
from modeling_taae.codec import Codec, exact_convolutions, load_codec
from modeling_taae.errors import one_line
from modeling_taae.evaluation.report import table
from modeling_taae.evaluation.results import rounded
from training.benchmarks.runner import ROOT, Measurement, clips_of, machine, processor_text

REFERENCE = "float32 on the CPU, one thread, SDPA, each utterance by itself"
BOTTLENECKS = ("1x46656_400bps", "2x15625_700bps", "native")
BATCH_SECONDS = 30
CHUNK_STEPS = 256
# Lengths in seconds at which the cost is measured, number of utterances nearest to each, and rounds, of which the best
# counts.
COST_LENGTHS, COST_UTTERANCES, COST_ROUNDS = (2.5, 6.0, 14.0), 12, 3

Latents = list[Tensor]  # of each utterance, (latent_dim, frames)


class Determinism:
    """A model, and utterances that it encodes in different ways.

    Args:
        codec: model and feature extractor.
        clips: utterances, (samples,) float32 at the model's rate.
    """

    def __init__(self, codec: Codec, clips: list[np.ndarray]):
        self.codec, self.clips = codec, clips

    def settings(self) -> dict[str, Callable[[], Latents]]:
        """Functions that compute latents, by their difference from the reference."""
        settings = {
            "nothing, computed again": self.one_by_one,
            "2 threads": threads(2)(self.one_by_one),
            f"pieces of {CHUNK_STEPS} steps": chunks(CHUNK_STEPS)(self.one_by_one),
            "eager attention": lambda: self.changed(attention="eager").one_by_one(),
            "FlexAttention": lambda: self.changed(attention="flex_attention").one_by_one(),
            "torch.compile": lambda: self.changed(compiled=True).one_by_one(),
            "bfloat16": lambda: self.changed(dtype=torch.bfloat16).one_by_one(),
        }
        if torch.cuda.is_available():
            settings["GPU"] = lambda: self.changed("cuda").one_by_one()
            settings["GPU, bfloat16"] = lambda: self.changed("cuda", torch.bfloat16).one_by_one()
        return settings

    def groupings(self) -> dict[str, tuple[Callable[[], Latents], Callable[[], Latents]]]:
        """Pairs of functions that differ only in the utterances computed together, by what they have in common."""
        half, batches = self.changed(dtype=torch.bfloat16), f"padded batches of {BATCH_SECONDS} s"
        pairs = {
            f"{batches}, float32": (self.batched, self.one_by_one),
            f"{batches}, bfloat16": (half.batched, half.one_by_one),
            "`encode_clips`, float32": (self.shuffled, self.one_go_each),
            "`encode_clips`, float32, 2 threads": (threads(2)(self.shuffled), threads(2)(self.one_go_each)),
            "`encode_clips`, bfloat16": (half.shuffled, half.one_go_each),
        }
        if torch.cuda.is_available():
            for dtype in (torch.float32, torch.bfloat16):
                gpu, name = self.changed("cuda", dtype), f"GPU, {str(dtype).removeprefix('torch.')}"
                pairs[f"{batches}, {name}"] = gpu.batched, gpu.one_by_one
                pairs[f"`encode_clips`, {name}"] = gpu.shuffled, gpu.one_go_each
        return pairs

    def changed(
        self,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        attention: str = "sdpa",
        compiled: bool = False,
    ) -> "Determinism":
        """The same utterances with a changed copy of the model."""
        model = copy.deepcopy(self.codec.model).to(device, dtype)
        model.set_attn_implementation(attention)
        if compiled:
            model.encoder.compile(dynamic=True)
        return Determinism(replace(self.codec, model=model), self.clips)

    def encode(self, clips: list[np.ndarray]) -> Latents:
        """Latents of a padded batch."""
        inputs = self.codec.extractor(clips, sampling_rate=self.codec.extractor.sampling_rate)
        with torch.inference_mode(), exact_convolutions():
            latents = self.codec.model.encode(**inputs.to(self.codec.model.device)).latents.cpu()
        hop_length = self.codec.model.config.hop_length
        return [item[:, : -(-len(clip) // hop_length)] for item, clip in zip(latents, clips, strict=True)]

    def one_by_one(self) -> Latents:
        """Latents, each utterance computed by itself."""
        return [self.encode([clip])[0] for clip in self.clips]

    def batched(self) -> Latents:
        """Latents, computed in padded batches of similar length."""
        latents: dict[int, Tensor] = {}
        for batch in padded_batches(self.clips, BATCH_SECONDS * self.codec.extractor.sampling_rate):
            latents |= zip(batch, self.encode([self.clips[index] for index in batch]), strict=True)
        return [latents[index] for index in range(len(self.clips))]

    def one_go_each(self) -> Latents:
        """Latents of `encode_clips`, one call for each utterance."""
        return [self.in_blocks([index])[index] for index in range(len(self.clips))]

    def shuffled(self) -> Latents:
        """Latents of `encode_clips`, one call for all utterances, shuffled."""
        latents = self.in_blocks(random.Random(0).sample(range(len(self.clips)), len(self.clips)))
        return [latents[index] for index in range(len(self.clips))]

    def in_blocks(self, order: Iterable[int]) -> dict[int, Tensor]:
        """Latents of one call of `encode_clips`, by the utterance's number."""
        latents, computed = {}, []
        hook = self.codec.model.encoder.register_forward_hook(lambda _, __, output: computed.append(output.cpu()))
        for index, encoded in encode_clips(self.codec, ((index, self.clips[index]) for index in order)):
            if computed:
                rows = iter(computed.pop())
            latents[index] = next(rows)[:, : encoded.frames]
        hook.remove()
        return latents

    def compare(self, latents: Latents, reference: Latents) -> dict:
        """Returns the largest difference of latents, and the frames with other tokens, for each bottleneck."""
        changed = {}
        for name in BOTTLENECKS:
            encode = self.codec.model.bottleneck(name).encode
            pairs = zip(latents, reference, strict=True)
            changed[name] = sum(int((encode(a[None]) != encode(b[None])).any(dim=1).sum()) for a, b in pairs)
        apart = max(float((a.float() - b).abs().max()) for a, b in zip(latents, reference, strict=True))
        return {"latents_apart": apart, "frames_changed": changed}

    def cost(self, length: float) -> dict:
        """CPU seconds of one thread per second of speech, for single utterances as in `encode_clips` and for batches.

        Args:
            length: seconds; the utterances nearest to it are encoded.
        """
        rate = self.codec.extractor.sampling_rate
        chosen = sorted(self.clips, key=lambda clip: abs(len(clip) - length * rate))[:COST_UTTERANCES]
        seconds = sum(map(len, chosen)) / rate
        ways = {"single": [[index] for index in range(len(chosen))]}
        for limit in (BATCH_SECONDS // 2, BATCH_SECONDS):
            ways[f"batches of {limit} s"] = padded_batches(chosen, limit * rate)
        spent = dict.fromkeys(ways, float("inf"))
        for _ in range(COST_ROUNDS):
            for name, batches in ways.items():
                start = time.thread_time()
                for batch in batches:
                    self.encode([chosen[index] for index in batch])
                spent[name] = min(spent[name], (time.thread_time() - start) / seconds)
        return {"utterances": len(chosen), "mean_seconds": seconds / len(chosen), "rtf": spent}

    def costs(self) -> list[dict]:
        """The cost at each length, and that of two layers of the published 950M model at the middle one."""
        two_layers = TaaeModel(TaaeConfig(encoder_depths=(1, 1), decoder_depths=(0, 0))).eval()
        large = Determinism(replace(self.codec, model=two_layers), self.clips)
        rows = [{"network": "this model", **self.cost(length)} for length in COST_LENGTHS]
        return [*rows, {"network": "two layers of the 950M", **large.cost(COST_LENGTHS[1])}]


def padded_batches(clips: list[np.ndarray], limit: int) -> list[list[int]]:
    """Indices of clips in groups of similar length, longest first, of at most `limit` samples with padding."""
    batches: list[list[int]] = []
    for index in sorted(range(len(clips)), key=lambda index: -len(clips[index])):
        if not batches or (len(batches[-1]) + 1) * len(clips[batches[-1][0]]) > limit:
            batches.append([])
        batches[-1].append(index)
    return batches


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Computes in a number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def chunks(steps: int) -> Iterator[None]:
    """Processes longer audio layer by layer, in chunks of so many steps."""
    before, convolution_taae.CHUNK_STEPS = convolution_taae.CHUNK_STEPS, steps
    try:
        yield
    finally:
        convolution_taae.CHUNK_STEPS = before


def measure(determinism: Determinism) -> dict:
    """Measures everything. For a setting that fails on this machine, the result is the reason."""
    settings, groupings = determinism.settings(), determinism.groupings()
    with tqdm(total=1 + len(settings) + len(groupings), unit="setting", disable=None) as progress:
        reference = determinism.one_by_one()
        progress.update()
        rows = []
        for name, compute in settings.items():
            try:
                rows.append({"setting": name, **determinism.compare(compute(), reference)})
            except Exception as error:  # compilers and kernels raise whatever they like
                rows.append({"setting": name, "skipped": one_line(error)})
            progress.update()
        pairs = []
        for name, (compute, other) in groupings.items():
            pairs.append({"setting": name, **determinism.compare(compute(), other())})
            progress.update()
    frames = sum(item.shape[1] for item in reference)
    return {
        "reference": REFERENCE,
        "frames": frames,
        "settings": rows,
        "groupings": pairs,
        "cost": determinism.costs(),
    }


def markdown(results: dict) -> str:
    """The tables and their descriptions."""
    heading = ["latents apart by up to", *(f"`{name}`" for name in BOTTLENECKS)]
    told = results["environment"]
    versions = ", ".join(f"{name} {told['packages'][name]}" for name in ("torch", "transformers"))
    costs = [
        [
            f"{row['network']}, {row['utterances']} utterances of {row['mean_seconds']:.1f} s",
            *(f"{rtf:.4f}" for rtf in row["rtf"].values()),
        ]
        for row in results["cost"]
    ]
    return "\n\n".join(
        [
            f"Frames of {results['frames']:,} in which a token changed: {results['model']} ({results['identity']}), "
            f"{results['utterances']} utterances ({results['seconds'] / 60:.1f} minutes) of {results['data']}. "
            f"The reference is {results['reference']}.",
            table(["unlike the reference", *heading], [cells(row, results["frames"]) for row in results["settings"]]),
            "What is computed together, against each utterance by itself in the same dtype and number of threads; "
            "`encode_clips` gets all utterances shuffled in one go, against a go for each:",
            table(["computed in", *heading], [cells(row, results["frames"]) for row in results["groupings"]]),
            "CPU seconds of one thread per second of speech, each utterance by itself as `encode_clips` has it on a "
            "CPU, and in padded batches of similar length:",
            table(["encoding", *results["cost"][0]["rtf"]], costs),
            f"{processor_text(told)}, {told['cores']} cores, {told['accelerator'] or 'no GPU'}; {versions}, "
            f"Python {told['python']}.",
        ]
    )


def cells(row: dict, frames: int) -> list[str]:
    """The cells of a row of the table."""
    if "skipped" in row:
        return [row["setting"], "not measured", *["not measured"] * len(BOTTLENECKS)]
    changed = [f"{count:,} ({count / frames:.2%})" if count else "0" for count in row["frames_changed"].values()]
    return [row["setting"], f"{row['latents_apart']:.1e}" if row["latents_apart"] else "0", *changed]


def measure_folder(folder: Path, sources: list[str], limit: int | None) -> dict:
    """Returns the content of determinism.json.

    Raises:
        TaaeInputError: if there is no such model, or no readable speech.
    """
    with threads(1):
        codec = load_codec(str(folder), device="cpu")
        clips = list(clips_of(codec, sources, limit))
        results = {
            "model": folder.resolve().name,
            "identity": codec.identity,
            "data": ", ".join(Path(source).name for source in sources),
            "utterances": len(clips),
            "seconds": sum(map(len, clips)) / codec.model.config.sampling_rate,
            "environment": machine(),
            **measure(Determinism(codec, clips)),
        }
    return rounded(results)


MEASUREMENT = Measurement(
    "determinism",
    "Counts the tokens that change with the way of computing.",
    "determinism.json",
    lambda options: measure_folder(options.folder, options.speech, options.limit),
    markdown,
    ROOT / "docs" / "tokenize_a_corpus.md",
    "determinism",
)
main = MEASUREMENT.run
