"""Sharding a model over processes (FSDP2), for models that are too large for one device.

`shard` states how: each transformer layer is a unit, whose weights are brought together while it computes, and what is
left is another. Weights, gradients, optimiser and average are sharded; the network computes as it does unsharded.
`accelerate launch --config_file training/configs/fsdp.yaml` switches it on.
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
        RecipeError: if the launch asks for it, but Accelerate would silently leave it, or do it in another way.
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
    """Moves a model to a device and keeps there only this process's share of its weights; changes it in place.

    Accelerate takes a model that is sharded already as it is. Its own wrapping asks for token embeddings, which a codec
    lacks, and casts all weights where autocast spares the norms.
    """
    # The model gives a view of what it has decoded; nobody changes that in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in model.modules():
        if isinstance(module, TaaeTransformerLayer):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "encode")  # which the CTC head's loss calls
    return model


def prepare_sharded(
    accelerator: Accelerator, model: TaaeModel, optimizer: torch.optim.Optimizer
) -> tuple[TaaeModel, AcceleratedOptimizer]:
    """Prepares a model that is sharded already, and its optimiser, as `accelerator.prepare` does for others."""
    accelerator.state.fsdp_plugin.auto_wrap_policy = None  # it would look for units by the name they had before
    model, prepared = accelerator.prepare(model, optimizer)
    # Accelerate tells parameters apart by where they are, and empty shards are all in the same place.
    optimizer.param_groups[0]["params"] = trainable_parameters(model)
    return model, prepared


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor with its shards brought together, if it has any. Every process calls this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with their shards brought together, on the CPU of the main process; nothing in the others.

    Every process calls this.
    """
    whole, main = {}, PartialState().is_main_process
    for name, tensor in state.items():
        tensor = whole_tensor(tensor)  # one after the other, because the others drop it at once
        if main:
            whole[name] = tensor.cpu()
    return whole


def unsharded(model: TaaeModel, device: torch.device) -> TaaeModel | None:
    """The model with all its weights on one device, in the main process; None in the others. Every process calls this.

    A model that is not sharded is returned itself.
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
    """The exponential moving average of a model's weights. It may be sharded as the model is; its state is whole.

    Args:
        model: the one to follow, not sharded yet.
        decay: averaging factor per update.
    """

    def __init__(self, model: TaaeModel, decay: float):
        super().__init__(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:
        """The weights as `whole_state` gives them."""
        return whole_state(super().state_dict(*args, **kwargs))

    def load_state_dict(self, state: dict[str, Tensor], *args, **kwargs) -> None:
        """Takes over whole weights, which every process gives."""
        shards = super().state_dict()
        placed = {name: _placed_like(tensor, shards.get(name)) for name, tensor in state.items()}
        super().load_state_dict(placed, *args, **kwargs)


def _placed_like(tensor: Tensor, shards: Tensor | None) -> Tensor:
    if not isinstance(shards, DTensor):
        return tensor
    return distribute_tensor(tensor.to(shards.device), shards.device_mesh, shards.placements)
