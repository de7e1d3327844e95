"""Teaches speech to a language model of text: `python training/speech_lm/teach.py MODEL --tokens TOKENS … -o FOLDER`.

This is an example to copy and change. It runs Transformers' Trainer on tokens of `taae tokenize`. MODEL is a causal
language model of text, as a folder or a Hub name; TOKENS are folders, or names of data sets on the Hub.
`training/speak.py` generates speech with the result.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    Trainer,
    TrainingArguments,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout's training/ is not installed

from modeling_taae import TaaeProcessor
from modeling_taae.errors import TaaeInputError
from training.commands import exit_status
from training.precision import choose_precision
from training.speech_lm.corpora import TokenCorpus
from training.speech_lm.speak import CODEC_IDENTITY, TOKEN_SOURCE


def make_processor(model: str, corpus: TokenCorpus) -> TaaeProcessor:
    """Returns the language model's tokenizer with a token for each code of the corpus's preset."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.pad_token is None:  # common in models of text; padding is never learnt, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    return TaaeProcessor(corpus.make_extractor(), tokenizer, bottleneck=corpus.bottleneck)


def sequences(corpus: TokenCorpus, processor: TaaeProcessor, longest: int) -> Iterator[dict[str, list[int]]]:
    """Yields each clip after its text as `input_ids`, with `labels`: both text and speech are learnt.

    Args:
        corpus: the clips.
        processor: a processor for the clips' preset.
        longest: largest number of tokens; longer sequences are left out, because a cut one would end within a frame.
    """
    end = [processor.tokenizer.eos_token_id]
    for text, row in zip(corpus.text_of_rows(), corpus.rows, strict=True):
        codes = torch.tensor(row["codes"]).T  # (tokens_per_frame, frames), as the processor takes them
        ids = processor(text + processor.audio_token, audio_codes=codes)["input_ids"][0] + end
        if len(ids) <= longest:
            yield {"input_ids": ids, "labels": list(ids)}


def teach(model_name: str, corpus: TokenCorpus, output: str, longest: int, packed: bool, **options: object) -> None:
    """Trains and saves a language model with its processor.

    Args:
        model_name: the language model.
        corpus: the speech to teach.
        output: the folder for checkpoints, and for the model at the end.
        longest: largest number of tokens of a sequence.
        packed: whether to join the sequences of a batch in one row, without padding. This needs a model with the
            attention of Transformers, which keeps the sequences apart.
        options: further arguments of `TrainingArguments`.
    """
    processor = make_processor(model_name, corpus)
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    processor.resize_token_embeddings(model)
    data = list(sequences(corpus, processor, longest))
    print(f"{corpus.name}: {len(data):,} of {len(corpus.rows):,} clips have at most {longest:,} tokens")
    if not data:
        raise TaaeInputError(f"{corpus.name}: no clip is short enough; raise --longest")
    # Without a cache, sequences in one row are kept apart by their positions.
    model.config.use_cache = False
    # The other collator pads `input_ids` with the padding token and `labels` with -100, which is ignored.
    collate = DataCollatorWithFlattening() if packed else DataCollatorForSeq2Seq(processor.tokenizer)
    on_gpu = torch.accelerator.is_available()
    precision = choose_precision("auto", torch.accelerator.current_accelerator() or torch.device("cpu"))
    arguments = TrainingArguments(
        output_dir=output,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        bf16=precision.precision == "bf16",
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        save_total_limit=1,
        logging_steps=10,
        report_to="none",
        remove_unused_columns=False,
        **options,
    )
    Trainer(model, arguments, data_collator=collate, train_dataset=data).train()
    if arguments.should_save:  # the main process
        model.config.use_cache = True
        setattr(model.config, CODEC_IDENTITY, corpus.token_source.identity)  # for speak.py, which checks the codec
        setattr(model.config, TOKEN_SOURCE, corpus.token_source.to_json())
        model.save_pretrained(output)
        processor.save_pretrained(output)


def main(arguments: list[str] | None = None) -> int:
    """Teaches as the command line says and returns the exit status: 2 if that is not possible."""
    parser = argparse.ArgumentParser(prog="teach.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a causal language model of text: a folder or a Hub name")
    parser.add_argument("--tokens", nargs="+", required=True, help="folders of `taae tokenize`, or Hub names")
    parser.add_argument("--texts", help="a column of the tokens, or a Parquet file with columns id and text")
    parser.add_argument("-o", "--output", required=True, help="folder for the taught model")
    parser.add_argument("--longest", type=int, default=2048, help="most tokens of a sequence (default: 2048)")
    parser.add_argument("--packed", action="store_true", help="batches without padding")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences per step (default: 8)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="highest learning rate (default: 0.0001)")
    parser.add_argument("--max-steps", type=int, default=1000, help="optimiser steps (default: 1000)")
    options = parser.parse_args(arguments)
    further = {"learning_rate": options.learning_rate, "max_steps": options.max_steps}
    further["per_device_train_batch_size"] = options.batch_size

    def work() -> None:
        corpus = TokenCorpus(options.tokens, options.texts)
        teach(options.model, corpus, options.output, options.longest, options.packed, **further)

    return exit_status(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
