"""The command `taae`: speech files to tokens in `.taae` files and back.

What only one command needs, that command imports.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from .audio_io import (
    AUDIO_SUFFIXES,
    Job,
    TaaeInputError,
    audio_format,
    display_name,
    is_standard_stream,
    one_line,
    plan_jobs,
    read_audio,
    write_audio,
)
from .codec import Codec, chosen_bottleneck, load_codec
from .taae_file import TaaeFile, format_bottleneck

TAAE_SUFFIX = ".taae"

DESCRIPTION = "Speech in about 50 bytes a second: encodes audio into .taae files and decodes them, with a TAAE model."
EPILOG = """\
examples:
  taae reconstruct speech.wav -o decoded.wav      hear what the codec does to your voice
  taae encode speech.wav                          writes speech.taae
  taae decode speech.taae -o speech.wav
  taae encode recordings/ -o encoded/             every audio file in the folder, however deep
  taae info speech.taae
  taae encode - < speech.flac | taae decode - -o - > decoded.wav

The model is --model, else $TAAE_MODEL, else taae-speech-16k-nano.
`taae COMMAND --help` tells more about a command."""

RAW = argparse.RawDescriptionHelpFormatter
AUDIO_HELP = "an audio file of any format, rate and channel count that libsndfile reads; a directory of them; or -"
OUTPUT_HELP = "file for one input, directory for several, - for standard output"
BOTTLENECK_HELP = (
    "1x46656_400bps, 2x15625_700bps, 4x729_1000bps, native, or stages such as 5,5,5,5,5,5@1.0/5,5,5,5,5,5@0.25 "
    "(levels of each dimension @ scale); default: the model's own"
)
FORCE_HELP = "decode what another model encoded, to noise most likely"
PEERS_HELP = (
    "codec2-450, -700C, -1200, -2400, ...; opus-6k, ...; pcm16; a Transformers codec, such as "
    "kyutai/mimi?num_quantizers=8, facebook/encodec_24khz?bandwidth=1.5, or a folder of one"
)
ENCODE_EXAMPLES = """\
  taae encode speech.wav                                  writes speech.taae
  taae encode speech.mp3 -o small.taae --bottleneck 2x15625_700bps
  taae encode a.wav b.flac recordings/ -o encoded/        keeps the folders below recordings/"""
DECODE_EXAMPLES = """\
  taae decode speech.taae -o speech.wav
  taae decode encoded/ -o decoded/
  taae decode speech.taae -o - | play -t wav -"""
RECONSTRUCT_EXAMPLES = """\
  taae reconstruct speech.wav -o decoded.wav
  taae reconstruct recordings/ -o decoded/ --bottleneck 4x729_1000bps"""
STREAM_EXAMPLES = """\
  rec -q -t wav -r 16000 -c 1 -b 16 - | taae stream | play -q -t s16 -r 16000 -c 1 -
  taae stream --output tokens < speech.wav > speech.tokens
  taae stream --output f32le < speech.tokens > speech.raw
  ffmpeg -i speech.mp3 -f s16le -ar 16000 -ac 1 - | taae stream --input s16le --gain 6 > decoded.raw

The model must be causal. Each frame is written as soon as its last sample has come; the tokens are those of
`taae encode --no-loudness`. A stream cannot know how loud it will be, so its level is left as it is but for --gain.

A stream of tokens, little-endian:
  4 bytes    TAAS
  1          version, 1
  8          identity of the model: the start of the SHA-256 of its weights
  4, 4, 8    sampling rate in Hz, samples per frame, 0
  2 + n      the bottleneck as text, after its length
  1 + 8 k    number k of tokens per frame, then the vocabulary size of each
  4          CRC-32 of all bytes so far
  then for each frame its tokens, each in the fewest bits that hold its vocabulary, lowest bit first, and zeros up to a
  whole byte"""
INFO_EXAMPLES = """\
  taae info speech.taae
  taae info hub_cards/taae-speech-16k-nano"""
EVALUATE_EXAMPLES = """\
  taae evaluate recordings/ -o results
  taae evaluate 'test-*.parquet' -o results --bottleneck 1x46656_400bps 2x15625_700bps --peers codec2-700C opus-6k
  taae evaluate openslr/librispeech_asr --split test.clean --limit 100 -o results --metrics pesq_wb stoi"""
CONVERT_EXAMPLES = "  taae convert stable-codec-speech-16k/ taae-speech-16k/"


class ArgumentParser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit status 2."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def run_jobs(jobs: list[Job], work: Callable[[Job], None], debug: bool) -> int:
    """Works through the jobs; a failing one among several is reported at the end. Returns the exit status."""
    if len(jobs) == 1:
        work(jobs[0])
        return 0
    failures = []
    for job in tqdm(jobs, unit="file", disable=None):
        try:
            work(job)
        except Exception as error:
            if debug:
                traceback.print_exc()
            failures.append(
                one_line(error) if isinstance(error, TaaeInputError) else f"{job.source}: {describe(error)}"
            )
    if failures:
        print(*(f"taae: error: {failure}" for failure in failures), sep="\n", file=sys.stderr)
        print(f"taae: {len(failures)} of {len(jobs)} files failed", file=sys.stderr)
    return 1 if failures else 0


def encode(args: argparse.Namespace) -> int:
    """`taae encode`."""
    jobs = plan_jobs(args.inputs, args.output, AUDIO_SUFFIXES, TAAE_SUFFIX)
    codec = load_codec(args.model, args.device, args.loudness)
    bottleneck = chosen_bottleneck(codec, args.bottleneck)

    def work(job: Job) -> None:
        codec.encode(read_audio(job.source, codec.model.config.sampling_rate), bottleneck).save(job.target)

    return run_jobs(jobs, work, args.debug)


def decode(args: argparse.Namespace) -> int:
    """`taae decode`."""
    jobs = plan_jobs(args.inputs, args.output, frozenset([TAAE_SUFFIX]), ".wav")
    for job in jobs:
        audio_format(job.target)
    codec = load_codec(args.model, args.device)

    def work(job: Job) -> None:
        encoded = TaaeFile.load(job.source)
        if not args.force:
            codec.check_identity(display_name(job.source), encoded.model_identity)
        write_audio(job.target, codec.decode(encoded), codec.model.config.sampling_rate)

    return run_jobs(jobs, work, args.debug)


def reconstruct(args: argparse.Namespace) -> int:
    """`taae reconstruct`."""
    jobs = plan_jobs(args.inputs, args.output, AUDIO_SUFFIXES, ".wav")
    for job in jobs:
        audio_format(job.target)
    codec = load_codec(args.model, args.device, args.loudness)
    bottleneck = chosen_bottleneck(codec, args.bottleneck)

    def work(job: Job) -> None:
        audio = read_audio(job.source, codec.model.config.sampling_rate)
        decoded = codec.decode(codec.encode(audio, bottleneck))
        write_audio(job.target, decoded, codec.model.config.sampling_rate)

    return run_jobs(jobs, work, args.debug)


def info(args: argparse.Namespace) -> int:
    """`taae info`."""
    if is_standard_stream(args.subject) or os.path.isfile(args.subject) or args.subject.endswith(TAAE_SUFFIX):
        rows = file_facts(TaaeFile.load(args.subject))
    else:
        rows = model_facts(load_codec(args.subject, device="cpu"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0


def file_facts(encoded: TaaeFile) -> list[tuple[str, str]]:
    """What `taae info` tells about a file, as names and values."""
    size = len(encoded.to_bytes())
    return [
        ("duration", f"{encoded.duration:.2f} s ({encoded.num_samples:,} samples at {encoded.sampling_rate:,} Hz)"),
        ("frames", f"{encoded.frames:,} at {encoded.sampling_rate / encoded.hop_length:g} Hz"),
        ("bottleneck", format_bottleneck(encoded.bottleneck)),
        ("vocabulary", " + ".join(f"{size:,}" for size in encoded.vocabulary_sizes)),
        ("bit rate", f"{encoded.bit_rate:.1f} bit/s"),
        ("file", f"{size:,} bytes, {8 * size / encoded.duration:.1f} bit/s with header and checksum"),
        ("model identity", encoded.model_identity),
    ]


def model_facts(codec: Codec) -> list[tuple[str, str]]:
    """What `taae info` tells about a model, as names and values."""
    from .quantization_taae import BOTTLENECK_PRESETS, NATIVE

    config = codec.model.config
    rows = [
        ("parameters", f"{codec.model.num_parameters():,}"),
        ("frame rate", f"{config.frame_rate:g} Hz ({config.hop_length:,} samples at {config.sampling_rate:,} Hz)"),
        ("causal", "yes" if config.causal else "no"),
        ("loudness", "as it is" if (target := codec.extractor.target_loudness) is None else f"{target:g} LUFS"),
        ("model identity", codec.identity),
        ("default bottleneck", format_bottleneck(config.bottleneck)),
    ]
    for name in [*BOTTLENECK_PRESETS, NATIVE]:
        try:
            bits = codec.model.bottleneck(name).bits_per_frame
        except ValueError:  # a preset for another number of latent dimensions
            continue
        rows.append((name, f"{bits * config.frame_rate:.1f} bit/s"))
    return rows


def convert(args: argparse.Namespace) -> int:
    """`taae convert`."""
    from .convert import convert_checkpoint

    convert_checkpoint(Path(args.source), Path(args.target))
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """`taae evaluate`."""
    from .evaluate_command import run

    return run(args)


def stream(args: argparse.Namespace) -> int:
    """`taae stream`."""
    from .stream import run

    return run(args)


def build_parser() -> ArgumentParser:
    """The command line's options and help."""
    parser = ArgumentParser(prog="taae", description=DESCRIPTION, epilog=EPILOG, formatter_class=RAW)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    common = ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    model = ArgumentParser(add_help=False)
    model.add_argument("--model", help="folder or name on the Hub (default: $TAAE_MODEL, else taae-speech-16k-nano)")
    model.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: a GPU where there is one)")
    encoding = ArgumentParser(add_help=False)
    encoding.add_argument("--bottleneck", metavar="B", help=BOTTLENECK_HELP)
    encoding.add_argument("--no-loudness", dest="loudness", action="store_false", help="keep the level as it is")

    def add(run: Callable[[argparse.Namespace], int], summary: str, examples: str, *options: ArgumentParser):
        command = commands.add_parser(
            run.__name__,
            parents=[*options, common],
            help=summary,
            description=summary.capitalize() + ".",
            epilog=f"examples:\n{examples}",
            formatter_class=RAW,
        )
        command.set_defaults(run=run)
        return command

    command = add(encode, "turn audio into .taae files", ENCODE_EXAMPLES, model, encoding)
    command.add_argument("inputs", nargs="+", metavar="AUDIO", help=AUDIO_HELP)
    command.add_argument("-o", "--output", metavar="OUT", help=f"{OUTPUT_HELP} (default: beside each input)")

    command = add(decode, "turn .taae files into audio", DECODE_EXAMPLES, model)
    command.add_argument("inputs", nargs="+", metavar="FILE", help="a .taae file, a directory of them, or -")
    command.add_argument("-o", "--output", metavar="OUT", required=True, help=OUTPUT_HELP)
    command.add_argument("--force", action="store_true", help=FORCE_HELP)

    command = add(reconstruct, "encode and decode audio, to hear the codec", RECONSTRUCT_EXAMPLES, model, encoding)
    command.add_argument("inputs", nargs="+", metavar="AUDIO", help=AUDIO_HELP)
    command.add_argument("-o", "--output", metavar="OUT", required=True, help=OUTPUT_HELP)

    command = add(stream, "encode and decode a live signal, standard input to output", STREAM_EXAMPLES, model)
    add_stream_options(command)

    command = add(info, "tell about a .taae file or a model", INFO_EXAMPLES)
    command.add_argument("subject", metavar="FILE_OR_MODEL", help="a .taae file, -, a model's folder or its Hub name")

    command = add(evaluate, "measure how good a model is, beside other codecs", EVALUATE_EXAMPLES, model)
    add_evaluate_options(command)

    command = add(convert, "make a model of a stable-codec checkpoint", CONVERT_EXAMPLES)
    command.add_argument("source", metavar="SRC", help="folder with model_config.json and the weights")
    command.add_argument("target", metavar="DST", help="folder to write")
    return parser


def add_stream_options(command: argparse.ArgumentParser) -> None:
    """The options of `taae stream`."""
    add = command.add_argument
    add("--bottleneck", metavar="B", help=BOTTLENECK_HELP)
    add("--force", action="store_true", help=FORCE_HELP)
    add("--gain", type=float, default=0.0, metavar="DB", help="make the input louder by so many decibels (default: 0)")
    add(
        "--input",
        choices=["auto", "s16le", "f32le"],
        default="auto",
        help="raw mono samples of the model's rate, or what its beginning says: WAV or tokens (default: auto)",
    )
    add(
        "--output",
        choices=["s16le", "f32le", "tokens"],
        default="s16le",
        help="raw mono samples of the model's rate, or a stream of tokens (default: s16le)",
    )


def add_evaluate_options(command: argparse.ArgumentParser) -> None:
    """The options of `taae evaluate`."""
    add = command.add_argument
    add("data", nargs="+", metavar="DATA", help="Parquet files, audio files, folders of them, or a data set on the Hub")
    add("-o", "--output", metavar="DIR", required=True, help="folder for results; an interrupted run in it goes on")
    add("--bottleneck", nargs="+", metavar="B", help=BOTTLENECK_HELP)
    add("--peers", nargs="+", default=[], metavar="P", help=PEERS_HELP)
    add("--metrics", nargs="+", metavar="M", help="such as pesq_wb stoi dnsmos_ovrl (default: all that work offline)")
    add("--recognizer", metavar="M", help="a Transformers speech recogniser, for word and character error rates")
    add("--speaker-model", metavar="M", help="a Transformers x-vector model, for speaker similarity")
    add("--transcripts", metavar="FILE", help="Parquet file with columns id and text, where DATA has no texts")
    add("--limit", type=int, metavar="N", help="the first N utterances only")
    add("--split", default="test", help="of a data set on the Hub (default: test)")
    add("--audio-column", default="audio", metavar="C", help="column with the audio (default: audio)")
    add("--noise", nargs="+", metavar="FILES", help="also mix in noise: recordings, or rows of the kind 'noise'")
    add("--snr", nargs="+", type=float, default=[20, 10, 0], metavar="DB", help="at these ratios (default: 20 10 0)")
    add("--reverb", nargs="+", metavar="FILES", help="also convolve with room responses, or rows of the kind 'rir'")
    add("--lengths", nargs="+", type=float, default=[], metavar="S", help="also clips of so many seconds")
    add("--music", action="store_true", help="also a few chords")
    add("--tandem", type=int, metavar="N", help="also each codec N times in a row")
    add("--packet-loss", nargs="+", type=float, default=[], metavar="P", help="also with this share of frames lost")
    add("--samples", type=int, default=6, metavar="N", help="utterances to listen to in report.html (default: 6)")
    add("--mushra", metavar="DIR", help="also write these as a listening test for webMUSHRA")
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes for metrics (default: all cores)")
    add("--no-loudness", dest="loudness", action="store_false", help="keep the level as it is")
    add("--no-speed", dest="speed", action="store_false", help="do not measure speed")


def describe(error: Exception) -> str:
    """An error that no one foresaw, in one line."""
    return f"{type(error).__name__}: {one_line(error)}; run again with --debug for the traceback"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: arguments without the program's name; None for those of the process.

    Returns:
        The exit status: 0, 1 for a failure, 2 for bad input, 130 after Ctrl-C, 141 after a broken pipe. Bad usage and
        help leave through SystemExit, with 2 and 0.
    """
    args = build_parser().parse_args(argv)
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Python flushes standard output once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        foreseen = isinstance(error, TaaeInputError)
        print(f"taae: error: {one_line(error) if foreseen else describe(error)}", file=sys.stderr)
        return 2 if foreseen else 1
