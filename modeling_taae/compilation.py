"""Compiles a model's transformer layers, for corpora: a minute at first, and less time for each clip after it.

Layers of one width share their code, and one graph serves clips of all lengths: there is another for several clips at
once, and one of each for recordings so long that they are processed chunk by chunk. So the code that computes a clip
depends on the clip alone, as `batching` wants it, and a corpus of random lengths compiles nothing anew.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

from .modeling_taae import TaaeModel
from .transformer_taae import TaaeTransformer

# Far more than any model needs; more are an error. At PyTorch's own limit, layers would go on uncompiled in silence,
# and a clip's tokens would depend on the clips before it.
MOST_GRAPHS = 256


def with_compiled_layers(model: TaaeModel, backend: str | Callable = "inductor") -> TaaeModel:
    """Returns a model with the same weights, whose transformer layers are compiled at their first use.

    Its latents differ from those of `model` by rounding, as they do between machines.

    Args:
        model: the model, which stays as it is and shares its weights.
        backend: a backend of `torch.compile`.
    """
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    model = copy.deepcopy(model, shared)
    for module in model.modules():
        if isinstance(module, TaaeTransformer):
            module.uniform_blocks = True
            for layer in module.layers:
                layer.compile(dynamic=True, backend=backend)
    return model


@contextmanager
def room_for_graphs() -> Iterator[None]:
    """Keeps PyTorch from giving up compilation after eight graphs, as it does in silence otherwise."""
    import torch._dynamo  # takes a second, which commands that compile nothing need not wait for

    with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS, fail_on_recompile_limit_hit=True):
        yield
