"""What can be said on the command line of `taae`: every command's options and help."""

import argparse
import math
import os
import re
from collections.abc import Callable
from typing import Any, NoReturn

from .. import __version__

DESCRIPTION = "Speech in about 50 bytes a second: encodes audio into .taae files and decodes them, with a TAAE model."
EPILOG = """\
examples:
  taae reconstruct speech.wav -o decoded.wav      hear what the codec does to your voice
  taae encode speech.wav                          writes speech.taae
  taae decode speech.taae -o decoded.wav
  taae encode recordings/ -o encoded/             every audio file in the folder, however deep
  taae info speech.taae
  taae encode - < speech.flac | taae decode - -o - > decoded.wav

The model is --model, else $TAAE_MODEL, else taae-speech-16k-nano.
`taae COMMAND --help` tells more about a command."""

RAW = argparse.RawDescriptionHelpFormatter
SHORTEST = 1e-6  # of lengths of time, which are not zero
AUDIO_HELP = "an audio file of any format, rate and channel count that libsndfile reads; a directory of them; or -"
OUTPUT_HELP = "file for one input, directory for several, - for standard output"
BOTTLENECK_HELP = (
    "1x46656_400bps, 2x15625_700bps, 4x729_1000bps, native, or stages such as 5,5,5,5,5,5@1.0/5,5,5,5,5,5@0.25 "
    "(levels of each dimension @ scale); default: the model's own"
)
SUBSET_HELP = "of a data set on the Hub that has several, such as a language"
LEVEL_HELP = "keep the level as it is (default: bring it to that of the model's training, such as -20 LUFS)"
FORCE_HELP = "decode what another model encoded, to noise most likely"
EVALUATION_HELP = "folder for results; an interrupted run in it goes on, results of another kind are replaced"
SKIP_HELP = "leave out files whose target is there, to go on after an interruption (default: targets are replaced)"
PRIOR_HELP = "the model that encoded, where another one decodes: entropy-coded tokens are read with its prior"
PEERS_HELP = (
    "codec2-450, -700C, -1200, -2400, ...; opus-6k, ...; pcm16; a Transformers codec, such as "
    "kyutai/mimi?num_quantizers=8, facebook/encodec_24khz?bandwidth=1.5, or a folder of one"
)
ENCODE_EXAMPLES = """\
  taae encode speech.wav                                  writes speech.taae
  taae encode speech.mp3 -o small.taae --bottleneck 2x15625_700bps
  taae encode a.wav b.flac recordings/ -o encoded/        keeps the folders below recordings/"""
DECODE_EXAMPLES = """\
  taae decode speech.taae -o decoded.wav
  taae decode encoded/ -o decoded/
  taae decode speech.taae -o - | play -t wav -"""
RECONSTRUCT_EXAMPLES = """\
  taae reconstruct speech.wav -o decoded.wav
  taae reconstruct recordings/ -o decoded/ --bottleneck 4x729_1000bps"""
STREAM_EXAMPLES = """\
  export TAAE_MODEL=hub_cards/taae-speech-16k-nano-causal
  rec -q -t wav -r 16000 -c 1 -b 16 - | taae stream | play -q -t s16 -r 16000 -c 1 -
  taae stream --output tokens < speech.wav > speech.tokens
  taae stream --output f32le < speech.tokens > speech.raw
  ffmpeg -i speech.mp3 -f s16le -ar 16000 -ac 1 - | taae stream --input s16le --gain 6 > decoded.raw

It reads standard input and no files: a file comes in behind <, as above.

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
TOKENIZE_EXAMPLES = """\
  taae tokenize recordings/ -o tokens                        a folder of audio, however deep
  taae tokenize 'train-*.parquet' -o tokens --bottleneck 2x15625_700bps
  taae tokenize shards/ -o tokens --ray local                WebDataset tars, on all cores or GPUs of this machine
  taae tokenize facebook/voxpopuli --subset nl --split train -o tokens --ray head-node:6379

A run that was interrupted goes on when the same command is given again, with or without --ray. The machines of a Ray
cluster need this package, and the source and the model at the same paths; a cluster that asks for a token wants
RAY_AUTH_MODE=token in the environment.

Sources
  folder     audio, Parquet and .tar files, however deep; metadata.csv, .jsonl or .parquet beside the audio,
             with a column file_name, may tell more about it; with --split, it is read as a data set
  .parquet   a column holds audio files: as bytes, as paths, or as the Audio feature of `datasets`
  .tar       WebDataset: a.flac is a recording, and a.json, a.txt and a.cls tell about it
  NAME       a data set on the Hub, which is streamed

Output
  data/          Parquet: id, codes (frames x tokens per frame), frames, duration in seconds, and the source's columns
                 but the audio; a column of the source with one of these names is replaced
  manifest.json  model, settings, counts, checksums
  README.md      the data set's card; load_dataset("tokens") works, and so does `taae push tokens ...`
  rejects.jsonl  rows without tokens: id, source and reason, which is one of missing, bad audio (not decodable, cut off,
                 not finite), bad text (of an archive), too short, silent, or damaged (the rest of a Parquet or tar
                 file cannot be read)
  report.json    how fast it went

A row's id is that of the source if it has one, else its file's name and place in it. Where several rows have one id,
the second becomes id#2, and so on. A file that several sources name is read once."""
EXPORT_EXAMPLES = """\
  taae export hub_cards/taae-speech-16k-nano -o exported
  taae export hub_cards/taae-speech-16k-nano -o exported --format onnx-int8 --bottleneck 2x15625_700bps

Formats
  onnx           float32; the tokens are the model's
  onnx-int8      weights in 8 bits, which makes a model of its own, a quarter as large
  torch-export   float32, for torch.export.load

Files are kept only once they were run and found to do what the model does."""
CONVERT_EXAMPLES = "  taae convert stable-codec-speech-16k/ taae-speech-16k/"
PUSH_EXAMPLES = """\
  taae push hub_cards/taae-speech-16k-nano me/taae-nano --dry-run     checks all and lists what would be sent
  taae push hub_cards/taae-speech-16k-nano me/taae-nano               private, until you make it public on its page
  taae push my_tokens/ me/my-tokens --public --message "All of May"

The folder holds a model, tokens of `taae tokenize`, or a Space; `hf auth login` says who you are."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def parse_known_args(self, *arguments: Any, **options: Any) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, but a command refuses what it does not know itself, and so names its own help."""
        namespace, unknown = super().parse_known_args(*arguments, **options)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit status 2."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def whole_number(least: int) -> Callable[[str], int]:
    """The type of an option that takes whole numbers from `least` up."""

    def parse(text: str) -> int:
        if not text.strip().lstrip("+-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number from {least} up")
        return int(text)

    return parse


def number(least: float, most: float = math.inf) -> Callable[[str], float]:
    """The type of an option that takes finite numbers between two, these included."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most):
            bounds = f"from {least:g} up" if math.isinf(most) else f"from {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"{text}: expected a number {bounds}")
        return value

    return parse


def split_name(text: str) -> str:
    """The type of an option that takes the name of a split, as `datasets` allows it."""
    if not re.fullmatch(r"\w+(\.\w+)*", text):
        raise argparse.ArgumentTypeError(f"{text}: expected letters, digits, _ and dots between them")
    return text


def build_parser() -> ArgumentParser:
    """The command line's options and help."""
    parser = ArgumentParser(prog="taae", description=DESCRIPTION, epilog=EPILOG, formatter_class=RAW)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    common = ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    model = ArgumentParser(add_help=False)
    model.add_argument("--model", help="folder or name on the Hub (default: $TAAE_MODEL, else taae-speech-16k-nano)")
    model.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: cuda where there is one, else cpu)")
    encoding = ArgumentParser(add_help=False)
    encoding.add_argument("--bottleneck", metavar="B", help=BOTTLENECK_HELP)
    encoding.add_argument("--no-loudness", dest="loudness", action="store_false", help=LEVEL_HELP)
    batch = ArgumentParser(add_help=False)
    batch.add_argument("--skip-existing", action="store_true", help=SKIP_HELP)

    def add(name: str, summary: str, examples: str, *options: ArgumentParser):
        command = commands.add_parser(
            name,
            parents=[*options, common],
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"examples:\n{examples}",
            formatter_class=RAW,
        )
        command.set_defaults(command=name)
        return command

    command = add("encode", "turn audio into .taae files", ENCODE_EXAMPLES, model, encoding, batch)
    command.add_argument("inputs", nargs="+", metavar="AUDIO", help=AUDIO_HELP)
    command.add_argument("-o", "--output", metavar="OUT", help=f"{OUTPUT_HELP} (default: beside each input)")

    command = add("decode", "turn .taae files into audio", DECODE_EXAMPLES, model, batch)
    command.add_argument("inputs", nargs="+", metavar="FILE", help="a .taae file, a directory of them, or -")
    command.add_argument("-o", "--output", metavar="OUT", required=True, help=OUTPUT_HELP)
    command.add_argument("--force", action="store_true", help=f"{FORCE_HELP}; entropy-coded files need --prior too")
    command.add_argument("--prior", metavar="MODEL", help=PRIOR_HELP)

    command = add(
        "reconstruct", "encode and decode audio, to hear the codec", RECONSTRUCT_EXAMPLES, model, encoding, batch
    )
    command.add_argument("inputs", nargs="+", metavar="AUDIO", help=AUDIO_HELP)
    command.add_argument("-o", "--output", metavar="OUT", required=True, help=OUTPUT_HELP)

    command = add("stream", "encode and decode a live signal, standard input to output", STREAM_EXAMPLES, model)
    add_stream_options(command)

    command = add("info", "tell about a .taae file or a model", INFO_EXAMPLES)
    command.add_argument("subject", metavar="FILE_OR_MODEL", help="a .taae file, -, a model's folder or its Hub name")

    command = add("evaluate", "measure how good a model is, beside other codecs", EVALUATE_EXAMPLES, model)
    add_evaluate_options(command)

    command = add("convert", "make a model of a stable-codec checkpoint", CONVERT_EXAMPLES)
    command.add_argument("source", metavar="SRC", help="folder with model_config.json and the weights")
    command.add_argument("target", metavar="DST", help="folder to write")

    command = add("export", "write encoder and decoder as files for other runtimes", EXPORT_EXAMPLES)
    add_export_options(command)

    command = add("tokenize", "turn a corpus into a data set of tokens", TOKENIZE_EXAMPLES, model, encoding)
    add_tokenize_options(command)

    command = add("push", "publish a model, tokens or a Space on the Hugging Face Hub", PUSH_EXAMPLES)
    add_push_options(command)
    return parser


def add_stream_options(command: argparse.ArgumentParser) -> None:
    """The options of `taae stream`."""
    add = command.add_argument
    add("--bottleneck", metavar="B", help=BOTTLENECK_HELP)
    add("--force", action="store_true", help=FORCE_HELP)
    gain = "make the input louder by so many decibels (default: 0)"
    add("--gain", type=number(-100, 100), default=0.0, metavar="DB", help=gain)
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
    add("-o", "--output", metavar="DIR", required=True, help=EVALUATION_HELP)
    add("--bottleneck", nargs="+", metavar="B", help=BOTTLENECK_HELP)
    add("--peers", nargs="+", default=[], metavar="P", help=PEERS_HELP)
    add("--metrics", nargs="+", metavar="M", help="such as pesq_wb stoi dnsmos_ovrl (default: all that work offline)")
    add("--recognizer", metavar="M", help="a Transformers speech recogniser, for word and character error rates")
    add("--speaker-model", metavar="M", help="a Transformers x-vector model, for speaker similarity")
    add("--transcripts", metavar="FILE", help="Parquet file with columns id and text, where DATA has no texts")
    add("--limit", type=whole_number(1), metavar="N", help="the first N utterances only")
    add("--split", default="test", help="of a data set on the Hub (default: test)")
    add("--subset", metavar="NAME", help=SUBSET_HELP)
    add("--audio-column", default="audio", metavar="C", help="column with the audio (default: audio)")
    add("--noise", nargs="+", metavar="FILES", help="also mix in noise: recordings, or rows of the kind 'noise'")
    ratios = "at these ratios (default: 20 10 0)"
    add("--snr", nargs="+", type=number(-100, 100), metavar="DB", help=ratios)
    add("--reverb", nargs="+", metavar="FILES", help="also convolve with room responses, or rows of the kind 'rir'")
    add("--lengths", nargs="+", type=number(SHORTEST), default=[], metavar="S", help="also clips of so many seconds")
    add("--music", action="store_true", help="also a few chords")
    add("--tandem", type=whole_number(2), metavar="N", help="also each codec N times in a row")
    lost = "also with this share of frames lost, such as 0.05"
    add("--packet-loss", nargs="+", type=number(0, 1), default=[], metavar="P", help=lost)
    heard = "utterances to listen to in report.html (default: 6)"
    add("--samples", type=whole_number(0), default=6, metavar="N", help=heard)
    add("--mushra", metavar="DIR", help="also write these as a listening test for webMUSHRA")
    workers = "processes for metrics (default: all cores)"
    add("--workers", type=whole_number(1), default=os.cpu_count(), metavar="N", help=workers)
    add("--no-loudness", dest="loudness", action="store_false", help=LEVEL_HELP)
    add("--no-speed", dest="speed", action="store_false", help="do not measure speed")


def add_push_options(command: argparse.ArgumentParser) -> None:
    """The options of `taae push`."""
    add = command.add_argument
    add("folder", metavar="FOLDER", help="a model with card, licence and results; or tokens; or a Space")
    add("repo", metavar="REPO", help="owner/name on the Hub, or a name among your own; made if it does not exist")
    add("--public", action="store_true", help="let everyone see it (default: private)")
    add("--revision", metavar="BRANCH", help="branch to push to, made if it does not exist (default: main)")
    add("--message", metavar="TEXT", help="of the commit")
    add("--dry-run", action="store_true", help="check all, list what would be sent and made, and send nothing")


def add_tokenize_options(command: argparse.ArgumentParser) -> None:
    """The options of `taae tokenize`."""
    add = command.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="audio, Parquet or .tar files, folders of them, or a Hub data set")
    add("-o", "--output", metavar="DIR", required=True, help="folder to make; an interrupted run in it goes on")
    add("--split", type=split_name, help="of a data set; also what the output's split is called (default: train)")
    add("--subset", metavar="NAME", help=SUBSET_HELP)
    add("--audio-column", default="audio", metavar="C", help="column with the audio (default: audio)")
    add("--id-column", metavar="C", help="column with ids (default: id, utterance_id or segment_id if there is one)")
    add("--min-seconds", type=number(0), default=0.4, metavar="S", help="reject what is shorter (default: 0.4)")
    add(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="of the model: bfloat16 is faster on a GPU and changes some tokens (default: float32)",
    )
    add(
        "--readers",
        type=whole_number(1),
        metavar="N",
        help="threads that decode audio (default: 8 beside a GPU, else 1)",
    )
    add("--shard-hours", type=number(SHORTEST), default=100.0, metavar="H", help="of audio in a file (default: 100)")
    add("--license", metavar="L", help="of the recordings, as the Hub calls it, for the card: cc-by-4.0, ...")
    add("--ray", metavar="ADDRESS", help="work on a Ray cluster: its head's address, auto, or local for this machine")
    add("--workers", type=whole_number(1), metavar="N", help="with --ray: how many (default: all GPUs, or all cores)")
    price = "of a GPU or core, to tell what a million hours would cost"
    add("--price-per-hour", type=number(0), metavar="P", help=price)


def add_export_options(command: argparse.ArgumentParser) -> None:
    """The options of `taae export`."""
    add = command.add_argument
    add("name", metavar="MODEL", help="a model's folder, or its name on the Hub")
    add(
        "-o", "--output", metavar="DIR", required=True, help="folder for encoder and decoder; others in it are replaced"
    )
    add("--format", choices=["onnx", "onnx-int8", "torch-export"], default="onnx", help="see below (default: onnx)")
    add("--bottleneck", metavar="B", help=BOTTLENECK_HELP)
