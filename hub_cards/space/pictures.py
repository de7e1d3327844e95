"""Shows a clip in HTML, for the Space: waveform and spectrogram, tokens, and bytes."""

import io

import numpy as np
import torch
from matplotlib import image
from matplotlib.figure import Figure

from modeling_taae.audio.spectrum import draw_spectrum
from modeling_taae.evaluation.html_report import encoded as in_base64
from modeling_taae.quantization_taae import ResidualFSQ
from modeling_taae.taae_file import CHECKSUM, TaaeFile, read_header

# Bytes in the dump; a minute of speech has some thousands.
LONGEST_DUMP = 1024


def show_clip(name: str, clip: np.ndarray, sampling_rate: int, loudest: float) -> str:
    """A picture of a clip's waveform above its spectrogram.

    Args:
        name: name of the clip.
        clip: (samples,) float, full scale at 1.
        sampling_rate: samples per second.
        loudest: level drawn brightest, in dB; the same for all clips in a comparison.
    """
    figure = Figure(figsize=(4.5, 3.6), dpi=120, layout="constrained")
    waveform, spectrogram = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    waveform.plot(np.arange(len(clip)) / sampling_rate, clip, linewidth=0.4)
    waveform.set(ylim=(-1, 1), yticks=(-1, 0, 1))
    draw_spectrum(spectrogram, clip, sampling_rate, loudest)
    spectrogram.set(xlabel="time in s", ylabel="kHz")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return picture(content.getvalue(), f"Waveform and spectrogram: {name}", "clip")


def picture(content: bytes, description: str, kind: str) -> str:
    """A PNG as an HTML element, with a text alternative and a class of the style sheet."""
    return f"<img class='{kind}' alt='{description}' src='data:image/png;base64,{in_base64(content)}'>"


def show_tokens(encoded: TaaeFile, bottleneck: ResidualFSQ) -> str:
    """The digits of the tokens as a picture: a column for each frame, a row for each latent dimension.

    Args:
        encoded: the clip.
        bottleneck: bottleneck of its tokens.
    """
    tokens = torch.from_numpy(encoded.audio_codes)
    rows = []
    for number, stage in enumerate(bottleneck.stages):
        digits = stage.unpack(tokens[None, number])[0].numpy() / (np.array(stage.levels)[:, None] - 1)
        # NaN is drawn as a gap between stages.
        rows += [digits, np.full((1, encoded.frames), np.nan)]
    content = io.BytesIO()
    image.imsave(content, np.concatenate(rows[:-1]), vmin=0, vmax=1, cmap="viridis", format="png")
    count, dimensions = len(bottleneck.stages), len(bottleneck.stages[0].levels)
    return (
        f"<h3>{encoded.frames:,} frames of {1000 * encoded.hop_length / encoded.sampling_rate:g} ms</h3>"
        f"<p>Each column is a frame of {count} token{'s' * (count > 1)}, each row a dimension of the latent, and the "
        f"colour is the level. A token is one of {bottleneck.codebook_sizes[0]:,} combinations of levels in "
        f"{dimensions} dimensions.</p>"
    ) + picture(content.getvalue(), "Picture of the tokens", "tokens")


def show_bytes(content: bytes) -> str:
    """A `.taae` file as hexadecimal bytes, with header and checksum set apart, and a link to save it."""
    source, _ = read_header(content)
    tokens, checksum = source.read(), content[-CHECKSUM.size :]
    header = content[: -len(tokens) - len(checksum)]
    link = f"data:application/octet-stream;base64,{in_base64(content)}"
    more = f"… {len(tokens) - LONGEST_DUMP:,} more …" if len(tokens) > LONGEST_DUMP else ""
    return (
        f"<h3>{len(content):,} bytes</h3>"
        f"<p>{len(header)} bytes of header, {len(tokens):,} of tokens, {len(checksum)} of checksum. "
        f"<a download='speech.taae' href='{link}'>Save the file</a></p>"
        f"<p class='bytes'><span>{header.hex(' ')}</span> {tokens[:LONGEST_DUMP].hex(' ')} {more} "
        f"<span>{checksum.hex(' ')}</span></p>"
    )
