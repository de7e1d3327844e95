"""`taae evaluate`: from arguments to results on disk."""

import argparse
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from ..audio_io import averaged_note
from ..codec import default_model, load_codec, model_name
from ..data.utterances import Utterance, Utterances
from ..errors import TaaeInputError
from ..evaluation import available_peers, choose_judges, evaluate_codecs, taae_systems, write_results
from ..evaluation.alignment import SAMPLING_RATE
from ..evaluation.conditions import Conditions, read_kind
from ..evaluation.listening_test import check_codecs, write_listening_test
from ..evaluation.report import problem_lines, quality_table

NOISE_RATIOS = [20, 10, 0]  # in dB, where none is asked for
TOLD_PROBLEMS = 5  # on the terminal
SPEED_SECONDS = 10.0


def run(args: argparse.Namespace) -> int:
    """Evaluates as the arguments say and returns the exit status.

    Raises:
        TaaeInputError: if the model, the data or an option cannot be used.
    """
    check_options(args)
    name = args.model or default_model()
    metrics, judges, missing = choose_judges(args.metrics, args.recognizer, args.speaker_model, args.device or "cpu")
    codec = load_codec(name, args.device)
    codec = codec.compiled() if args.compile else codec
    peers, left_out = available_peers(args.peers, codec.model.device.type)
    for line in [*left_out, *missing]:
        print(f"taae: {line}", file=sys.stderr)
    if codec.model.config.sampling_rate != SAMPLING_RATE:
        raise TaaeInputError(
            f"{name}: works at {codec.model.config.sampling_rate} Hz, but metrics are defined at {SAMPLING_RATE} Hz; "
            "expected a model at that rate"
        )
    ours = taae_systems(codec, args.bottleneck or [None], model_name(name))
    if args.mushra:
        trials = (len(ours) + len(peers)) * bool(args.tandem) + len(ours) * len(args.packet_loss)
        check_codecs(len(ours) + len(peers) + trials)
    folder = Path(args.output)
    utterances = chosen_utterances(args)
    results = evaluate_codecs(
        under_conditions(utterances, args),
        [*ours, *peers],
        metrics,
        judges,
        folder=folder,
        target_loudness=codec.extractor.target_loudness if args.loudness else None,
        tandem=args.tandem,
        packet_loss=args.packet_loss,
        samples=args.samples,
        speed_seconds=SPEED_SECONDS if args.speed else None,
        workers=args.workers,
        sources=args.data,
        added={what: names for what, names in (("noise", args.noise), ("reverberation", args.reverb)) if names},
    )
    write_results(folder, results)
    if args.mushra:
        write_listening_test(Path(args.mushra), results.samples)
    if utterances.averaged:
        print(f"taae: {averaged_note(utterances.averaged)}", file=sys.stderr)
    print(quality_table(results, intervals=False), f"\nTo read, see and hear: {folder / 'report.html'}", sep="\n")
    if results.problems:
        told = "".join(f"taae: {problem}\n" for problem in problem_lines(results, TOLD_PROBLEMS))
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


def chosen_utterances(args: argparse.Namespace) -> Utterances:
    """Returns the utterances that the command line names, and tells what lies beside them."""
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
    for note in utterances.notes:
        print(f"taae: {note}", file=sys.stderr)
    return utterances


def under_conditions(utterances: Utterances, args: argparse.Namespace) -> Iterable[Utterance]:
    """Returns the utterances, under conditions if the command line names any."""
    if not (args.noise or args.reverb or args.lengths or args.music):
        return utterances
    noises = read_kind(args.noise, "noise") if args.noise else []
    responses = read_kind(args.reverb, "rir") if args.reverb else []
    return Conditions(utterances, noises, args.snr or NOISE_RATIOS, responses, args.lengths, args.music)
