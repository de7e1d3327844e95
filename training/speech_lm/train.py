"""Trains a small language model of speech on tokens.

A Llama of a few million parameters learns the tokens that `taae tokenize` wrote, after a text if `--texts` says where
texts are. It is measured in bits per second of speech that it has not heard, and speaks a few samples.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Trainer, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from modeling_taae import TaaeFeatureExtractor, TaaeProcessor
from modeling_taae.audio_io import write_audio
from modeling_taae.codec import Codec, load_codec
from modeling_taae.errors import TaaeInputError
from modeling_taae.files import as_json, read_json, write_bytes
from modeling_taae.identity import TokenSource
from modeling_taae.speech_grammar_taae import SpeechGrammar
from training.speech_lm.sequences import IGNORED, SpeechSequences, TokenCorpus, character_tokenizer
from training.speech_lm.speak import CODEC_IDENTITY, TOKEN_SOURCE, generate_speech

SETTINGS, RESULT, MODEL = "settings.json", "result.json", "model"


@dataclass
class Budget:
    """Size and training of a language model: with the same, presets and layouts can be compared.

    A step hears the same frames of the same clips whatever the preset and layout, if the corpora have the same clips.

    Args:
        layers: of the transformer.
        hidden_size: of the transformer; its feed-forward layers are four times as wide.
        heads: of attention.
        crop_frames: the most frames of a sequence, at 25 a second.
        batch_size: sequences in a step, on each GPU if there are several.
        max_steps: of the optimiser.
        learning_rate: at its highest; it warms up over a tenth of the steps and falls to zero along a cosine.
        bf16: train in bfloat16, where the device is quicker with it.
        checkpoint_every: steps between checkpoints.
        seed: of weights, order and samples.
    """

    layers: PositiveInt = 4
    hidden_size: PositiveInt = 256
    heads: PositiveInt = 4
    crop_frames: PositiveInt = 250
    batch_size: PositiveInt = 8
    max_steps: PositiveInt = 2_000
    learning_rate: PositiveFloat = 1e-3
    bf16: bool = True
    checkpoint_every: PositiveInt = 500
    seed: int = 0


@dataclass
class Settings:
    """A run.

    Args:
        train: folder of tokens to train on, written by `taae tokenize`.
        validation: another, of the same preset and codec.
        output_dir: folder for checkpoints, model, samples and result; an interrupted run in it goes on.
        bottleneck: the preset that both are expected to have; None takes that of `train`.
        layout: order of a frame's tokens, `interleaved` or `delay`.
        texts: put texts before speech: a column of the corpora, or a Parquet file with columns id and text.
        codec: folder or name of the codec, to decode samples with; None takes that of `taae`.
        samples: how many to make of each kind; 0 needs no codec.
        budget: size and training.
    """

    train: str
    validation: str
    output_dir: str
    bottleneck: str | None = None
    layout: str = "interleaved"
    texts: str | None = None
    codec: str | None = None
    samples: NonNegativeInt = 2
    budget: Budget = field(default_factory=Budget)


def make_processor(settings: Settings, train: TokenCorpus, codec: Codec | None) -> TaaeProcessor:
    """The corpus's preset in a vocabulary of characters.

    Raises:
        TaaeInputError: if there is no such layout, or the corpus has another preset than expected.
    """
    if settings.bottleneck not in (None, train.bottleneck):
        raise TaaeInputError(
            f"{settings.train}: holds tokens of {train.bottleneck}, not of {settings.bottleneck}; tokenise with "
            f"--bottleneck {settings.bottleneck}"
        )
    tokenizer = character_tokenizer(train.text_of_rows())
    facts, loudness = train.manifest["model"], train.manifest["plan"]["loudness"]
    extractor = TaaeFeatureExtractor(
        sampling_rate=facts["sampling_rate"], hop_length=facts["hop_length"], target_loudness=loudness
    )
    try:
        return TaaeProcessor(
            extractor, tokenizer, codec and codec.model, bottleneck=train.bottleneck, layout=settings.layout
        )
    except ValueError as error:
        raise TaaeInputError(str(error)) from error


def make_language_model(budget: Budget, processor: TaaeProcessor, source: TokenSource) -> LlamaForCausalLM:
    """A Llama of random weights.

    It has rows for all tokens from the start, since there are no trained ones that new rows could be the mean of.

    Raises:
        TaaeInputError: if its width cannot be shared among its heads.
    """
    if budget.hidden_size % budget.heads:
        raise TaaeInputError(f"--budget.hidden_size {budget.hidden_size}: is no multiple of {budget.heads} heads")
    set_seed(budget.seed)
    config = LlamaConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=budget.hidden_size,
        intermediate_size=4 * budget.hidden_size,
        num_hidden_layers=budget.layers,
        num_attention_heads=budget.heads,
        tie_word_embeddings=True,
        pad_token_id=processor.tokenizer.pad_token_id,
        bos_token_id=processor.audio_bos_token_id,
        eos_token_id=processor.audio_eos_token_id,
        **{CODEC_IDENTITY: source.identity, TOKEN_SOURCE: source.to_json()},
    )
    model = LlamaForCausalLM(config)
    processor.grow_embeddings(model)
    return model


def train(settings: Settings, model: PreTrainedModel, sequences: SpeechSequences) -> None:
    """Trains, from the newest checkpoint in the output folder if there is one."""
    budget = settings.budget
    arguments = TrainingArguments(
        output_dir=settings.output_dir,
        max_steps=budget.max_steps,
        per_device_train_batch_size=budget.batch_size,
        learning_rate=budget.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.1,
        adam_beta2=0.95,
        bf16=budget.bf16,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.accelerator.is_available(),
        save_steps=budget.checkpoint_every,
        save_total_limit=1,
        logging_steps=max(1, budget.max_steps // 20),
        seed=budget.seed,
        report_to="none",
        remove_unused_columns=False,
    )
    trainer = Trainer(model, arguments, data_collator=sequences.collate, train_dataset=sequences)
    trainer.train(resume_from_checkpoint=newest_checkpoint(Path(settings.output_dir)))


def newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is complete, if there is one: the state is what Trainer writes last."""
    complete = [state.parent for state in folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return str(max(complete, key=lambda checkpoint: int(checkpoint.name.split("-")[1]))) if complete else None


@torch.no_grad()
def bits_per_second(model: PreTrainedModel, sequences: SpeechSequences) -> dict[str, float]:
    """How many bits a second of speech takes when a coder knows the model's predictions.

    Returns:
        `free`, over all tokens; `grammar`, over those that the grammar allows, which is what generation draws from;
        `seconds` of speech.
    """
    grammar, bits, frames = sequences.processor.grammar, {"free": 0.0, "grammar": 0.0}, 0
    for index in tqdm(range(len(sequences)), desc="Measuring", unit="clip", disable=None):
        sequence = sequences[index]
        ids, labels = sequence["input_ids"].to(model.device), sequence["labels"].to(model.device)
        scores = model(ids[None]).logits[0, :-1].float()
        for name, value in sequence_bits(grammar, ids, labels, scores).items():
            bits[name] += value
        frames += sequences.clip(index)[1].shape[1]
    seconds = frames / sequences.corpus.frame_rate
    return {name: value / seconds for name, value in bits.items()} | {"seconds": seconds}


def sequence_bits(grammar: SpeechGrammar, ids: Tensor, labels: Tensor, scores: Tensor) -> dict[str, float]:
    """Bits of the tokens of a sequence that have labels, free and over those that the grammar allows.

    Args:
        grammar: of the tokens.
        ids: (length,) int64.
        labels: (length,) int64.
        scores: (length - 1, vocabulary), of the tokens from the second on.
    """
    places = (labels[1:] != IGNORED).nonzero()[:, 0]
    wanted, scores = labels[1:][places], scores[places]
    # The grammar reads what comes before: each row ends with the token before one that is wanted.
    offsets = places[:, None] - torch.arange(len(ids) - 1, device=ids.device).flip(0)
    prefixes = torch.where(offsets >= 0, ids[offsets.clamp(min=0)], 0)
    candidates = {"free": scores, "grammar": grammar(prefixes, scores)}
    return {name: F.cross_entropy(s, wanted, reduction="sum").item() / math.log(2) for name, s in candidates.items()}


def write_samples(settings: Settings, model: PreTrainedModel, sequences: SpeechSequences) -> list[dict]:
    """Speech by the model as WAV files in `samples/`, and what is in them.

    Of each kind there are `settings.samples`: with texts, the texts of clips; without, nothing in particular; and in
    both cases clips gone on with from their first half, beside the clips themselves as the codec decodes them.
    """
    processor, folder = sequences.processor, Path(settings.output_dir) / "samples"
    rate, told = processor.feature_extractor.sampling_rate, []
    for number in tqdm(range(min(settings.samples, len(sequences))), desc="Speaking", unit="clip", disable=None):
        text, clip = sequences.clip(number)
        half, limit = clip[:, : max(1, clip.shape[1] // 2)], settings.budget.crop_frames
        spoken = {
            "spoken": generate_speech(model, processor, text, frames=limit),
            "continued": generate_speech(model, processor, text, half, max(1, limit - half.shape[1])),
            "original": clip,
        }
        for kind, waveform in zip(spoken, processor.decode_speech(list(spoken.values())), strict=True):
            file = f"{kind}-{number}.wav"
            write_audio(folder / file, waveform, rate)
            told.append({"file": f"samples/{file}", "text": text, "frames": spoken[kind].shape[1]})
    return told


def make_plan(settings: Settings, corpora: list[TokenCorpus]) -> dict:
    """All that the result depends on, which must not change where a run goes on.

    Raises:
        TaaeInputError: if the output folder belongs to a run with another plan.
    """
    chosen = {
        name: value for name, value in asdict(settings).items() if name in ("layout", "texts", "samples", "budget")
    }
    now = chosen | {"tokens": [corpus.manifest["shards"] for corpus in corpora]}
    path = Path(settings.output_dir) / SETTINGS
    before = read_json(path)
    for name in now if before else ():
        if before.get(name) != now[name]:
            raise TaaeInputError(
                f"{settings.output_dir}: was begun with other {name}; go on with what {path} says, or choose another "
                "output_dir"
            )
    return now


def run(settings: Settings) -> dict:
    """Trains, measures and speaks, as far as that has not been done, and returns the result.

    Raises:
        TaaeInputError: if a corpus, the codec or the folder cannot be used.
    """
    corpora = [TokenCorpus(Path(folder), settings.texts) for folder in (settings.train, settings.validation)]
    plan = make_plan(settings, corpora)
    if done := read_json(Path(settings.output_dir) / RESULT):
        return done
    codec = load_codec(settings.codec) if settings.samples else None
    check_codecs(settings, corpora, codec)
    processor = make_processor(settings, corpora[0], codec)
    heard, unheard = (SpeechSequences(corpus, processor, settings.budget.crop_frames) for corpus in corpora)
    for sequences in (heard, unheard):
        print(f"{sequences.corpus.folder}: {len(sequences):,} sequences, {sequences.left_out:,} clips left out")
    write_bytes(Path(settings.output_dir) / SETTINGS, as_json(plan))
    model = make_language_model(settings.budget, processor, corpora[0].source)
    train(settings, model, heard)
    model.eval()
    for part in (model, processor):
        part.save_pretrained(Path(settings.output_dir) / MODEL)
    embeddings = model.get_input_embeddings().weight.numel()
    result = {
        "codec": corpora[0].source.identity,
        "bottleneck": processor.bottleneck,
        "layout": processor.layout,
        "texts": settings.texts is not None,
        "nominal_bit_rate": corpora[0].nominal_bit_rate,
        "bit_rate": bits_per_second(model, unheard),
        "parameters": {"transformer": model.num_parameters() - embeddings, "embeddings": embeddings},
        "sequences": {"train": len(heard), "validation": len(unheard)},
        "budget": asdict(settings.budget),
        "samples": write_samples(settings, model, unheard),
    }
    write_bytes(Path(settings.output_dir) / RESULT, as_json(result))
    return result


def check_codecs(settings: Settings, corpora: list[TokenCorpus], codec: Codec | None) -> None:
    """Refuses tokens of different codecs, which mean different things.

    Raises:
        TaaeInputError: if there are.
    """
    known = corpora[0].source
    others = {settings.validation: corpora[1].source}
    if codec is not None:
        others["codec"] = codec.token_source(corpora[0].bottleneck)
    for name, source in others.items():
        if not source.agrees_with(known):
            raise TaaeInputError(
                f"{name}: is of model {source.identity}, but {settings.train} was tokenised with {known.identity}; "
                "tokenise both, and decode, with the same model, which --codec names"
            )
