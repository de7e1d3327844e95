"""The `.taae` format: exact round trips, size, and refusal of everything damaged or foreign."""

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.tiny_priors import make_predictor, make_prior

from modeling_taae import TaaeModel
from modeling_taae.entropy.prior import GRIDS
from modeling_taae.errors import TaaeInputError
from modeling_taae.quantization_taae import BOTTLENECK_PRESETS, resolve_bottleneck
from modeling_taae.taae_file import (
    CODED_BOTTLENECKS,
    CodedHeader,
    TaaeFile,
    TaaeFileError,
    format_bottleneck,
    model_identity,
    pack_tokens,
    parse_bottleneck,
    read_header,
    token_bits,
    unpack_tokens,
)

LEVELS = (17,) * 6
STAGES = [([5, 4, 3, 8, 2, 7], 1.0), ([5] * 6, 0.1)]


def make_file(bottleneck="1x46656_400bps", num_samples: int = 16_000, hop_length: int = 640, seed: int = 0) -> TaaeFile:
    sizes = resolve_bottleneck(bottleneck, LEVELS).codebook_sizes
    generator = np.random.default_rng(seed)
    codes = np.stack([generator.integers(0, size, -(-num_samples // hop_length)) for size in sizes])
    return TaaeFile(
        audio_codes=codes,
        vocabulary_sizes=sizes,
        bottleneck=bottleneck,
        num_samples=num_samples,
        hop_length=hop_length,
        sampling_rate=16_000,
        model_identity="0123456789abcdef",
    )


def with_checksum(content: bytes) -> bytes:
    return content + struct.pack("<I", zlib.crc32(content))


@pytest.mark.parametrize("bottleneck", [*BOTTLENECK_PRESETS, "native", STAGES])
@pytest.mark.parametrize("num_samples", [1, 640, 641, 5000])
def test_round_trip(tmp_path, bottleneck, num_samples):
    written = make_file(bottleneck, num_samples)
    written.save(tmp_path / "clip.taae")
    read = TaaeFile.load(tmp_path / "clip.taae")
    assert np.array_equal(read.audio_codes, written.audio_codes) and read.audio_codes.dtype == np.int64
    for field in ("vocabulary_sizes", "bottleneck", "num_samples", "hop_length", "sampling_rate", "model_identity"):
        assert getattr(read, field) == getattr(written, field)
    assert read.to_bytes() == written.to_bytes()


def test_ten_seconds_stay_under_600_bytes():
    assert len(make_file(num_samples=160_000).to_bytes()) < 600


def test_overhead_is_a_few_tens_of_bytes():
    for bottleneck, bits in [("1x46656_400bps", 16), ("2x15625_700bps", 28), ("4x729_1000bps", 40), ("native", 25)]:
        overhead = len(make_file(bottleneck, num_samples=160_000).to_bytes()) - -(-250 * bits // 8)
        assert overhead < 90


def test_derived_figures():
    encoded = make_file(num_samples=160_001)
    assert encoded.frames == 251
    assert encoded.duration == pytest.approx(10, abs=1e-3)
    assert encoded.bit_rate == pytest.approx(387.7, abs=0.05)


def test_layout_does_not_change():
    """Files written today are read by every later release, so these bytes are fixed."""
    encoded = TaaeFile(
        audio_codes=np.array([[1, 728], [2, 0]]),
        vocabulary_sizes=(729, 4),
        bottleneck="two",
        num_samples=1000,
        hop_length=640,
        sampling_rate=16_000,
        model_identity="00112233445566ff",
    )
    content = (
        b"TAAE\x01" + bytes.fromhex("00112233445566ff") + struct.pack("<IIQ", 16_000, 640, 1000)
        + b"\x03\x00two" + b"\x02" + struct.pack("<QQ", 729, 4)
        + (1 | 2 << 10 | 728 << 12 | 0 << 22).to_bytes(3, "little")
    )  # fmt: skip
    assert encoded.to_bytes() == with_checksum(content)


def test_every_truncation_is_refused():
    data = make_file().to_bytes()
    for length in range(len(data)):
        with pytest.raises(TaaeFileError):
            TaaeFile.from_bytes(data[:length])


def test_every_changed_byte_is_refused():
    data = make_file().to_bytes()
    for position in range(len(data)):
        for change in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= change
            with pytest.raises(TaaeFileError):
                TaaeFile.from_bytes(bytes(damaged))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a .taae file"),
        (b"RIFF" + bytes(100), "not a .taae file"),
        (b"TAAE", "truncated"),
        (b"TAAE\x03" + bytes(100), "version 3.*reads 1 and 2.*update"),
        (b"TAAE\x02" + bytes(100), "truncated or corrupt"),
        (with_checksum(b"TAAE\x02" + bytes(5)), "malformed"),
        (with_checksum(b"TAAE\x02\x04" + bytes([1] * 100)), "malformed.*no bottleneck 4"),
        (make_file().to_bytes()[:-1], "truncated or corrupt"),
        (make_file().to_bytes() + b"\0", "truncated or corrupt"),
        (with_checksum(b"TAAE\x01"), "malformed"),
        (with_checksum(make_file().to_bytes()[:-5]), "malformed"),
        (with_checksum(make_file().to_bytes()[:-4] + b"\0"), "malformed"),
    ],
)
def test_foreign_bytes_are_refused(data, message):
    with pytest.raises(TaaeFileError, match=message):
        TaaeFile.from_bytes(data)


def test_nothing_with_a_right_checksum_crashes_the_reader():
    """What another program wrote wrongly is refused as well, without taking much memory."""
    content = make_file(num_samples=2000).to_bytes()[:-4]
    for position in range(5, len(content)):
        for value in (0, 0x40, 0x7F, 0xFF):
            changed = bytearray(content)
            changed[position] = value
            try:
                TaaeFile.from_bytes(with_checksum(bytes(changed)))
            except TaaeFileError:
                continue


def test_messages_name_the_file(tmp_path):
    (tmp_path / "clip.taae").write_bytes(b"RIFF")
    with pytest.raises(TaaeFileError, match=r"clip\.taae: this is not a \.taae file"):
        TaaeFile.load(tmp_path / "clip.taae")
    with pytest.raises(TaaeInputError, match=r"none\.taae: cannot be read"):
        TaaeFile.load(tmp_path / "none.taae")


@pytest.mark.parametrize(
    ("codes", "sizes", "message"),
    [
        (np.zeros((1, 24), int), (100,), r"\(1, 25\), not \(1, 24\)"),
        (np.zeros((2, 25), int), (100,), r"\(1, 25\), not \(2, 25\)"),
        (np.full((1, 25), 100), (100,), "0 to 99"),
        (np.full((1, 25), -1), (100,), "0 to 99"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(codes, sizes, message):
    with pytest.raises(TaaeFileError, match=message):
        TaaeFile(codes, sizes, "1x46656_400bps", 16_000, 640, 16_000, "0123456789abcdef")


def make_coded_file(bottleneck: str = "1x46656_400bps", num_samples: int = 16_000) -> tuple[TaaeFile, bytes]:
    """A clip as audio gives it, and its bytes in version 2."""
    quantizer = resolve_bottleneck(bottleneck, LEVELS)
    generator = torch.Generator().manual_seed(0)
    tokens = quantizer.encode(torch.randn(1, 6, -(-num_samples // 640), generator=generator))[0].numpy()
    sizes = quantizer.codebook_sizes
    encoded = TaaeFile(tokens, sizes, bottleneck, num_samples, 640, 16_000, "0123456789abcdef")
    data = encoded.to_bytes(PRIOR)
    assert data[4] == 2
    return encoded, data


PRIOR = make_prior("0123456789abcdef")


class TestEntropyCoded:
    """Version 2, with a prior whose predictions are of no use: all that it saves is the header's length."""

    @pytest.fixture(autouse=True)
    def range_coder(self):
        pytest.importorskip("constriction", reason="there is no range coder for this machine on PyPI")

    @pytest.mark.parametrize("bottleneck", [*BOTTLENECK_PRESETS, "native"])
    @pytest.mark.parametrize("num_samples", [1, 640, 641, 200_000])
    def test_round_trip(self, tmp_path, bottleneck, num_samples):
        written, data = make_coded_file(bottleneck, num_samples)
        written.save(tmp_path / "clip.taae", PRIOR)
        assert (tmp_path / "clip.taae").read_bytes() == data
        read = TaaeFile.load(tmp_path / "clip.taae", PRIOR)
        assert np.array_equal(read.audio_codes, written.audio_codes) and read.audio_codes.dtype == np.int64
        for field in ("vocabulary_sizes", "bottleneck", "num_samples", "hop_length", "sampling_rate", "model_identity"):
            assert getattr(read, field) == getattr(written, field)

    def test_version_1_is_read_beside_it(self):
        written, _ = make_coded_file()
        assert np.array_equal(TaaeFile.from_bytes(written.to_bytes(), PRIOR).audio_codes, written.audio_codes)

    def test_layout_does_not_change(self):
        """Files written today are read by every later release, so these bytes are fixed."""
        written, data = make_coded_file("2x15625_700bps", num_samples=64_001)
        header = b"TAAE\x02\x02" + bytes.fromhex(PRIOR.identity) + struct.pack("<HI", 640, 64_001)
        assert len(header) == 16
        assert data == with_checksum(header + PRIOR.encode(written.audio_codes, "2x15625_700bps"))

    def test_every_bottleneck_that_can_be_coded_has_a_place(self):
        assert set(CODED_BOTTLENECKS) == set(GRIDS)

    def test_every_truncation_is_refused(self):
        _, data = make_coded_file()
        for length in range(len(data)):
            with pytest.raises(TaaeFileError):
                TaaeFile.from_bytes(data[:length], PRIOR)

    def test_every_changed_byte_is_refused(self):
        _, data = make_coded_file()
        for position in range(len(data)):
            for change in (0x01, 0x80, 0xFF):
                damaged = bytearray(data)
                damaged[position] ^= change
                with pytest.raises(TaaeFileError):
                    TaaeFile.from_bytes(bytes(damaged), PRIOR)

    def test_nothing_with_a_right_checksum_crashes_the_reader(self):
        content = make_coded_file(num_samples=2000)[1][:-4]
        for position in range(5, len(content)):
            for value in (0, 0x40, 0x7F, 0xFF):
                changed = bytearray(content)
                changed[position] = value
                try:
                    TaaeFile.from_bytes(with_checksum(bytes(changed)), PRIOR)
                except TaaeFileError:
                    continue

    def test_another_prior_or_none_is_refused(self, tmp_path):
        _, data = make_coded_file()
        (tmp_path / "clip.taae").write_bytes(data)
        with pytest.raises(
            TaaeFileError, match=rf"clip\.taae: .*prior {PRIOR.identity}, and this model has none.*--model"
        ):
            TaaeFile.load(tmp_path / "clip.taae")
        other = make_prior("0123456789abcdef", seed=1)
        with pytest.raises(TaaeFileError, match=rf"prior {PRIOR.identity}, not with this model's \({other.identity}\)"):
            TaaeFile.from_bytes(data, other)

    def test_description_needs_no_prior(self):
        written, data = make_coded_file("native", num_samples=12_345)
        _, header = read_header(data)
        assert header == CodedHeader("native", PRIOR.identity, 16_000, 12_345)

    def test_where_the_encoder_is_missing_files_are_packed(self, monkeypatch):
        encoded, coded = make_coded_file()
        monkeypatch.setattr("modeling_taae.entropy.prior.find_spec", lambda name: None)
        assert encoded.to_bytes(PRIOR) == encoded.to_bytes()
        assert np.array_equal(TaaeFile.from_bytes(coded, PRIOR).audio_codes, encoded.audio_codes)

    @pytest.mark.parametrize(
        "change",
        [
            {"bottleneck": [([17] * 6, 1.0)]},
            {"bottleneck": "1x8_of_tomorrow"},
            {"model_identity": "ff" * 8},
            {"sampling_rate": 24_000},
            {"hop_length": 320, "num_samples": 8_000},
            {"vocabulary_sizes": (2**40,)},
        ],
    )
    def test_what_the_prior_does_not_know_is_packed(self, change):
        encoded = replace(make_coded_file("native")[0], **change)
        assert encoded.to_bytes(PRIOR) == encoded.to_bytes()

    def test_a_rate_that_two_bytes_cannot_tell_is_packed(self):
        encoded, prior = (replace(one, sampling_rate=16_001) for one in (make_coded_file()[0], PRIOR))
        assert encoded.to_bytes(prior) == encoded.to_bytes()

    @pytest.mark.parametrize("bottleneck", ["2x15625_700bps", "4x729_1000bps"])
    def test_tokens_that_no_audio_gives_are_packed(self, bottleneck):
        encoded = make_file(bottleneck)
        assert encoded.to_bytes(PRIOR) == encoded.to_bytes()

    def test_the_shorter_version_is_written(self):
        """A prior that is wrong about a long clip makes it longer than packing does."""
        encoded = make_file("1x46656_400bps", num_samples=640 * 300)
        wrong = replace(PRIOR, predictors={"1x46656_400bps": make_predictor(6, largest=127)})
        assert len(wrong.encode(encoded.audio_codes, encoded.bottleneck)) > len(encoded.to_bytes())
        assert encoded.to_bytes(wrong) == encoded.to_bytes()


class TestPacking:
    def test_fewest_bits(self):
        assert [token_bits(size) for size in (2, 3, 4, 5, 729, 15_625, 46_656, 65_536, 65_537, 2**63)] == [
            1, 2, 2, 3, 10, 14, 16, 16, 17, 63,
        ]  # fmt: skip

    @pytest.mark.parametrize("sizes", [(2,), (3, 2), (46_656,), (729,) * 4, (17**6, 5, 2**40), (2**63,)])
    @pytest.mark.parametrize("frames", [1, 7, 100])
    def test_round_trip(self, sizes, frames):
        generator = np.random.default_rng(frames)
        tokens = np.stack([generator.integers(0, size - 1, frames, dtype=np.int64, endpoint=True) for size in sizes])
        tokens[:, 0] = [size - 1 for size in sizes]
        payload = pack_tokens(tokens, sizes)
        assert len(payload) == -(-frames * sum(map(token_bits, sizes)) // 8)
        assert np.array_equal(unpack_tokens(payload, sizes, frames), tokens)


class TestBottleneckText:
    @pytest.mark.parametrize("bottleneck", ["native", "4x729_1000bps", STAGES, [([3] * 6, 1 / 3)], [([2], 1e-20)]])
    def test_round_trip(self, bottleneck):
        assert parse_bottleneck(format_bottleneck(bottleneck)) == bottleneck

    def test_spelling(self):
        assert format_bottleneck([((5, 5), 1), ((3, 3), 0.25)]) == "5,5@1.0/3,3@0.25"

    @pytest.mark.parametrize("text", ["5@", "@1", "5;5@1", "5,5@1@2", "5@1/", "5@one"])
    def test_misspelt_stages_are_refused(self, text):
        with pytest.raises(TaaeInputError, match="is no bottleneck"):
            parse_bottleneck(text)


class TestModelIdentity:
    def test_is_16_hexadecimal_digits_and_the_models_own(self, tiny_model, make_tiny_model):
        assert len(bytes.fromhex(model_identity(tiny_model))) == 8
        assert model_identity(make_tiny_model(seed=0)) == model_identity(tiny_model)
        assert model_identity(make_tiny_model(seed=1)) != model_identity(tiny_model)

    def test_survives_saving(self, tiny_model, tiny_model_folder):
        assert model_identity(TaaeModel.from_pretrained(tiny_model_folder)) == model_identity(tiny_model)

    def test_does_not_depend_on_the_dtype_that_holds_the_values(self, make_tiny_model):
        half = make_tiny_model(seed=0).to(torch.bfloat16)
        identity = model_identity(half)
        assert model_identity(half.float()) == identity

    def test_does_not_depend_on_weight_norm(self, make_tiny_model, tmp_path):
        model = make_tiny_model(seed=0).apply_weight_norm()
        identity = model_identity(model)
        model.save_pretrained(tmp_path)
        assert model_identity(TaaeModel.from_pretrained(tmp_path)) == identity
        assert model_identity(model.remove_weight_norm()) == identity

    def test_every_value_counts(self, make_tiny_model):
        model = make_tiny_model(seed=0)
        before = model_identity(model)
        with torch.no_grad():
            model.decoder.conv_out.weight.view(-1)[-1] += 1e-3
        assert model_identity(model) != before
