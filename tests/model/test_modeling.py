"""The model as its users meet it: sizes, configuration, arguments and their errors, saving and loading, dtypes."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import infer_auto_device_map
from safetensors.torch import load_file, save_file
from support.tiny_models import TINY, VARIANTS, make_audio, make_model
from transformers import AutoConfig, AutoModel, AutoModelForAudioTokenization

from modeling_taae import TaaeConfig, TaaeModel, convolution_taae
from modeling_taae.transformer_taae import TaaeTransformerLayer


def count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class TestSizes:
    @pytest.mark.parametrize(
        ("name", "expected"), [("950m", 953_319_756), ("480m", 483_170_636), ("240m", 248_096_076)]
    )
    def test_published_sizes_in_training(self, name: str, expected: int) -> None:
        with torch.device("meta"):
            model = TaaeModel(TaaeConfig.named(name)).apply_weight_norm()
        assert count_parameters(model) == expected

    def test_sides_and_layers_of_the_default(self) -> None:
        with torch.device("meta"):
            model = TaaeModel(TaaeConfig()).apply_weight_norm()
            assert count_parameters(TaaeTransformerLayer(TaaeConfig(), 1024)) == 16_791_040
        assert count_parameters(model.encoder) == 476_659_724
        assert count_parameters(model.decoder) == 476_660_032

    @pytest.mark.parametrize(("name", "millions"), [("nano", (12, 14)), ("small", (30, 34))])
    def test_small_ones_have_the_published_frame_rate(self, name: str, millions: tuple[int, int]) -> None:
        config = TaaeConfig.named(name)
        with torch.device("meta"):
            assert millions[0] <= count_parameters(TaaeModel(config)) / 1e6 <= millions[1]
        assert (config.hop_length, config.frame_rate) == (640, 25.0)

    def test_an_unknown_size_is_an_error_that_lists_the_known(self) -> None:
        with pytest.raises(ValueError, match="no TAAE size named '1b'.*950m, 480m, 240m, nano, small"):
            TaaeConfig.named("1b")

    def test_names_can_be_overridden(self) -> None:
        assert TaaeConfig.named("nano", causal=True).causal


class TestConfig:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_round_trips(self, tmp_path: Path, variant: str) -> None:
        config = TaaeConfig(**{**TINY, **VARIANTS[variant]})
        assert TaaeConfig(**config.to_dict()).to_dict() == config.to_dict()
        config.save_pretrained(tmp_path)
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert isinstance(loaded, TaaeConfig)
        for name in ("hidden_sizes", "strides", "sliding_window", "quantization_levels", "bottleneck", "causal"):
            assert getattr(loaded, name) == getattr(config, name), name

    def test_stages_round_trip(self, tmp_path: Path) -> None:
        make_model(bottleneck=[([5] * 6, 1.0), ([3] * 6, 0.25)]).save_pretrained(tmp_path)
        encoded = AutoModel.from_pretrained(tmp_path).encode(make_audio(1, 64))
        assert encoded.audio_codes.shape[1] == 2

    def test_derived_values(self) -> None:
        config = TaaeConfig(patch_size=160, hidden_sizes=(8, 8), strides=(3, 5), sampling_rate=24_000)
        assert (config.hop_length, config.frame_rate) == (2400, 10.0)
        assert config.quantization_levels == (17,) * 6
        assert config.attention_window == (63, 64)
        assert TaaeConfig(causal=True).attention_window == (63, 0)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"strides": (1, 2, 2)}, "one entry per block.*strides 3"),
            ({"strides": (), "hidden_sizes": (), "encoder_depths": (), "decoder_depths": ()}, "at least one block"),
            ({"encoder_depths": (8,)}, "encoder_depths 1"),
            ({"strides": (1, 0)}, "strides must be integers of at least 1"),
            ({"decoder_depths": (1, -1)}, "decoder_depths must be integers of at least 0"),
            ({"hidden_sizes": (1024, 1000), "strides": (1, 2)}, "1000 cannot be split into heads of 128"),
            ({"hidden_sizes": (512, 1024), "strides": (2, 1)}, "cannot change the width from 512 to 1024"),
            ({"head_dim": 6, "hidden_sizes": (12, 12)}, "a multiple of 4"),
            ({"sliding_window": (63,)}, "sliding_window is .left, right."),
            ({"sliding_window": (63, -1)}, "sliding_window must be integers of at least 0"),
            ({"quantization_levels": (17, 17)}, "one entry per latent dimension .6.; got 2"),
            ({"quantization_levels": 1}, "quantization_levels must be integers of at least 2"),
            ({"training_levels": (1, 17)}, "training_levels must be integers of at least 2"),
            ({"training_noise_probability": 0.8}, "at most 1 in sum"),
            ({"patch_size": 0}, "patch_size must be an integer of at least 1.* not 0"),
            ({"latent_dim": 0}, "latent_dim must be an integer of at least 1.* not 0"),
            ({"latent_dim": 10**9}, "latent_dim must be an integer.*at most 1024"),
            ({"training_levels": ()}, "at least one grid"),
            ({"causal": "x"}, "causal must be true or false, not 'x'"),
            ({"soft_clip": 1}, "soft_clip must be true or false, not 1"),
            ({"norm_eps": float("nan")}, "norm_eps must be a number above 0"),
            ({"qk_norm_eps": -1e-6}, "qk_norm_eps must be a number above 0"),
            ({"rope_theta": float("inf")}, "rope_theta must be a number above 0"),
            ({"rope_theta": "10000"}, "rope_theta must be a number.*not '10000'"),
            ({"encoder_depths": (10**9, 1)}, "encoder_depths must be integers.*at most 1024"),
            ({"strides": (1, 2.0)}, "strides must be integers"),
            ({"strides": (True, 2)}, "strides must be integers"),
            ({"hidden_sizes": "1024"}, "hidden_sizes must be integers"),
            ({"sampling_rate": 16_000.0}, "sampling_rate must be an integer"),
            ({"sampling_rate": None}, "sampling_rate must be an integer"),
            ({"bottleneck": 700}, "bottleneck must be a name or a list of stages"),
            ({"token_ancestors": {"encoder": "x"}}, "token_ancestors must be"),
        ],
    )
    def test_errors_say_what_does_not_fit(self, wrong: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TaaeConfig(**wrong)


class TestArguments:
    def test_forward_is_encode_then_decode(self) -> None:
        model, audio = make_model(), make_audio(2, 333)
        with torch.no_grad():
            output = model(audio, bottleneck="2x15625_700bps")
            encoded = model.encode(audio, bottleneck="2x15625_700bps")
            decoded = model.decode(encoded.audio_codes, bottleneck="2x15625_700bps")
        assert torch.equal(output.audio_codes, encoded.audio_codes)
        assert torch.equal(output.latents, encoded.latents)
        assert torch.equal(output.audio_codes_mask, encoded.audio_codes_mask)
        assert torch.equal(output.audio_values, decoded.audio_values[..., :333])

    def test_shapes_and_dtypes(self) -> None:
        model = make_model()
        with torch.no_grad():
            encoded = model.encode(make_audio(3, 333), bottleneck="4x729_1000bps")
            decoded = model.decode(encoded.audio_codes, bottleneck="4x729_1000bps")
        assert encoded.audio_codes.shape == (3, 4, 11)
        assert encoded.audio_codes_mask.tolist() == [[1] * 11] * 3
        assert encoded.latents.shape == (3, 6, 11)
        assert decoded.audio_values.shape == (3, 1, 11 * 32)
        assert (encoded.audio_codes.dtype, encoded.audio_codes_mask.dtype) == (torch.int64, torch.int64)

    def test_none_stands_for_the_configured_bottleneck(self) -> None:
        model = make_model(bottleneck="2x15625_700bps")
        with torch.no_grad():
            encoded = model.encode(make_audio(1, 64))
            assert torch.equal(encoded.audio_codes, model.encode(make_audio(1, 64), bottleneck="2x15625_700bps")[0])
            assert model.decode(encoded.audio_codes).audio_values.shape == (1, 1, 64)

    def test_the_default_bottleneck_is_the_400_bit_one(self) -> None:
        encoded = make_model().encode(make_audio(1, 64))
        assert torch.equal(encoded.audio_codes, make_model().bottleneck("1x46656_400bps").encode(encoded.latents))

    def test_tuples_on_request(self) -> None:
        model, audio = make_model(), make_audio(1, 64)
        with torch.no_grad():
            codes, mask, latents = model.encode(audio, return_dict=False)
            (decoded,) = model.decode(codes, return_dict=False)
        assert (codes.shape, mask.shape, latents.shape, decoded.shape) == ((1, 1, 2), (1, 2), (1, 6, 2), (1, 1, 64))

    def test_latents_decode_without_rounding(self) -> None:
        model = make_model()
        latents = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            decoded = model.decode(latents=latents).audio_values
            assert torch.equal(decoded, model.decoder(torch.tanh(latents)))
            rounded = model.decode(model.bottleneck("native").encode(latents), bottleneck="native").audio_values
        assert (decoded - rounded).abs().max() > 1e-3

    @pytest.mark.parametrize("shape", [(64,), (1, 64), (1, 2, 64), (1, 1, 0), (0, 1, 64), (1, 1, 1, 64)])
    def test_audio_of_another_shape_is_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"input_values must be \(batch, 1, samples\) with at least one sample"):
            make_model().encode(torch.zeros(shape))

    def test_integers_are_refused(self) -> None:
        for model, state in (
            (make_model(), {}),
            (causal := make_model(causal=True), {"state": causal.streaming_state()}),
        ):
            with pytest.raises(
                ValueError, match=r"floats with full scale at 1, not torch.int16: the feature extractor"
            ):
                model.encode(torch.ones(1, 1, 64, dtype=torch.int16), **state)

    @pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
    def test_audio_that_is_not_finite_is_refused(self, wrong: float) -> None:
        model, audio = make_model(), make_audio(2, 64)
        audio[1, 0, 40] = wrong
        for method in (model.encode, model):
            with pytest.raises(ValueError, match="latents of item 1 are NaN from frame 0 on"):
                method(audio)

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (torch.ones(2, 63), r"padding_mask of input_values \(2, 1, 64\) is \(batch, samples\), not \(2, 63\)"),
            (torch.ones(64), r"not \(64,\)"),
            (torch.ones(2, 1, 64), r"not \(2, 1, 64\)"),
            (torch.arange(64).expand(2, -1) > 20, "ones followed by zeros"),
            (torch.arange(64).expand(2, -1) % 2, "ones followed by zeros"),
        ],
    )
    def test_a_mask_that_does_not_fit_is_refused(self, mask: torch.Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make_model().encode(torch.zeros(2, 1, 64), mask)

    def test_decode_wants_tokens_or_latents_of_the_right_shape(self) -> None:
        model, tokens, latents = make_model(), torch.zeros(2, 1, 3, dtype=torch.int64), torch.zeros(2, 6, 3)
        for wrong in ({}, {"audio_codes": tokens, "latents": latents}):
            with pytest.raises(ValueError, match="either audio_codes or latents"):
                model.decode(**wrong)
        with pytest.raises(ValueError, match=r"latents must be \(batch, 6, frames\), not \(2, 3, 6\)"):
            model.decode(latents=latents.mT)
        with pytest.raises(ValueError, match="go with no bottleneck"):
            model.decode(latents=latents, bottleneck="native")
        for nothing in (tokens[..., :0], tokens[:0]):
            with pytest.raises(ValueError, match="no frame to decode"):
                model.decode(nothing)
        for wrong_mask in (torch.ones(2, 4), torch.ones(1, 3), torch.ones(3)):
            for codes in ({"audio_codes": tokens}, {"latents": latents}):
                with pytest.raises(ValueError, match="mask"):
                    model.decode(**codes, audio_codes_mask=wrong_mask)
        with pytest.raises(ValueError, match="ones followed by zeros"):
            model.decode(tokens, audio_codes_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]))

    def test_inference_repeats_itself(self) -> None:
        model, audio = make_model(), make_audio(1, 200)
        with torch.no_grad():
            assert torch.equal(model(audio).audio_values, model(audio).audio_values)


class TestSavingAndLoading:
    @pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForAudioTokenization])
    @pytest.mark.parametrize("variant", ["plain", "everything", "causal"])
    def test_a_saved_model_is_the_same_when_loaded(self, tmp_path: Path, auto_class: type, variant: str) -> None:
        model, audio = make_model(**VARIANTS[variant]), make_audio(2, 200)
        model.save_pretrained(tmp_path)
        loaded = auto_class.from_pretrained(tmp_path)
        assert isinstance(loaded, TaaeModel)
        assert not loaded.training
        with torch.no_grad():
            assert torch.equal(loaded(audio).audio_values, model(audio).audio_values)

    def test_weights_stored_in_bfloat16_load_as_float32_unless_asked(self, tmp_path: Path) -> None:
        model = make_model()
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["dtype"] == "float32"
        file = tmp_path / "model.safetensors"
        state = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}
        save_file(state, file, metadata={"format": "pt"})
        loaded = AutoModel.from_pretrained(tmp_path)
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, state[name].float())
        half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        # What was saved from there has the same values, and so the same identity: it has to give the same tokens.
        half.save_pretrained(tmp_path)
        assert AutoModel.from_pretrained(tmp_path).dtype == torch.float32
        assert AutoModel.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16

    def test_only_the_main_process_saves(self, tmp_path: Path) -> None:
        """With the arguments in the order in which Transformers has them."""
        make_model().save_pretrained(tmp_path, False)
        assert not (tmp_path / "config.json").exists()

    def test_a_subclass_is_saved_with_its_own_code(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        code = "from modeling_taae import TaaeModel\n\n\nclass MyTaae(TaaeModel):\n    pass\n"
        (tmp_path / "my_codec.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        from my_codec import MyTaae

        MyTaae(make_model().config).save_pretrained(tmp_path / "saved")
        names = json.loads((tmp_path / "saved" / "config.json").read_text())["auto_map"]
        assert names["AutoModel"] == names["AutoModelForAudioTokenization"] == "my_codec.MyTaae"
        assert (tmp_path / "saved" / "my_codec.py").is_file()

    def test_a_state_dict_with_weight_norm_is_fused(self, tmp_path: Path) -> None:
        """As Accelerate gathers it from a model that trains."""
        model = make_model()
        expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.apply_weight_norm()
        model.save_pretrained(tmp_path, state_dict=model.state_dict())
        loaded = AutoModel.from_pretrained(tmp_path).state_dict()
        assert loaded.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(loaded[name], tensor, rtol=1e-6, atol=1e-7)

    def test_a_side_is_never_cut_between_devices(self) -> None:
        model = make_model()
        size = max(4 * count_parameters(side) for side in (model.encoder, model.decoder))
        memory = {"cpu": 1.5 * size, "disk": 1.5 * size}
        layers, sides = (
            infer_auto_device_map(model, memory, no_split_module_classes=kept)
            for kept in (["TaaeTransformerLayer"], list(model._no_split_modules))
        )
        assert any(name.startswith("encoder.") for name in layers), "where sides may be cut, this one is"
        assert not any(name.startswith(("encoder.", "decoder.")) for name in sides)

    def test_missing_weights_start_like_new_ones(self, tmp_path: Path) -> None:
        make_model().save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        scale = "encoder.blocks.0.transformer.layers.0.attention_scale.scale"
        norm = "decoder.blocks.1.transformer.layers.0.feed_forward_norm.weight"
        del state[scale], state[norm]
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
        loaded = AutoModel.from_pretrained(tmp_path).state_dict()
        assert loaded[scale].tolist() == [0.5] * 16
        assert loaded[norm].tolist() == [1.0] * 16


class TestHalfPrecision:
    def test_bfloat16_runs_and_its_tokens_come_from_float64(self) -> None:
        model, audio = make_model().to(torch.bfloat16), make_audio(2, 3200)
        mask = torch.ones(2, 3200)
        mask[1, 999:] = 0
        with torch.no_grad():
            output = model(audio, mask, bottleneck="native")
        assert (output.latents.dtype, output.audio_values.dtype) == (torch.bfloat16, torch.bfloat16)
        assert output.audio_values.isfinite().all()
        digits = torch.round((torch.tanh(output.latents.double()) + 1) * 8).long()
        assert torch.equal(output.audio_codes, (digits * 17 ** torch.arange(6)[:, None]).sum(dim=1, keepdim=True))

    def test_bfloat16_is_near_float32(self) -> None:
        model, audio = make_model(), make_audio(2, 3200)
        with torch.no_grad():
            expected = model.encode(audio).latents
            latents = model.to(torch.bfloat16).encode(audio).latents
        assert (latents - expected).abs().mean() < 0.03 * expected.abs().mean()


@pytest.mark.slow
def test_one_graph_serves_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.compile(fullgraph=True, dynamic=True)`, with a backend that runs the graph instead of compiling it.

    Lengths of less than a window, of whole windows, of more than a piece; half of them are no whole frames.
    """
    monkeypatch.setattr(convolution_taae, "CHUNK_STEPS", 30)
    model, graphs = make_model(hidden_sizes=(16,), strides=(2,), encoder_depths=(1,), decoder_depths=(1,)), []

    def run_as_is(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    encode = torch.compile(model.encode, fullgraph=True, dynamic=True, backend=run_as_is)
    decode = torch.compile(model.decode, fullgraph=True, dynamic=True, backend=run_as_is)
    for frames in (20, 33, 41, 24, 12, 11, 3, 2):
        samples = 16 * frames - frames % 2
        audio, mask = make_audio(2, samples), torch.ones(2, samples)
        mask[1, 20:] = 0
        with torch.no_grad():
            compiled, expected = encode(audio, mask), model.encode(audio, mask)
            decoded = decode(compiled.audio_codes, compiled.audio_codes_mask).audio_values
        assert torch.equal(compiled.audio_codes, expected.audio_codes)
        torch.testing.assert_close(
            decoded, model.decode(expected.audio_codes, expected.audio_codes_mask).audio_values, rtol=0, atol=2e-6
        )
    assert len(graphs) == 2


def test_layers_are_given_contiguous_inputs() -> None:
    """PyTorch 2.13 compiles them wrongly for CPUs otherwise: in bfloat16 all of the published small model was NaN."""
    model, inputs = make_model(), []
    for module in model.modules():
        if isinstance(module, TaaeTransformerLayer):
            module.register_forward_pre_hook(lambda layer, arguments: inputs.append(arguments[0]))
    model(make_audio(2, 640))
    assert inputs and all(hidden_states.is_contiguous() for hidden_states in inputs)


def test_a_misspelt_argument_is_an_error() -> None:
    with pytest.raises(TypeError, match="botleneck"):
        make_model().encode(torch.zeros(1, 1, 640), botleneck="native")
    for wrong in ("attention_mask", "paddin_mask", "state"):
        with pytest.raises(TypeError, match=f"no argument '{wrong}'. The mask is called padding_mask"):
            make_model()(torch.zeros(1, 1, 640), **{wrong: torch.ones(1, 640)})
    make_model()(torch.zeros(1, 1, 640), output_hidden_states=True)
