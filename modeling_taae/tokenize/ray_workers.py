"""A corpus encoded by the workers of a Ray cluster, with Ray Data: one worker for each GPU, or for each core.

Ray Data gives each worker that is idle the next few units, starts a worker again that was killed, and repeats what it
had not finished. A part is the same wherever it is made, so that the corpus is, too.
"""

import logging
import math
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from ..codec import load_codec
from ..data.sources import Corpus
from ..errors import TaaeInputError, one_line
from .encoder import CorpusEncoder, Encoding, Part, units_together


@dataclass(frozen=True)
class Weights:
    """What a worker loads.

    Args:
        model: folder or name on the Hub.
        identity: of the weights that are meant.
        loudness: whether clips are brought to the extractor's loudness.
    """

    model: str
    identity: str
    loudness: bool


class Worker:
    """A [`CorpusEncoder`] as Ray Data wants it: foreseen errors are results, which Ray would wrap in tracebacks."""

    def __init__(self, corpus: Corpus, encoding: Encoding, weights: Weights, device: str):
        self.corpus, self.encoding, self.weights, self.device = corpus, encoding, weights, device

    @cached_property
    def encoder(self) -> CorpusEncoder:
        """The encoder, which is loaded when it is first used."""
        model, identity, loudness = self.weights.model, self.weights.identity, self.weights.loudness
        codec = load_codec(model, self.device, loudness)
        if codec.identity != identity:
            raise TaaeInputError(
                f"{model}: is model {codec.identity} on a worker and {identity} here; put the same one there everywhere"
            )
        return CorpusEncoder(self.corpus, self.encoding, codec)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        """The units in `unit`, (units,) int64, as parts: a list of each of their fields, or one row with `error`."""
        try:
            rows = [asdict(part) | {"error": ""} for part in self.encoder.parts(batch["unit"].tolist())]
        except TaaeInputError as error:
            rows = [asdict(Part(0, b"", 0.0, 0.0, 0.0)) | {"error": one_line(error)}]
        return {name: [row[name] for row in rows] for name in rows[0]}


class RayWorkers:
    """Workers of a Ray cluster; as a context, connected to it.

    Args:
        address: as `ray.init` takes it: of a cluster's head, "auto" for the one of this machine, or "local" to start
            one on this machine for this run.
        workers: how many; None for all GPUs, or all cores.
        device: "cpu" to leave GPUs alone.

    Raises:
        TaaeInputError: if Ray is not installed or cannot be reached, or has fewer GPUs or cores.
    """

    def __init__(self, address: str, workers: int | None, device: str | None):
        # Ray's own messages tell about its inside; what matters to users comes as an exception.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        try:
            import ray
        except ImportError as error:
            raise TaaeInputError(f"--ray: needs Ray ({one_line(error)}); pip install 'modeling_taae[ray]'") from error
        local = {"include_dashboard": False} if address == "local" else {}
        try:
            check_reachable(address)
            ray.init(address, logging_level="error", log_to_driver=False, **local)
        except (OSError, RuntimeError, ValueError) as error:
            raise TaaeInputError(
                f"--ray {address}: cannot be used ({one_line(error)}); expected the address of a cluster's head, auto, "
                "or local for one on this machine; where the cluster asks for a token, set RAY_AUTH_MODE=token"
            ) from error
        resources = ray.cluster_resources()
        gpus, self.cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        self.device = "cuda" if gpus and device != "cpu" else "cpu"
        there = gpus if self.device == "cuda" else self.cores
        if workers is not None and not 1 <= workers <= there:
            ray.shutdown()
            kind = "GPUs" if self.device == "cuda" else "cores"
            raise TaaeInputError(f"--workers {workers}: the cluster has {there} {kind}; expected 1 to {there}")
        self.workers = workers or there

    def __enter__(self) -> "RayWorkers":
        return self

    def __exit__(self, *exception: object) -> None:
        """Leaves the cluster, and ends one that was started for this run."""
        import ray

        ray.shutdown()

    def parts(self, corpus: Corpus, encoding: Encoding, weights: Weights, units: list[int]) -> Iterator[Part]:
        """The units as parts, in whatever order they are done.

        Raises:
            TaaeInputError: if a worker cannot load the model, or read a source.
        """
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        if not units:
            return
        logging.getLogger("ray.data").setLevel("CRITICAL")
        DataContext.get_current().enable_progress_bars = False
        # Fewer at a time than a worker could take, if there would not be enough for all workers to end together.
        size = min(units_together(self.device), math.ceil(len(units) / (4 * self.workers)))
        calls = math.ceil(len(units) / size)
        workers = min(self.workers, calls)
        cores = 1 if self.device == "cpu" else max(1, min(encoding.readers, self.cores // self.workers))
        encoded = ray.data.from_items([{"unit": unit} for unit in units], override_num_blocks=calls).map_batches(
            Worker,
            fn_constructor_args=(corpus, encoding, weights, self.device),
            batch_size=size,
            compute=ActorPoolStrategy(
                min_size=1, max_size=workers, initial_size=workers, max_tasks_in_flight_per_actor=1
            ),
            num_cpus=cores,
            num_gpus=1 if self.device == "cuda" else 0,
        )
        for batch in encoded.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                if error := row.pop("error"):
                    raise TaaeInputError(error)
                yield Part(**row)


def check_reachable(address: str) -> None:
    """Tries to connect to a cluster's head, for which Ray itself would wait for minutes.

    Raises:
        OSError: if nothing is there.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=10).close()
