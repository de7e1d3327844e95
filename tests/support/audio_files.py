"""Sound files of many kinds, whole and otherwise, made in memory."""

import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000


def noise(seconds: float = 2.0, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Noise whose level rises and falls: (samples,) float32."""
    samples = int(seconds * rate)
    generator = np.random.default_rng(seed)
    return (0.2 * generator.normal(size=samples) * np.sin(np.arange(samples) / 900)).astype(np.float32)


def sound_file(audio: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str | None = None, **options) -> bytes:
    """A file that libsndfile writes; Opus is the subtype OPUS of OGG."""
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, rate, format=kind, subtype=subtype, **options)
    return buffer.getvalue()


def mp3(audio: np.ndarray, rate: int = RATE, **options) -> bytes:
    """An MP3 file with the header that counts its frames."""
    return sound_file(audio, rate, "MP3", **options)


def headless_mp3(audio: np.ndarray, rate: int = RATE, **options) -> bytes:
    """An MP3 file without that header, as encoders write it into a pipe."""
    from modeling_taae.audio.mpeg import parse_frame

    data = mp3(audio, rate, **options)
    frame = parse_frame(data[:4])
    assert frame is not None and (b"Xing" in data[: frame.length] or b"Info" in data[: frame.length])
    return data[frame.length :]


def ogg_without_end_mark(data: bytes) -> bytes:
    """An Ogg file whose last page is not marked as such, as recorders of streams leave it."""
    from modeling_taae.audio.pieces import ogg_checksum

    last = data.rindex(b"OggS")
    page = bytearray(data[last:])
    page[5] &= ~4
    page[22:26] = bytes(4)
    page[22:26] = ogg_checksum(page).to_bytes(4, "little")
    return data[:last] + bytes(page)


def ffmpeg_file(audio: np.ndarray, rate: int, container: str, encoder: str, options: dict | None = None) -> bytes:
    """A file that FFmpeg writes, by way of PyAV."""
    import av

    path = Path(tempfile.mkdtemp()) / "file"
    with av.open(str(path), "w", format=container, options=options or {}) as output:
        stream = output.add_stream(encoder, rate=rate)
        stream.layout = "mono"
        if encoder == "libopencore_amrnb":
            stream.bit_rate = 12_200
        stream.codec_context.open()
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio[None]), format="flt", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(
            format=stream.codec_context.format, layout="mono", rate=rate, frame_size=stream.codec_context.frame_size
        )
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    data = path.read_bytes()
    shutil.rmtree(path.parent)
    return data
