"""`taae evaluate`: from arguments to results on disk."""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from ..codec import Codec, default_model, load_codec
from ..data.utterances import Utterances
from ..errors import TaaeInputError, one_line
from ..evaluation.codecs import MissingToolError, System, TaaeSystem, make_peer, model_name
from ..evaluation.conditions import Conditions, PacketLoss, Tandem, read_kind
from ..evaluation.html_report import html_report
from ..evaluation.listening_test import check_codecs, write_listening_test
from ..evaluation.metrics import ALL_METRICS, SAMPLING_RATE
from ..evaluation.model_metrics import Judge, Recognizer, SpeakerVerifier
from ..evaluation.report import problem_lines, quality_table, write_results
from ..evaluation.run import check_metrics, evaluate
from ..evaluation.samples import make_samples
from ..evaluation.tables import summarize
from ..files import write_bytes
from ..taae_file import parse_bottleneck

NOISE_RATIOS = [20, 10, 0]  # in dB, where none is asked for
TOLD_PROBLEMS = 5  # on the terminal


def run(args: argparse.Namespace) -> int:
    """Evaluates as the arguments say and returns the exit status.

    Raises:
        TaaeInputError: if the model, the data or an option cannot be used.
    """
    metrics = list(dict.fromkeys(args.metrics or ALL_METRICS))
    check_options(args)
    check_metrics(metrics)
    name = args.model or default_model()
    codec = load_codec(name, args.device)
    peers = available_peers(args.peers, codec.model.device.type)
    if codec.model.config.sampling_rate != SAMPLING_RATE:
        raise TaaeInputError(
            f"{name}: works at {codec.model.config.sampling_rate} Hz, but metrics are defined at {SAMPLING_RATE} Hz; "
            "expected a model at that rate"
        )
    # Clips are normalised once, for the model and its peers alike.
    target_loudness = codec.extractor.target_loudness if args.loudness else None
    codec.extractor.target_loudness = None
    ours = taae_systems(codec, args.bottleneck or [None], model_name(name))
    systems: list[System] = [*ours, *peers]
    systems += [Tandem(system, args.tandem) for system in [*ours, *peers] if args.tandem]
    systems += [PacketLoss(system, share) for system in ours for share in args.packet_loss]
    if args.mushra:
        check_codecs(len(systems))
    utterances = chosen_data(args)
    judges = chosen_judges(args.recognizer, args.speaker_model, codec.model.device.type)
    folder = Path(args.output)
    result = evaluate(utterances, systems, folder, metrics, target_loudness, judges, args.workers, args.speed)
    added = {"noise": args.noise, "reverberation": args.reverb}
    summary = summarize(result, args.data, {what: sources for what, sources in added.items() if sources})
    write_results(folder, summary, result)
    samples = make_samples(utterances, result, args.samples)
    write_bytes(folder / "report.html", html_report(summary, samples).encode())
    if args.mushra:
        write_listening_test(Path(args.mushra), samples)
    print(quality_table(summary, intervals=False), f"\nTo read, see and hear: {folder / 'report.html'}", sep="\n")
    if summary["problems"]:
        told = "".join(f"taae: {problem}\n" for problem in problem_lines(summary, TOLD_PROBLEMS))
        print(f"{told}taae: {folder / 'report.md'} lists what was not scored", file=sys.stderr)
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Refuses, before the work, what would make it end in vain.

    Raises:
        TaaeInputError: if the output is no folder, an option goes with another one, or a package is missing.
    """
    if Path(args.output).exists() and not Path(args.output).is_dir():
        raise TaaeInputError(f"-o {args.output}: is a file; expected a folder for the results")
    if args.snr and not args.noise:
        raise TaaeInputError("--snr: goes with --noise, which says what to mix in")
    if args.samples and find_spec("matplotlib") is None:
        raise TaaeInputError(
            "report.html needs the package matplotlib for its pictures; install it with "
            "`pip install 'modeling_taae[eval]'`, or do without clips with --samples 0"
        )


def chosen_data(args: argparse.Namespace) -> Utterances | Conditions:
    """The utterances, under conditions if the command line names any."""
    utterances = Utterances(
        args.data,
        SAMPLING_RATE,
        args.limit,
        args.split,
        args.subset,
        args.audio_column,
        transcripts=args.transcripts,
        audio_root=args.audio_root,
        channel=args.channel,
    )
    if not (args.noise or args.reverb or args.lengths or args.music):
        return utterances
    noises = read_kind(args.noise, "noise") if args.noise else []
    responses = read_kind(args.reverb, "rir") if args.reverb else []
    return Conditions(utterances, noises, args.snr or NOISE_RATIOS, responses, args.lengths, args.music)


def chosen_judges(recognizer: str | None, speaker_model: str | None, device: str) -> list[Judge]:
    """The networks that the command line names."""
    judges: list[Judge] = []
    if recognizer is not None:
        judges.append(Recognizer(recognizer, device))
    if speaker_model is not None:
        judges.append(SpeakerVerifier(speaker_model, device))
    return judges


def available_peers(names: list[str], device: str) -> list[System]:
    """The peers of these names; one whose tools are not installed is left out with a message."""
    peers = []
    for name in dict.fromkeys(names):
        try:
            peers.append(make_peer(name, device))
        except MissingToolError as error:
            print(f"taae: {one_line(error)}", file=sys.stderr)
    return peers


def taae_systems(codec: Codec, bottlenecks: list[str | None], name: str) -> list[TaaeSystem]:
    """The model with each bottleneck of the command line."""
    try:
        parsed = [None if text is None else parse_bottleneck(text) for text in dict.fromkeys(bottlenecks)]
        return [TaaeSystem(codec, bottleneck, name) for bottleneck in parsed]
    except ValueError as error:
        raise TaaeInputError(f"--bottleneck: {error}") from error
