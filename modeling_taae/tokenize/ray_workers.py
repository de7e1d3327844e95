"""Encodes a corpus with the workers of a Ray cluster, using Ray Data: one worker per GPU, or per core.

Ray Data gives each idle worker the next few units, restarts a worker that was killed, and repeats its unfinished units.
A part, and so the corpus, does not depend on where it is made.
"""

import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import pyarrow as pa

from ..codec import load_codec
from ..data.sources import Corpus
from ..errors import TaaeInputError, one_line
from .encoder import CorpusEncoder, Encoding, Part


@dataclass(frozen=True)
class Weights:
    """The model that workers load.

    Args:
        model: the model's folder or its name on the Hub.
        identity: the identity that the model must have.
        loudness: whether to normalise clips to the extractor's loudness.
    """

    model: str
    identity: str
    loudness: bool


class Worker:
    """Wraps a [`CorpusEncoder`] for Ray Data: returns expected errors as results, because Ray adds tracebacks."""

    def __init__(self, corpus: Corpus, encoding: Encoding, weights: Weights, device: str):
        self.corpus, self.encoding, self.weights, self.device = corpus, encoding, weights, device

    @cached_property
    def encoder(self) -> CorpusEncoder:
        """The encoder, loaded at its first use."""
        model, identity, loudness = self.weights.model, self.weights.identity, self.weights.loudness
        codec = load_codec(model, self.device, loudness)
        if codec.identity != identity:
            raise TaaeInputError(
                f"{model}: is model {codec.identity} on a worker and {identity} here; put the same one there everywhere"
            )
        return CorpusEncoder(self.corpus, self.encoding, codec)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        """Encodes the units in `unit`, (units,) int64; returns a list for each field of a part, or one `error`."""
        try:
            rows = [asdict(part) | {"error": ""} for part in self.encoder.parts(batch["unit"].tolist())]
        except TaaeInputError as error:
            rows = [asdict(Part(0, b"", 0.0, 0.0, 0.0)) | {"error": one_line(error)}]
        return {name: [row[name] for row in rows] for name in rows[0]}


class RayWorkers:
    """Workers of a Ray cluster; as a context, connected to it.

    Ray's log messages are silenced until the context ends; problems are raised as exceptions.

    Args:
        address: an address as `ray.init` takes it: a cluster's head, "auto" for this machine's cluster, or "local" to
            start one on this machine for this run.
        workers: the number of workers; None for one per GPU, or per core.
        device: "cpu" to use no GPUs.
    """

    def __init__(self, address: str, workers: int | None, device: str | None):
        self.address, self.wanted, self.wanted_device = address, workers, device
        self.stack = ExitStack()

    def __enter__(self) -> "RayWorkers":
        """Connects, and finds out the cluster's GPUs and cores.

        Raises:
            TaaeInputError: if Ray is not installed or cannot be reached, or there are fewer GPUs or cores than workers.
        """
        with ExitStack() as stack:
            if "RAY_BACKEND_LOG_LEVEL" not in os.environ:
                os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
                stack.callback(os.environ.pop, "RAY_BACKEND_LOG_LEVEL", None)
            try:
                import ray
                import ray.data
            except ImportError as error:
                message = f"--ray: needs Ray ({one_line(error)}); pip install 'modeling_taae[ray]'"
                raise TaaeInputError(message) from error
            logger, context = logging.getLogger("ray.data"), ray.data.DataContext.get_current()
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
            stack.callback(setattr, context, "enable_progress_bars", context.enable_progress_bars)
            context.enable_progress_bars = False
            self._connect()
            stack.callback(ray.shutdown)
            resources = ray.cluster_resources()
            gpus, self.cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
            self.device = "cuda" if gpus and self.wanted_device != "cpu" else "cpu"
            there = gpus if self.device == "cuda" else self.cores
            if self.wanted is not None and not 1 <= self.wanted <= there:
                kind = "GPUs" if self.device == "cuda" else "cores"
                raise TaaeInputError(f"--workers {self.wanted}: the cluster has {there} {kind}; expected 1 to {there}")
            self.workers = self.wanted or there
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """Disconnects, and ends a cluster that was started for this run."""
        self.stack.close()

    def _connect(self) -> None:
        import ray

        local: dict[str, Any] = {"include_dashboard": False} if self.address == "local" else {}
        try:
            check_reachable(self.address)
            ray.init(self.address, logging_level=logging.ERROR, log_to_driver=False, **local)
        except (OSError, RuntimeError, ValueError) as error:
            raise TaaeInputError(
                f"--ray {self.address}: cannot be used ({one_line(error)}); expected the address of a cluster's head, "
                "auto, or local for one on this machine; where the cluster asks for a token, set RAY_AUTH_MODE=token"
            ) from error

    def parts(self, corpus: Corpus, encoding: Encoding, weights: Weights, units: list[int]) -> Iterator[Part]:
        """Yields the units as parts, in the order in which they are done.

        Raises:
            TaaeInputError: if a worker cannot load the model, or read a source.
        """
        import ray
        from ray.data import ActorPoolStrategy

        if not units:
            return
        # Fewer units at a time than a worker could take, if otherwise some workers would end much earlier than others.
        size = min(encoding.stream_units(self.device), math.ceil(len(units) / (4 * self.workers)))
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
            table = cast(pa.Table, batch)
            for row in table.to_pylist():
                if error := row.pop("error"):
                    raise TaaeInputError(error)
                yield Part(**row)


def check_reachable(address: str) -> None:
    """Tries to connect to a cluster's head, because Ray itself would wait for minutes.

    Raises:
        OSError: if nothing answers.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=10).close()
