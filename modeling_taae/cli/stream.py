"""`taae stream`: converts a live signal from standard input to tokens or audio on standard output."""

import argparse

from .options import BOTTLENECK_HELP, FORCE_HELP, add_model_options, number

SUMMARY = "encode and decode a live signal, standard input to output"
EXAMPLES = """\
  export TAAE_MODEL=hub_cards/taae-speech-16k-nano-causal
  rec -q -t wav -r 16000 -c 1 -b 16 - | taae stream | play -q -t s16 -r 16000 -c 1 -
  taae stream --output tokens < speech.wav > speech.tokens
  taae stream --output f32le < speech.tokens > speech.raw
  ffmpeg -i speech.mp3 -f s16le -ar 16000 -ac 1 - | taae stream --input s16le --gain 6 > decoded.raw

It reads only standard input: redirect a file with <, as above.

The model must be causal. Each frame is written as soon as its last sample has arrived. The tokens equal those of
`taae encode --no-loudness`: the loudness of a stream is not known in advance, so only --gain changes its level.

A stream of tokens, little-endian:
  4 bytes    TAAS
  1          version, 1
  8          identity of the model: the start of the SHA-256 of its weights
  4, 4, 8    sampling rate in Hz, samples per frame, 0
  2 + n      length of the bottleneck's text, then the text
  1 + 8 k    number k of tokens per frame, then the vocabulary size of each
  4          CRC-32 of all bytes so far
  then each frame: its tokens, each in the fewest bits that hold its vocabulary, lowest bit first, and zeros up to a
  whole byte"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_model_options(parser)
    add = parser.add_argument
    add("--bottleneck", metavar="B", help=BOTTLENECK_HELP)
    add("--force", action="store_true", help=FORCE_HELP)
    gain = "amplify the input, in dB (default: 0)"
    add("--gain", type=number(-100, 100), default=0.0, metavar="DB", help=gain)
    add(
        "--input",
        choices=["auto", "s16le", "f32le"],
        default="auto",
        help="raw mono samples at the model's rate; auto: WAV or tokens, detected from the header (default: auto)",
    )
    add(
        "--output",
        choices=["s16le", "f32le", "tokens"],
        default="s16le",
        help="raw mono samples at the model's rate, or a stream of tokens (default: s16le)",
    )


def run(args: argparse.Namespace) -> int:
    """Streams standard input to standard output and returns the exit status."""
    from ..files import standard_input, standard_output
    from .progress import telling

    source, sink = standard_input(), standard_output()
    with telling("loading the model", args.patience):
        from ..codec import chosen_bottleneck, load_codec
        from ..transcode.live import check_causal, stream

        codec = load_codec(args.model, args.device)
        check_causal(codec)
    bottleneck = None if args.bottleneck is None else chosen_bottleneck(codec, args.bottleneck)
    stream(codec, source, sink, args.input, args.output, bottleneck, args.gain, args.force)
    return 0
