"""Sharding a model over processes (FSDP2), for models that are too large for one device.

In `shard`, each transformer layer is a unit whose weights are gathered while it computes; the rest is another unit.
Weights, gradients, optimiser and average are sharded; the results are those of an unsharded model. `accelerate launch
--config_file training/configs/fsdp.yaml` switches sharding on.
"""

import os
import warnings

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from modeling_taae import TaaeModel
from modeling_taae.transformer_taae import TaaeTransformerLayer
from training.optimization import trainable_parameters
from training.recipe import RecipeError


def sharding_asked() -> bool:
    """Returns whether the launch asks for a sharded model."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def is_sharded(accelerator: Accelerator) -> bool:
    """Returns whether a run shards its model, as its launch asks.

    Raises:
        RecipeError: if the launch asks for it, but Accelerate would silently ignore it or shard in another way.
    """
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if sharding_asked() and not sharded:
        raise RecipeError(
            f"The launch asks for FSDP, which needs two GPUs or more; this run has {accelerator.num_processes} "
            f"process(es) on {accelerator.device.type}. Launch it without the FSDP configuration."
        )
    if sharded and (not accelerator.is_fsdp2 or accelerator.state.fsdp_plugin.cpu_ram_efficient_loading):
        raise RecipeError(
            "This trainer shards with FSDP2, and loads the weights in every process: launch it with fsdp_version: 2 "
            "and fsdp_cpu_ram_efficient_loading: false, as in training/configs/fsdp.yaml."
        )
    return sharded


def shard(model: TaaeModel, device: torch.device) -> TaaeModel:
    """Moves a model to a device and keeps only this process's share of its weights; changes it in place.

    Accelerate leaves a sharded model as it is. Its own wrapping needs token embeddings, which a codec lacks, and casts
    all weights, while autocast keeps the norms in float32.
    """
    # The decoded audio is a view, which nobody changes in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in model.modules():
        if isinstance(module, TaaeTransformerLayer):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "encode")  # called by the CTC head's loss
    return model


def prepare_sharded(
    accelerator: Accelerator, model: TaaeModel, optimizer: torch.optim.Optimizer
) -> tuple[TaaeModel, AcceleratedOptimizer]:
    """Prepares a sharded model and its optimiser, as `accelerator.prepare` does for other models."""
    accelerator.state.fsdp_plugin.auto_wrap_policy = None  # it would search for units by their former names
    model, prepared = accelerator.prepare(model, optimizer)
    # Accelerate identifies parameters by their address, and all empty shards have the same one.
    optimizer.param_groups[0]["params"] = trainable_parameters(model)
    return model, prepared


def whole_tensor(tensor: Tensor) -> Tensor:
    """Returns a tensor with its shards gathered, if it has any. Every process calls this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights with their shards gathered, on the CPU of the main process; empty in the others.

    Every process calls this.
    """
    whole, main = {}, PartialState().is_main_process
    for name, tensor in state.items():
        tensor = whole_tensor(tensor)  # one by one, because other processes drop it at once
        if main:
            whole[name] = tensor.cpu()
    return whole


def unsharded(model: TaaeModel, device: torch.device) -> TaaeModel | None:
    """Returns the model with all weights on one device in the main process, None in others. Every process calls this.

    A model that is not sharded is returned as it is.
    """
    main = PartialState().is_main_process
    if not isinstance(model, FSDPModule):
        return model if main else None
    state = whole_state(model.state_dict())
    if not main:
        return None
    with torch.device("meta"):
        whole = TaaeModel(model.config)
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrizations.weight_norm(whole.get_submodule(name), "weight")
    whole.load_state_dict(state, assign=True)
    return whole.to(device)


class WeightAverage(AveragedModel):
    """The exponential moving average of a model's weights. It may be sharded like the model; its state dict is whole.

    Args:
        model: the model, not sharded yet.
        decay: averaging factor per update.
    """

    def __init__(self, model: TaaeModel, decay: float):
        super().__init__(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:
        """Returns the weights gathered by `whole_state`."""
        return whole_state(super().state_dict(*args, **kwargs))

    def load_state_dict(self, state: dict[str, Tensor], *args, **kwargs) -> None:
        """Loads whole weights, which every process passes."""
        shards = super().state_dict()
        placed = {name: _placed_like(tensor, shards.get(name)) for name, tensor in state.items()}
        super().load_state_dict(placed, *args, **kwargs)


def _placed_like(tensor: Tensor, shards: Tensor | None) -> Tensor:
    if not isinstance(shards, DTensor):
        return tensor
    return distribute_tensor(tensor.to(shards.device), shards.device_mesh, shards.placements)
