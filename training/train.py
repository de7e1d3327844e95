"""Trains a TAAE codec: `python training/train.py RECIPE.yaml [--any.recipe.key value ...]`.

On a CPU this uses all cores. On GPUs start it with `accelerate launch training/train.py RECIPE.yaml …`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout's training/ is not installed

from training.commands import tell_loading
from training.recipe import Recipe, RecipeError, parse_recipe


def run(recipe: Recipe) -> None:
    """Trains as a recipe says, or estimates the memory and time of that."""
    from training.dry_run import check_room, dry_run
    from training.trainer import Trainer

    if not recipe.dry_run:
        Trainer(recipe).train()
        return
    check_room(recipe)
    trainer = Trainer(recipe)
    trainer.accelerator.print(dry_run(trainer))
    trainer.accelerator.end_training()


def main() -> None:
    """Runs the command; an error is one line on standard error, with exit status 2 for a mistake, 1 for a failure."""
    recipe = parse_recipe(sys.argv[1:])
    tell_loading("train.py")
    import torch
    from safetensors import SafetensorError
    from soundfile import SoundFileError

    from modeling_taae.errors import TaaeInputError
    from training.checkpoints import CheckpointError
    from training.launch import helpers, own_processes
    from training.optimization import DivergenceError
    from training.publish import HubError
    from training.trainer import IncompleteRunError

    try:
        processes = own_processes(recipe)
        with helpers([sys.executable, __file__, *sys.argv[1:]], processes):
            run(recipe)
    except RecipeError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except (CheckpointError, HubError, IncompleteRunError) as error:
        sys.exit(f"train.py: {error}")
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
        sys.exit(
            f"train.py: the device has too little memory ({reason}). Lower --batch_size and raise "
            "--gradient_accumulation_steps, or try --gradient_checkpointing true."
        )
    # A full disk, when the log, samples or weights are written.
    except (OSError, TaaeInputError, SoundFileError, SafetensorError) as error:
        reason = str(error.__cause__ or error)
        sys.exit(f"train.py: {reason}. Correct this and run again, to resume from the newest checkpoint.")
    except DivergenceError as error:
        sys.exit(
            f"train.py: {error} Lower optimizer.learning_rate, or raise optimizer.warmup_steps, and run again, to "
            f"resume from the last checkpoint in {recipe.output_dir}."
        )


if __name__ == "__main__":
    main()
