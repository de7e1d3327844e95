"""What is attacked: each target makes valid input, damages it, and tells what came of it.

An attempt ends in one of three ways. `refused`: an error made for users, in one line. `right`: what was read is what
was written. `other`: it reads as something else that is valid, which only formats without a checksum may do, or those
whose checksum the attack has made anew. Anything else is a failure.
"""

import io
import json
import random
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import soundfile
import torch
from fuzz.mutations import damage, damage_json
from support.tiny_models import make_audio, make_model
from support.tiny_priors import make_prior

from modeling_taae import TaaeFeatureExtractor
from modeling_taae.codec import Codec, load_codec
from modeling_taae.data.utterances import Utterances
from modeling_taae.errors import TaaeInputError
from modeling_taae.taae_file import CHECKSUM, TaaeFile
from modeling_taae.transcode.live import stream, stream_header, write_tokens

REFUSED, RIGHT, OTHER = "refused", "right", "other"
RATE = 16_000
# A network with frames as long as the published models', and the layers of a nano one made tiny.
NETWORK = {"patch_size": 160, "hidden_sizes": (16, 16, 16), "strides": (1, 2, 2)}
DEPTHS = {"encoder_depths": (0, 1, 1), "decoder_depths": (1, 1, 1)}
Attack = Callable[[random.Random], str]


class Failure(AssertionError):
    """Something that is neither refused nor right."""


def require(holds: bool, what: str) -> None:
    """Fails the attempt if something does not hold."""
    if not holds:
        raise Failure(what)


def refusal(error: Exception) -> str:
    """Returns `refused`, after checking that the message is one line of sensible length."""
    message = str(error)
    require(bool(message) and "\n" not in message and len(message) < 2000, f"its message is {message[:200]!r}")
    return REFUSED


def codec_folder(folder: Path, causal: bool = False) -> Path:
    """Writes a tiny model with a prior, and returns its folder."""
    model = make_model(causal=causal, **NETWORK, **DEPTHS)
    model.save_pretrained(folder)
    TaaeFeatureExtractor().save_pretrained(folder)
    make_prior(load_codec(str(folder), "cpu").identity).save(folder)
    return folder


def taae_files(folder: Path) -> Attack:
    """`.taae` files of both versions, half of the time with a checksum that fits what was damaged."""
    codec = load_codec(str(codec_folder(folder / "model")), "cpu")
    audio = make_audio(1, 30_000, seed=1)[0, 0].numpy()
    stages = [([3] * 6, 1.0), ([4] * 6, 0.3)]
    files = [codec.encode(audio, name) for name in ("native", "1x46656_400bps", "2x15625_700bps", stages)]
    valid = [(file, file.to_bytes(prior)) for file in files for prior in (None, codec.prior)]

    def attack(rng: random.Random) -> str:
        file, original = rng.choice(valid)
        data = damage(original, rng, [other for _, other in valid])
        remade = rng.random() < 0.5
        if remade:
            data = data[: -CHECKSUM.size] + CHECKSUM.pack(zlib.crc32(data[: -CHECKSUM.size]))
        try:
            read = TaaeFile.from_bytes(data, codec.prior)
            if read.model_identity == codec.identity:
                decoded = codec.decode(read)
                require(decoded.shape == (read.num_samples,), f"{decoded.shape} for {read.num_samples} samples")
        except TaaeInputError as error:
            return refusal(error)
        known = [file for file, content in valid if content == data]
        if known:
            require(np.array_equal(read.audio_codes, known[0].audio_codes), "other tokens of the same bytes")
            return RIGHT
        require(remade, "a damaged file was read")
        again = TaaeFile.from_bytes(read.to_bytes(codec.prior), codec.prior)
        require(np.array_equal(again.audio_codes, read.audio_codes), "what was read is not what it is written as")
        return OTHER

    return attack


def streams(folder: Path) -> Attack:
    """Streams of tokens. Only their header has a checksum: frames that are valid tokens are decoded."""
    codec = load_codec(str(codec_folder(folder / "model", causal=True)), "cpu")
    valid = []
    for bottleneck in ("1x46656_400bps", "4x729_1000bps"):
        codes = codec.encode(make_audio(1, 10_000)[0, 0].numpy(), bottleneck).audio_codes
        sink = io.BytesIO()
        write_tokens(sink, [torch.from_numpy(codes)[None]], stream_header(codec, bottleneck))
        valid.append(sink.getvalue())

    def decode(data: bytes) -> bytes:
        sink = io.BytesIO()
        stream(codec, io.BytesIO(data), sink)
        return sink.getvalue()

    expected = [decode(data) for data in valid]

    def attack(rng: random.Random) -> str:
        data = damage(rng.choice(valid), rng, valid)
        try:
            audio = decode(data)
        except TaaeInputError as error:
            return refusal(error)
        return RIGHT if audio in expected else OTHER

    return attack


def attack_folder(
    valid: Path, work: Path, files: list[str], examine: Callable[[Path], str], whole: bool = False
) -> Attack:
    """An attack on one file of a folder at a time, which is whole again afterwards.

    Args:
        valid: the folder as it should be.
        work: where the copy is made that is damaged.
        files: the files to damage, relative to the folder.
        examine: returns what comes of reading the copy.
        whole: whether a file may also be missing, or be a folder.
    """
    shutil.copytree(valid, work)
    contents = {name: (valid / name).read_bytes() for name in files}

    def attack(rng: random.Random) -> str:
        name = rng.choice(files)
        path, edit = work / name, damage_json if name.endswith(".json") else damage
        path.unlink()
        try:
            if not whole or rng.random() > 0.03:
                path.write_bytes(edit(contents[name], rng))
            return examine(work)
        except TaaeInputError as error:
            return refusal(error)
        finally:
            path.write_bytes(contents[name])

    return attack


def model_folders(folder: Path) -> Attack:
    """Folders of models: configs, weights and priors."""
    valid, audio = codec_folder(folder / "valid"), make_audio(1, 5000)[0, 0].numpy()

    def tokens_of(codec: Codec) -> tuple[str, list]:
        source = codec.token_source()
        return f"{codec.identity} {source.token_identity}", codec.encode(audio).audio_codes.tolist()

    identity, expected = tokens_of(load_codec(str(valid), "cpu"))

    def examine(copy: Path) -> str:
        codec = load_codec(str(copy), "cpu")
        codec.prior  # noqa: B018, it is read here
        found, tokens = tokens_of(codec)
        require(found != identity or tokens == expected, "other tokens under the same identity")
        return RIGHT if found == identity else OTHER

    files = ["config.json", "preprocessor_config.json", "model.safetensors", "entropy_prior.safetensors"]
    return attack_folder(valid, folder / "damaged", files, examine, whole=True)


def speech(seed: int) -> np.ndarray:
    """A second of noise that swells and fades."""
    noise = np.random.default_rng(seed).normal(0, 0.1, RATE)
    return (noise * np.sin(np.pi * np.arange(RATE) / RATE) ** 2).astype(np.float32)


def recording(seed: int, audio_format: str) -> bytes:
    """An audio file."""
    file = io.BytesIO()
    soundfile.write(file, speech(seed), RATE, format=audio_format)
    return file.getvalue()


def corpora(folder: Path) -> Attack:
    """Recordings, archives and tables of speech. PCM has no checksum: damage to samples is other audio."""
    import pyarrow as pa
    from pyarrow import parquet

    valid = folder / "valid"
    valid.mkdir()
    for audio_format in ("WAV", "FLAC", "OGG", "MP3"):
        (valid / f"speech.{audio_format.lower()}").write_bytes(recording(0, audio_format))
    with tarfile.open(valid / "speech.tar", "w") as archive:
        for name, content in (
            ("a.flac", recording(1, "FLAC")),
            ("a.json", b'{"text": "one"}'),
            ("b.wav", recording(2, "WAV")),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    rows = [{"id": str(n), "audio": {"bytes": recording(n, "FLAC"), "path": None}, "text": "a"} for n in range(3)]
    parquet.write_table(pa.Table.from_pylist(rows), valid / "speech.parquet")
    parts = [{"audio_filepath": "speech.flac", "offset": n / 5, "duration": 0.5, "text": "a"} for n in range(3)]
    (valid / "parts.jsonl").write_text("\n".join(map(json.dumps, parts)))
    (valid / "table.csv").write_text("file_name,start,end,text\nspeech.wav,0,0.5,a\nspeech.wav,0.4,1,b\n")
    files = [path.name for path in valid.iterdir()]
    (valid / "wav.scp").write_text("one speech.wav\ntwo speech.ogg\n")
    (valid / "segments").write_text("a one 0 0.5\nb one 0.5 -1\nc two 0.1 0.9\n")
    sources = dict.fromkeys(files) | {"wav.scp": None, "segments": "wav.scp"}  # read on their own, or by way of another

    def examine(copy: Path) -> str:
        outcome = RIGHT
        for name, source in sources.items():
            if (copy / name).read_bytes() != (valid / name).read_bytes():
                for utterance in Utterances([str(copy / (source or name))], RATE):
                    require("\n" not in utterance.problem, f"a problem of several lines: {utterance.problem[:200]!r}")
                    outcome = REFUSED if utterance.problem else outcome
                    if utterance.audio is not None:
                        require(bool(np.isfinite(utterance.audio).all()), "audio that is not finite")
                        outcome = OTHER if outcome == RIGHT else outcome
        return outcome

    return attack_folder(valid, folder / "damaged", list(sources), examine)


def token_folders(folder: Path) -> Attack:
    """Folders that `taae tokenize` wrote: their manifest and shards."""
    import datasets

    from modeling_taae import cli
    from training.speech_lm.corpora import TokenCorpus

    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    datasets.disable_progress_bars()
    (folder / "speech").mkdir()
    for seed in range(3):
        (folder / "speech" / f"{seed}.flac").write_bytes(recording(seed, "FLAC"))
    valid = folder / "valid"
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        model = str(codec_folder(folder / "model"))
        cli.main(["tokenize", str(folder / "speech"), "--model", model, "-o", str(valid)])
    manifest = json.loads((valid / "manifest.json").read_text())
    codes = [row["codes"] for row in TokenCorpus([valid]).rows]

    def examine(copy: Path) -> str:
        rows = TokenCorpus([copy]).rows
        require([row["codes"] for row in rows] == codes, "other tokens than the manifest's")
        return RIGHT if json.loads((copy / "manifest.json").read_text()) == manifest else OTHER

    files = ["manifest.json", *(shard["file"] for shard in manifest["shards"])]
    return attack_folder(valid, folder / "damaged", files, examine, whole=True)


def exports(folder: Path) -> Attack:
    """ONNX files, half of the time with a checksum that fits what was damaged: damaged weights are other weights."""
    from modeling_taae.export.export import export_codec
    from modeling_taae.export.runtime import ExportedCodec, told_checksum, write_checksum

    codec = load_codec(str(codec_folder(folder / "model")), "cpu")
    export_codec(codec, folder / "valid", "onnx")
    audio = make_audio(1, 3000).numpy()
    whole = ExportedCodec.load(folder / "valid", threads=1)
    expected = whole.encode(audio).audio_codes
    sound = whole.decode(expected)
    valid = {path.name: path.read_bytes() for path in (folder / "valid").iterdir()}

    def examine(copy: Path) -> str:
        contents = {path: path.read_bytes() for path in copy.iterdir()}
        (damaged,) = [path for path in contents if contents[path] != valid[path.name]] or [copy / "encoder.onnx"]
        remade = len(contents[damaged]) % 2 and damaged.stat().st_size and told_checksum(damaged) is not None
        if remade:
            write_checksum(damaged)
        exported = ExportedCodec.load(copy, threads=1)
        codes = exported.encode(audio).audio_codes
        decoded = exported.decode(expected)
        if np.array_equal(codes, expected) and np.array_equal(decoded, sound):
            return RIGHT
        require(bool(remade), "a damaged file was read as another network")
        return OTHER

    return attack_folder(folder / "valid", folder / "damaged", ["encoder.onnx", "decoder.onnx"], examine)


TARGETS: dict[str, Callable[[Path], Attack]] = {
    "files": taae_files,
    "streams": streams,
    "models": model_folders,
    "corpora": corpora,
    "tokens": token_folders,
    "exports": exports,
}


def outcomes(attack: Attack, seed: int) -> Iterator[tuple[int, Callable[[], str]]]:
    """Yields attempts without end, each with the seed that repeats it."""
    while True:
        yield seed, lambda seed=seed: attack(random.Random(seed))
        seed += 1
