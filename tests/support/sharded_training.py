"""Trains sharded on CPUs, in each of two processes.

Twice: from start to end in FOLDER/whole, and on from the checkpoint half-way in FOLDER/resumed. FOLDER/shards.json says
how the model was sharded. Accelerate shards on GPUs alone, so it is told that these processes have some; all else is
the trainer's own.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from support.training_runs import CHECKOUT
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from training.dry_run import fixed_memory
from training.recipe import parse_recipe
from training.trainer import Trainer


def launch_environment() -> dict[str, str]:
    """What `accelerate launch` with the configuration tells the processes that it starts."""
    parser = launch_command_parser()
    config = CHECKOUT / "training" / "configs" / "fsdp.yaml"
    arguments = parser.parse_args(["--config_file", str(config), "--num_processes", "2", "train.py"])
    settings = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    return {name: value for name, value in settings.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


def make_sharded_trainer(recipe_file: str, *overrides: object) -> Trainer:
    os.environ |= launch_environment()
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return Trainer(parse_recipe([recipe_file, *map(str, overrides)]))


def shards(trainer: Trainer) -> dict[str, list | int]:
    """The modules that are units, the parameters that are not sharded, and bytes in this process."""
    model = trainer.model
    return {
        "units": [name for name, module in model.named_modules() if isinstance(module, FSDPModule)],
        "not sharded": [name for name, tensor in model.named_parameters() if not isinstance(tensor, DTensor)],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "memory": sum(fixed_memory(trainer.average.module, []).values()),
    }


def train_sharded(recipe_file: str, folder: Path, *overrides: str) -> None:
    torch.set_num_threads(1)
    AcceleratorState.destroy_process_group = lambda state: None  # one serves both runs
    trainer = make_sharded_trainer(recipe_file, *overrides, "--output_dir", folder / "whole")
    trainer.train()
    if trainer.accelerator.is_main_process:
        (folder / "shards.json").write_text(json.dumps(shards(trainer)))
        half = f"checkpoint-{trainer.recipe.max_steps // 2}"
        shutil.copytree(folder / "whole" / half, folder / "resumed" / half)
    torch.distributed.barrier()
    make_sharded_trainer(recipe_file, *overrides, "--output_dir", folder / "resumed").train()
