"""Entropy coding: what goes in comes out, on any machine; what was learnt pays; what is damaged is refused."""

import copy
import io
import json
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.tiny_priors import make_predictor, make_prior

from modeling_taae import cli
from modeling_taae.codec import load_codec
from modeling_taae.entropy.coding import POWERS, ClipCoder, likelihoods, symbol_mapping
from modeling_taae.entropy.prior import BLOCK_FRAMES, BLOCK_SIZE, GRIDS, PRIOR_FILE, EntropyPrior
from modeling_taae.errors import TaaeInputError
from modeling_taae.quantization_taae import resolve_bottleneck
from modeling_taae.taae_file import TaaeFile

constriction = pytest.importorskip("constriction", reason="there is no range coder for this machine on PyPI")

ROOT = Path(__file__).parents[2]
LEVELS = (17,) * 6
RATE = 16_000


def audio_tokens(bottleneck: str, frames: int, seed: int = 0) -> np.ndarray:
    """Tokens (tokens_per_frame, frames) of latents that wander as speech's do."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(1, 6, frames, generator=generator, dtype=torch.float64)
    return resolve_bottleneck(bottleneck, LEVELS).encode(0.5 * steps.cumsum(2) - 0.1 * steps)[0].numpy()


def random_tokens(bottleneck: str, frames: int, seed: int = 0) -> np.ndarray:
    """Tokens of digits of which each is as likely as any other, and so is each way to spell it."""
    mapping = symbol_mapping(bottleneck, 6 if bottleneck.startswith("1x") else 17, 6)
    symbols = np.random.default_rng(seed).integers(0, len(mapping.digits), (frames, 6))
    return mapping.to_tokens(symbols)


def decoded(prior: EntropyPrior, data: bytes, bottleneck: str, frames: int) -> np.ndarray:
    return np.concatenate(list(prior.decode(io.BytesIO(data), bottleneck, frames)), axis=1)


def next_frame(coder: ClipCoder, choose: Callable[[np.ndarray], int]) -> np.ndarray:
    """A frame on the native grid, (6,), each digit chosen when the coder has said how likely it is; none is coded."""
    predictor, frame = coder.predictor, np.zeros(6, dtype=np.int64)
    (sums,) = predictor.context_sums(coder.recent.reshape(1, -1))
    for dimension in range(6):
        frame[dimension] = choose(likelihoods(predictor.scores(sums, dimension) + coder._correction()[dimension]))
        sums += predictor.values[frame[dimension]] * predictor.earlier[:, dimension]
    return frame


class TestRoundTrip:
    @pytest.mark.parametrize("bottleneck", GRIDS)
    @pytest.mark.parametrize("frames", [1, 2, BLOCK_FRAMES, BLOCK_FRAMES + 1, 2 * BLOCK_FRAMES + 50])
    def test_tokens_come_back(self, bottleneck, frames):
        prior = make_prior()
        for tokens in (audio_tokens(bottleneck, frames), random_tokens(bottleneck, frames)):
            again = decoded(prior, prior.encode(tokens, bottleneck), bottleneck, frames)
            assert again.dtype == np.int64 and np.array_equal(again, tokens)

    @pytest.mark.parametrize("seed", range(20))
    def test_whatever_the_network_predicts(self, seed):
        """Weights at their limits give predictions that are as sure as can be, and wrong."""
        prior = EntropyPrior("00" * 8, RATE, 640, {"native": make_predictor(17, seed=seed, largest=127)})
        tokens = random_tokens("native", 40, seed)
        assert np.array_equal(decoded(prior, prior.encode(tokens, "native"), "native", 40), tokens)

    def test_the_least_likely_digits(self):
        """The worst that can come: each digit is the one that was least expected, for a whole block and more."""
        predictor, mapping = make_predictor(17, largest=127), symbol_mapping("native", 17, 6)
        coder, worst = ClipCoder(predictor, mapping), np.zeros((BLOCK_FRAMES + 3, 6), dtype=np.int64)
        for frame in worst:
            frame[:] = next_frame(coder, np.argmin)
            coder.encode(frame[None])
        tokens = mapping.to_tokens(worst)
        prior = EntropyPrior("00" * 8, RATE, 640, {"native": predictor})
        data = prior.encode(tokens, "native")
        assert len(data) > 4 * 25 * len(worst) / 8  # four times what they take when they are packed
        assert np.array_equal(decoded(prior, data, "native", len(worst)), tokens)

    @pytest.mark.parametrize(("levels", "dimensions"), [(2, 1), (5, 3), (9, 4), (33, 2)])
    def test_grids_of_other_models(self, levels, dimensions):
        prior = EntropyPrior("00" * 8, RATE, 320, {"native": make_predictor(levels, dimensions)})
        tokens = np.random.default_rng(0).integers(0, levels**dimensions, (1, 300))
        assert np.array_equal(decoded(prior, prior.encode(tokens, "native"), "native", 300), tokens)
        assert prior.vocabulary_sizes("native") == (levels**dimensions,)

    def test_equal_tokens_give_equal_bytes(self):
        tokens = audio_tokens("native", 300)
        assert make_prior().encode(tokens, "native") == make_prior().encode(tokens, "native")


class TestSymbolMapping:
    @pytest.mark.parametrize("bottleneck", ["2x15625_700bps", "4x729_1000bps"])
    def test_residual_presets_are_the_native_grid_in_other_words(self, bottleneck):
        native, mapping = (symbol_mapping(name, 17, 6) for name in ("native", bottleneck))
        symbols = mapping.to_symbols(audio_tokens(bottleneck, 2000), 6)
        digits = native.to_symbols(audio_tokens("native", 2000), 6)
        assert np.array_equal(mapping.digits[symbols], digits)

    @pytest.mark.parametrize("bottleneck", GRIDS)
    def test_audio_gives_nothing_else(self, bottleneck):
        """On rounding ties as well, of which all grids have theirs at multiples of 1/16 or 1/5."""
        values = np.concatenate([np.arange(-1024, 1025) / 1024, np.arange(-100, 101) / 100]).clip(-1, 1)
        latents = torch.atanh(torch.from_numpy(values)).expand(1, 6, -1)
        tokens = resolve_bottleneck(bottleneck, LEVELS).encode(latents)[0].numpy()
        mapping = symbol_mapping(bottleneck, 6 if bottleneck.startswith("1x") else 17, 6)
        symbols = mapping.to_symbols(tokens, 6)
        assert symbols is not None and np.array_equal(mapping.to_tokens(symbols), tokens)

    def test_variants_are_as_many_as_the_digit_combinations_that_occur(self):
        """21 of 25 and 31 of 81: measured on audio, see the paper's section 3.2.1."""
        counts = {
            bottleneck: len(symbol_mapping(bottleneck, 17, 6).digits) for bottleneck in GRIDS if bottleneck[0] != "1"
        }
        assert counts == {"native": 17, "2x15625_700bps": 21, "4x729_1000bps": 31}

    @pytest.mark.parametrize("bottleneck", ["2x15625_700bps", "4x729_1000bps"])
    def test_tokens_that_no_audio_gives_are_left_to_others(self, bottleneck):
        tokens = audio_tokens(bottleneck, 10)
        tokens[:, 5] = [size - 1 for size in resolve_bottleneck(bottleneck, LEVELS).codebook_sizes]
        assert make_prior().encode(tokens, bottleneck) is None

    def test_a_second_spelling_takes_one_bit(self):
        """Both spellings of a digit are equally likely; digits that have one cost what they cost on the native grid."""
        prior, mapping = make_prior(), symbol_mapping("4x729_1000bps", 17, 6)
        symbols = mapping.to_symbols(audio_tokens("4x729_1000bps", 250), 6)
        extra = len(prior.encode(mapping.to_tokens(symbols), "4x729_1000bps"))
        extra -= len(prior.encode(audio_tokens("native", 250), "native"))
        assert extra == pytest.approx((mapping.weights[symbols] == 1).sum() / 8, abs=2)


class TestExactness:
    """Files must be readable on any machine, so no prediction may hang on how one adds up, or rounds a power."""

    @pytest.mark.parametrize("loud", [False, True])
    def test_no_sum_is_rounded(self, loud):
        predictor = make_predictor(17, largest=127)
        if loud:  # some layers pass on as much as they may
            predictor = replace(predictor, context_bias=predictor.context_bias + 200)
        recent = predictor.values[np.random.default_rng(1).integers(0, 17, (5, 18))]

        def exact(values: np.ndarray) -> np.ndarray:
            return np.vectorize(Fraction)(values)

        def activate(values: np.ndarray) -> np.ndarray:
            return np.clip(values, 0, 128)

        hidden = activate(exact(recent) @ exact(predictor.recent).T + exact(predictor.recent_bias))
        hidden = activate(hidden @ exact(predictor.context).T + exact(predictor.context_bias))
        sums = hidden @ exact(predictor.head).T + exact(predictor.head_bias)
        assert (exact(predictor.context_sums(recent)) == sums).all()
        width = predictor.output.shape[2]
        for dimension in range(6):
            inputs = activate(sums[:, dimension * width : (dimension + 1) * width])
            scores = inputs @ exact(predictor.output[dimension]).T + exact(predictor.output_bias[dimension])
            expected = np.vectorize(lambda score: score * 256 // 1)(scores)
            assert (predictor.scores(predictor.context_sums(recent), dimension) == expected).all()

    def test_no_power_of_two_is_near_a_half(self):
        exact = 2.0 ** (24 - np.arange(256) / 256)
        assert np.abs(exact % 1 - 0.5).min() > 1e-4
        assert np.array_equal(POWERS[:256], np.round(exact))

    def test_likelihoods_halve_every_256(self):
        likely = likelihoods(np.array([512, 256, 0, -(10**9)]))
        assert likely.tolist() == [1 << 24, 1 << 23, 1 << 22, 0]

    def test_probabilities_are_whole_and_fill_the_range(self):
        coder = ClipCoder(make_predictor(17), symbol_mapping("4x729_1000bps", 17, 6))
        likely = np.random.default_rng(0).integers(0, 1 << 24, (3, 6, 17)) >> np.arange(17)
        probabilities = coder._probabilities(likely)
        assert probabilities.dtype == np.int64 and (probabilities >= 0).all()
        assert (probabilities.sum(axis=-1) == (1 << 24) - 31).all()

    def test_the_package_that_wrote_the_bytes_reads_them_as_well(self):
        predictor, mapping = make_predictor(17), symbol_mapping("native", 17, 6)
        symbols = np.random.default_rng(0).integers(0, 17, (60, 6))
        data = ClipCoder(predictor, mapping).encode(symbols)
        words = np.frombuffer(data + bytes(-len(data) % 4 + 8), ">u4").astype(np.uint32)
        coder, decoder = ClipCoder(predictor, mapping), constriction.stream.queue.RangeDecoder(words)

        def read(likely: np.ndarray) -> int:
            probabilities = coder._probabilities(likely).astype(np.float64)
            return decoder.decode(constriction.stream.model.Categorical(probabilities, perfect=False))

        for frame in symbols:
            assert np.array_equal(next_frame(coder, read), frame)
            coder.encode(frame[None])

    def test_no_byte_is_wasted(self):
        """On average a block is half a byte longer than its information, and never a whole one."""
        coder, excess = ClipCoder(make_predictor(17), symbol_mapping("native", 17, 6)), []
        for seed in range(30):
            symbols = np.random.default_rng(seed).integers(0, 17, (20, 6))
            reader = copy.deepcopy(coder)
            frames = zip(reader._block_scores(symbols), symbols, strict=True)
            likely = np.stack([reader._learn(*frame) for frame in frames])
            shares = np.take_along_axis(reader._probabilities(likely) + 1, symbols[..., None], axis=2) / 2**24
            excess.append(8 * len(coder.encode(symbols)) + np.log2(shares).sum())
        assert max(excess) < 8 and np.mean(excess) < 6

    def test_what_was_coded_is_read_where_the_encoder_is_missing(self, monkeypatch):
        """It is not built for every machine; there, files are packed, and coded ones can be read."""
        prior, tokens = make_prior(), audio_tokens("native", 50)
        data = prior.encode(tokens, "native")
        monkeypatch.setitem(sys.modules, "constriction", None)
        monkeypatch.setattr("modeling_taae.entropy.prior.find_spec", lambda name: None)
        assert np.array_equal(decoded(prior, data, "native", 50), tokens)
        assert not prior.can_encode("native")


class TestBlocks:
    def test_a_block_is_read_without_those_behind_it(self):
        prior, tokens = make_prior(), audio_tokens("native", 3 * BLOCK_FRAMES)
        data = prior.encode(tokens, "native")
        (size,) = BLOCK_SIZE.unpack(data[:2])
        source = io.BytesIO(data)
        blocks = prior.decode(source, "native", tokens.shape[1])
        assert np.array_equal(next(blocks), tokens[:, :BLOCK_FRAMES]) and source.tell() == 2 + size
        assert np.array_equal(np.concatenate(list(blocks), axis=1), tokens[:, BLOCK_FRAMES:])

    def test_a_block_does_not_change_with_what_follows(self):
        prior, tokens = make_prior(), audio_tokens("native", 2 * BLOCK_FRAMES)
        (size,) = BLOCK_SIZE.unpack(prior.encode(tokens, "native")[:2])
        assert prior.encode(tokens, "native")[2 : 2 + size] == prior.encode(tokens[:, :BLOCK_FRAMES], "native")

    def test_what_a_clip_prefers_is_learnt(self):
        predictor, mapping = make_predictor(17), symbol_mapping("native", 17, 6)
        block = np.random.default_rng(0).integers(3, 6, (BLOCK_FRAMES, 6))
        coder = ClipCoder(predictor, mapping)
        first, second = (len(coder.encode(block)) for _ in range(2))
        assert second < 0.9 * first

    def test_a_cut_source_is_an_error(self):
        prior, tokens = make_prior(), audio_tokens("native", 2 * BLOCK_FRAMES)
        data = prior.encode(tokens, "native")
        (size,) = BLOCK_SIZE.unpack(data[:2])
        for length in (0, 1, 2, 1 + size):
            with pytest.raises((ValueError, struct.error)):
                decoded(prior, data[:length], "native", tokens.shape[1])

    def test_noise_is_an_error_or_tokens(self):
        prior, generator = make_prior(), np.random.default_rng(0)
        for _ in range(50):
            try:
                tokens = decoded(prior, generator.bytes(20), "native", 3)
            except ValueError:
                continue
            assert tokens.shape == (1, 3) and np.array_equal(tokens, tokens % 17**6)

    def test_beyond_the_last_symbol_is_an_error(self):
        with pytest.raises(ValueError, match="cannot be decoded"):
            decoded(make_prior(), b"\xff" * 20, "native", 3)


class TestPrior:
    def test_survives_saving(self, tmp_path):
        prior = make_prior()
        prior.save(tmp_path)
        loaded, tokens = EntropyPrior.load(tmp_path), audio_tokens("native", 50)
        assert loaded.identity == prior.identity and loaded.model_identity == prior.model_identity
        assert (loaded.sampling_rate, loaded.hop_length) == (RATE, 640)
        assert loaded.encode(tokens, "native") == prior.encode(tokens, "native")

    def test_everything_counts_for_its_identity(self):
        prior = make_prior()
        others = [make_prior(seed=1), replace(prior, model_identity="00" * 8), replace(prior, hop_length=320)]
        changed = replace(prior.predictors["native"], output_bias=prior.predictors["native"].output_bias + 2**-14)
        others.append(replace(prior, predictors={**prior.predictors, "native": changed}))
        assert len({one.identity for one in (prior, *others)}) == 5

    def test_only_the_bottlenecks_of_its_grids(self):
        assert all(map(make_prior().can_encode, GRIDS))
        native = replace(make_prior(), predictors={"native": make_predictor(17)})
        assert [name for name in GRIDS if native.can_encode(name)] == ["native", "2x15625_700bps", "4x729_1000bps"]
        assert not native.can_encode([([5] * 6, 1.0)]) and not native.can_encode("1x8_of_tomorrow")

    @pytest.mark.parametrize("content", [b"", b"no safetensors", bytes(100)])
    def test_a_damaged_one_is_refused(self, tmp_path, content):
        (tmp_path / PRIOR_FILE).write_bytes(content)
        with pytest.raises(TaaeInputError, match=rf"{PRIOR_FILE}: is no prior.*make_entropy_prior\.py"):
            EntropyPrior.load(tmp_path)

    def test_one_that_lacks_a_layer_or_is_of_another_format_is_refused(self, tmp_path):
        from safetensors.numpy import save_file

        prior = make_prior()
        tensors = prior._tensors()
        save_file(tensors, tmp_path / PRIOR_FILE, {**prior._metadata(), "format": "9"})
        with pytest.raises(TaaeInputError, match="its format is 9, this release reads 1"):
            EntropyPrior.load(tmp_path)
        del tensors["native.context"]
        save_file(tensors, tmp_path / PRIOR_FILE, prior._metadata())
        with pytest.raises(TaaeInputError, match=r"native\.context"):
            EntropyPrior.load(tmp_path)


@pytest.fixture
def model_folder(tiny_model_folder, tmp_path) -> Path:
    """A model's folder with a prior."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    make_prior(load_codec(str(folder)).identity).save(folder)
    return folder


def wav(path: Path, seconds: float = 2.0) -> str:
    noise = 0.1 * np.random.default_rng(0).standard_normal(int(seconds * RATE))
    soundfile.write(path, noise, RATE)
    return str(path)


class TestCommandLine:
    @pytest.mark.parametrize("bottleneck", GRIDS)
    def test_files_are_coded_and_sound_the_same(self, bottleneck, model_folder, tiny_model_folder, tmp_path, capsys):
        speech = wav(tmp_path / "speech.wav")
        for folder, name in ((model_folder, "coded"), (tiny_model_folder, "packed")):
            file, audio = str(tmp_path / f"{name}.taae"), str(tmp_path / f"{name}.wav")
            arguments = ["encode", speech, "-o", file, "--model", str(folder), "--bottleneck", bottleneck]
            assert cli.main(arguments) == 0
            assert cli.main(["decode", file, "-o", audio, "--model", str(folder)]) == 0
        coded, packed = ((tmp_path / f"{name}.taae").read_bytes() for name in ("coded", "packed"))
        assert (coded[4], packed[4]) == (2, 1) and len(coded) < len(packed)
        assert (tmp_path / "coded.wav").read_bytes() == (tmp_path / "packed.wav").read_bytes()
        capsys.readouterr()

    def test_info_needs_no_model(self, model_folder, tmp_path, capsys, monkeypatch):
        file = str(tmp_path / "speech.taae")
        assert cli.main(["encode", wav(tmp_path / "speech.wav"), "-o", file, "--model", str(model_folder)]) == 0
        monkeypatch.setenv("TAAE_MODEL", str(tmp_path / "nowhere"))
        assert cli.main(["info", file]) == 0
        facts = capsys.readouterr().out
        for fact in ("2.00 s (32,000 samples at 16,000 Hz)", "1x46656_400bps", "2, entropy-coded"):
            assert fact in facts
        assert EntropyPrior.load(model_folder).identity in facts and f"{Path(file).stat().st_size} bytes" in facts

    def test_files_of_another_prior_or_without_one_are_refused(self, model_folder, tiny_model_folder, tmp_path, capsys):
        file, target = str(tmp_path / "speech.taae"), str(tmp_path / "again.wav")
        assert cli.main(["encode", wav(tmp_path / "speech.wav"), "-o", file, "--model", str(model_folder)]) == 0
        assert cli.main(["decode", file, "-o", target, "--model", str(tiny_model_folder)]) == 2
        assert "and this model has none; choose the model that encoded with --model" in capsys.readouterr().err
        make_prior(load_codec(str(model_folder)).identity, seed=1).save(model_folder)
        assert cli.main(["decode", file, "-o", target, "--model", str(model_folder)]) == 2
        assert "not with this model's" in capsys.readouterr().err

    def test_a_prior_of_other_weights_is_refused(self, model_folder, tmp_path, capsys):
        make_prior("00" * 8).save(model_folder)
        speech = wav(tmp_path / "speech.wav")
        assert cli.main(["encode", speech, "-o", str(tmp_path / "x.taae"), "--model", str(model_folder)]) == 2
        error = capsys.readouterr().err
        assert f"{PRIOR_FILE}: belongs to model {'00' * 8}, not to this one" in error and error.count("\n") == 1


@pytest.mark.skipif(not (ROOT / "training").is_dir(), reason="the scripts are in a checkout of the project only")
class TestScripts:
    def test_training_pays(self, tmp_path):
        """Digits that follow from the frame before, and from those before them in their own, take fewer bits."""
        from training.make_entropy_prior import train_predictor

        generator = np.random.default_rng(0)
        clips = []
        for _ in range(20):
            first = np.abs(np.cumsum(generator.integers(-1, 2, 200)) + 8) % 17
            clips.append(np.stack([first, 16 - first], axis=1))
        predictor = train_predictor(clips[1:], levels=17, steps=100)
        prior, tokens = EntropyPrior("00" * 8, RATE, 640, {"native": predictor}), clips[0].T[:1] + 17 * clips[0].T[1:]
        data = prior.encode(tokens, "native")
        assert 8 * len(data) / len(clips[0]) < 5  # 8.2 were there nothing to predict, 1.6 at best
        prior.save(tmp_path)
        assert EntropyPrior.load(tmp_path).encode(tokens, "native") == data

    def test_prior_and_results_of_a_model(self, tiny_model_folder, tmp_path, monkeypatch, capsys):
        from training.make_entropy_prior import main as make_entropy_prior

        folder = tmp_path / "model"
        shutil.copytree(tiny_model_folder, folder)
        speech = [wav(tmp_path / "a.wav"), wav(tmp_path / "b.wav", 1.0)]
        assert make_entropy_prior([str(folder), *speech, "--steps", "3"]) == 0
        codec = load_codec(str(folder), device="cpu")
        assert codec.prior.model_identity == codec.identity
        from training.benchmarks import file_sizes
        from training.benchmarks.runner import markers

        measurement = replace(file_sizes.MEASUREMENT, page=tmp_path / "page.md")
        page, (start, end) = measurement.page, markers(measurement.tag, "benchmarks/file_sizes.py of model")
        page.write_text(f"before\n{start}old\n{end}\nafter\n")
        assert measurement.run([str(folder), "--speech", *speech]) == 0
        results = json.loads((folder / "results" / "entropy.json").read_text())
        assert (results["utterances"], results["seconds"], results["frames"]) == (2, 3.0, 75)
        for name, sizes in results["bottlenecks"].items():
            files = [codec.encode(soundfile.read(path, dtype="float32")[0], name) for path in speech]
            coded = sum(len(file.to_bytes(codec.prior)) for file in files)
            assert sizes["version_2"]["file"] == {
                "bytes": coded,
                "bit_rate": pytest.approx(8 * coded / 3),
                "saved": pytest.approx(1 - 8 * coded / 3 / files[0].bit_rate),
            }
            assert sizes["version_2"]["payload"]["bytes"] == coded - 2 * 20
            row = next(line for line in page.read_text().splitlines() if line.startswith(f"| `{name}` |"))
            assert f"| {files[0].bit_rate:.0f} |" in row and f"| {8 * coded / 3:.0f} |" in row
        assert set(results["bottlenecks"]) == set(GRIDS)
        assert codec.identity in page.read_text() and "old" not in page.read_text()

    def test_what_cannot_be_made_is_said(self, tiny_model_folder, tmp_path, capsys):
        from training.make_entropy_prior import main as make_entropy_prior

        assert make_entropy_prior([str(tiny_model_folder), str(tmp_path / "none.parquet")]) == 2
        soundfile.write(tmp_path / "silence.wav", np.zeros(RATE), RATE)
        assert make_entropy_prior([str(tiny_model_folder), str(tmp_path / "silence.wav")]) == 2
        errors = capsys.readouterr().err.splitlines()
        assert ["no such file" in errors[0], "holds no speech" in errors[1], len(errors)] == [True, True, 2]
        assert not (tiny_model_folder / PRIOR_FILE).exists()


def test_a_file_read_with_its_prior_says_all_that_version_1_says(model_folder, tmp_path):
    codec = load_codec(str(model_folder), device="cpu")
    file = codec.encode(soundfile.read(wav(tmp_path / "speech.wav"), dtype="float32")[0], "4x729_1000bps")
    file.save(tmp_path / "coded.taae", codec.prior)
    again = TaaeFile.load(tmp_path / "coded.taae", codec.prior)
    assert again.to_bytes() == file.to_bytes()
