"""Trains a small language model of speech on tokens.

A Llama of a few million parameters is trained on tokens of `taae tokenize`, with a text before the speech if `texts` is
given. It is measured in bits per second of validation speech, and generates a few samples. Under `torchrun` all
processes train, and the main one measures, generates samples and writes the results.
"""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Trainer, TrainingArguments, set_seed

from modeling_taae import TaaeProcessor
from modeling_taae.audio_io import write_audio
from modeling_taae.codec import Codec, load_codec
from modeling_taae.errors import TaaeInputError
from modeling_taae.files import as_json, read_json, write_bytes
from modeling_taae.identity import TokenSource
from training.precision import PrecisionChoice, choose_precision
from training.speech_lm.checkpoints import check_checkpoint, newest_checkpoint, write_folder
from training.speech_lm.corpora import TokenCorpus
from training.speech_lm.measure import bits_per_second
from training.speech_lm.results import Budget, Counts, Parameters, Result, Sample, Settings
from training.speech_lm.sequences import SpeechSequences, character_tokenizer
from training.speech_lm.speak import CODEC_IDENTITY, TOKEN_SOURCE, generate_speech

SETTINGS, RESULT, MODEL = "settings.json", "result.json", "model"


def is_main_process() -> bool:
    """Returns whether this is the main process: the only one, or torchrun's first."""
    return int(os.environ.get("RANK", "0")) == 0


def make_processor(settings: Settings, train: TokenCorpus, codec: Codec | None) -> TaaeProcessor:
    """Returns a processor for the corpus's preset, with a vocabulary of characters.

    Raises:
        TaaeInputError: if there is no such layout, or the corpus has another preset than expected.
    """
    if settings.bottleneck not in (None, train.bottleneck):
        raise TaaeInputError(
            f"{train.name}: holds tokens of {train.bottleneck}, not of {settings.bottleneck}; tokenise with "
            f"--bottleneck {settings.bottleneck}"
        )
    tokenizer = character_tokenizer(train.text_of_rows())
    parts = (train.make_extractor(), tokenizer, codec and codec.model)
    try:
        return TaaeProcessor(*parts, bottleneck=train.bottleneck, layout=settings.layout)
    except ValueError as error:
        raise TaaeInputError(str(error)) from error


def make_language_model(budget: Budget, processor: TaaeProcessor, source: TokenSource) -> LlamaForCausalLM:
    """Returns a Llama with random weights.

    It has embedding rows for all tokens from the start, because there are no trained rows to average for new ones.

    Raises:
        TaaeInputError: if its width is no multiple of its heads.
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
    processor.resize_token_embeddings(model)
    return model


def agreed_precision(budget: Budget) -> PrecisionChoice:
    """Chooses the precision of training in the main process for all, because their measured times could differ."""
    state = PartialState(cpu=not torch.accelerator.is_available())
    wanted = "auto" if budget.bf16 == "auto" else "bf16" if budget.bf16 else "no"
    return broadcast_object_list([choose_precision(wanted, state.device) if is_main_process() else None])[0]


def training_arguments(settings: Settings, precision: PrecisionChoice) -> TrainingArguments:
    """Returns the Trainer's arguments; making them connects the processes of `torchrun`."""
    budget, on_gpu = settings.budget, torch.accelerator.is_available()
    return TrainingArguments(
        output_dir=settings.output_dir,
        max_steps=budget.max_steps,
        per_device_train_batch_size=budget.batch_size,
        learning_rate=budget.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.1,
        adam_beta2=0.95,
        bf16=precision.precision == "bf16",
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        save_steps=budget.checkpoint_every,
        save_total_limit=1,
        logging_steps=max(1, budget.max_steps // 20),
        seed=budget.seed,
        report_to="none",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
    )


def train(arguments: TrainingArguments, model: PreTrainedModel, sequences: SpeechSequences) -> None:
    """Trains, from the newest checkpoint in the output folder if there is one.

    Raises:
        TaaeInputError: if that is damaged.
    """
    checkpoint = newest_checkpoint(Path(arguments.output_dir))
    if checkpoint is not None and (note := check_checkpoint(checkpoint, arguments.world_size)) and is_main_process():
        print(note)
    trainer = Trainer(model, arguments, data_collator=sequences.collate, train_dataset=sequences)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def write_samples(settings: Settings, model: PreTrainedModel, sequences: SpeechSequences) -> list[Sample]:
    """Writes speech of the model as WAV files in `samples/`, and returns their descriptions.

    There are `settings.samples` files of each kind: speech for the texts of clips, or random speech if there are no
    texts; continuations of the first half of clips; and these clips as the codec decodes them.
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
            write_audio(folder / file, cast(Any, waveform), rate)
            told.append(Sample(f"samples/{file}", text, spoken[kind].shape[1]))
    return told


def make_plan(settings: Settings, corpora: list[TokenCorpus]) -> dict[str, Any]:
    """Returns everything that the result depends on, which must not change when a run is resumed.

    Raises:
        TaaeInputError: if the output folder belongs to a run with another plan.
    """
    chosen = {
        name: value for name, value in asdict(settings).items() if name in ("layout", "texts", "samples", "budget")
    }
    now = chosen | {"tokens": [corpus.shards for corpus in corpora]}
    path = Path(settings.output_dir) / SETTINGS
    before = read_json(path)
    for name in now if before else ():
        if without_precision(before.get(name)) != without_precision(now[name]):
            raise TaaeInputError(
                f"{settings.output_dir}: was begun with other {name} ({path}); continue with the same, or choose "
                f"another output_dir{'; a corpus that grew needs one' if name == 'tokens' else ''}"
            )
    return now


def without_precision(value: Any) -> Any:
    """Returns a budget without its precision, which may change when a run is resumed; other values unchanged."""
    return {name: each for name, each in value.items() if name != "bf16"} if isinstance(value, dict) else value


def run(settings: Settings) -> Result | None:
    """Trains, measures and generates samples; finished steps are not repeated.

    Returns:
        The result; None in the processes of `torchrun` that only train.

    Raises:
        TaaeInputError: if a corpus, the codec or the folder cannot be used.
    """
    precision = agreed_precision(settings.budget)
    arguments = training_arguments(settings, precision)
    with arguments.main_process_first(local=False):  # it checks the files, and fills the cache of `datasets`
        corpora = [
            TokenCorpus(names, settings.texts, is_main_process()) for names in (settings.train, settings.validation)
        ]
        plan = make_plan(settings, corpora)
        if done := read_json(Path(settings.output_dir) / RESULT):
            return Result.from_json(done)
        codec = load_codec(settings.codec) if settings.samples and is_main_process() else None
        check_codecs(corpora, codec)
        processor = make_processor(settings, corpora[0], codec)
        heard, unheard = (SpeechSequences(corpus, processor, settings.budget.crop_frames) for corpus in corpora)
    if is_main_process():
        for sequences in (heard, unheard):
            print(f"{sequences.corpus.name}: {len(sequences):,} sequences, {sequences.left_out:,} clips left out")
        print(f"training in {precision}")
        write_bytes(Path(settings.output_dir) / SETTINGS, as_json(plan))
    model = make_language_model(settings.budget, processor, corpora[0].token_source)
    train(arguments, model, heard)
    return finish(settings, model.eval(), heard, unheard, str(precision)) if is_main_process() else None


def finish(
    settings: Settings, model: PreTrainedModel, heard: SpeechSequences, unheard: SpeechSequences, precision: str
) -> Result:
    """Saves a trained model, measures it, lets it speak, and writes the result.

    Args:
        settings: the run's settings.
        model: the model.
        heard: the sequences that it was trained on.
        unheard: the sequences to measure with.
        precision: the precision that it was trained in.

    Raises:
        TaaeInputError: if a file cannot be written.
    """
    processor, folder = heard.processor, Path(settings.output_dir)
    write_folder(folder / MODEL, [model.save_pretrained, processor.save_pretrained])
    embeddings = model.get_input_embeddings().weight.numel()
    result = Result(
        codec=heard.corpus.token_source.identity,
        bottleneck=processor.bottleneck,
        layout=processor.layout,
        texts=settings.texts is not None,
        nominal_bit_rate=heard.corpus.manifest.bottleneck.bit_rate,
        bit_rate=bits_per_second(model, unheard),
        parameters=Parameters(model.num_parameters() - embeddings, embeddings),
        sequences=Counts(len(heard), len(unheard)),
        budget=settings.budget,
        samples=write_samples(settings, model, unheard),
        precision=precision,
    )
    write_bytes(folder / RESULT, as_json(result.to_json()))
    return result


def check_codecs(corpora: list[TokenCorpus], codec: Codec | None) -> None:
    """Refuses tokens of different codecs, which mean different things.

    Raises:
        TaaeInputError: if there are.
    """
    first = corpora[0]
    others = {corpora[1].name: corpora[1].token_source}
    if codec is not None:
        others["codec"] = codec.token_source(first.bottleneck)
    for name, source in others.items():
        if not source.agrees_with(first.token_source):
            raise TaaeInputError(
                f"{name}: is of model {source.identity}, but {first.name} was tokenised with "
                f"{first.token_source.identity}; tokenise both, and decode, with the same model, which --codec names"
            )
