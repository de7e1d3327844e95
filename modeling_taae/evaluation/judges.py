"""Networks that judge decoded speech, and the choice of judges for an evaluation.

Some judges need no download, because a package contains their weights: Resemblyzer for the voice, DistillMOS for
naturalness, Whisper (tiny, English) for words. Larger ones are given by folder or Hub name. Scores of different judges
are not comparable, so each table names its judges.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from ..errors import TaaeInputError, one_line
from .metrics import ALL_METRICS, Metric

HOW_TO_INSTALL = "`taae evaluate --install-judges`"
WORD_METRICS, VOICE_METRICS, NATURALNESS_METRICS = (
    ("wer", "cer", "dwer", "dcer"),
    ("speaker_similarity",),
    ("distillmos",),
)


class MissingJudgeError(TaaeInputError):
    """A judge whose packages are not installed."""


@dataclass(frozen=True)
class JudgedClip:
    """A decoded clip for a judge.

    Args:
        reference, decoded: (samples,) float32 at 16 kHz.
        facts: known facts about the utterance, such as its text and language.
        original: whether the decoded clip is the recording itself.
    """

    reference: np.ndarray
    decoded: np.ndarray
    facts: Mapping[str, str] = field(default_factory=dict)
    original: bool = False


class Judge(Protocol):
    """A network that scores decoded clips.

    Attributes:
        metrics: its metrics by name.
        facts: everything needed to reproduce the scores, as JSON values by name: the model with its version and
            purpose, and the identity of its weights under the same name with " weights".
    """

    metrics: dict[str, Metric]
    facts: dict[str, Any]

    def judge(self, clips: Sequence[JudgedClip]) -> list[dict[str, Any]]:
        """Scores a batch: returns for each clip the scores by the metric's name, None for undefined ones."""


T = TypeVar("T")


class Remembered(Generic[T]):
    """Caches a function of a batch of clips, so that it is applied once to each distinct clip.

    Args:
        function: the function of a list of clips, each with a hashable value such as the language.
        size: number of results to keep.
    """

    def __init__(self, function: Callable[[list[tuple[np.ndarray, Any]]], Sequence[T]], size: int = 64):
        self.function, self.size = function, size
        self.known: dict[Hashable, T] = {}

    def __call__(self, items: Sequence[tuple[np.ndarray, Hashable]]) -> list[T]:
        """Returns the function's result for each item."""
        keys = [(hashlib.sha256(np.ascontiguousarray(audio).data).digest(), beside) for audio, beside in items]
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in self.known}
        self.known |= dict(zip(new, self.function(list(new.values())) if new else (), strict=True))
        results = [self.known[key] for key in keys]
        for key in list(self.known)[: -self.size]:
            del self.known[key]
        return results


def choose_judges(
    metrics: Sequence[str] | None, recognizer: str | None = None, speaker_model: str | None = None, device: str = "cpu"
) -> tuple[list[str], list[Judge], list[str]]:
    """Chooses metrics and judges, and loads the judges.

    Args:
        metrics: names of metrics; None for all that need no download.
        recognizer: folder or Hub name of a speech recogniser; None for the one in a package.
        speaker_model: folder or Hub name of an x-vector model; None for the one in a package.
        device: the judges' device, as torch spells it.

    Returns:
        The names of the metrics without a judge, the judges, and a line about metrics that are left out, empty if none
        are.

    Raises:
        TaaeInputError: if a metric is unknown, a model cannot be loaded, or a requested judge is not installed.
    """
    from .naturalness import DistillMos
    from .recognition import load_recognizer
    from .voices import load_speaker_judge

    judged = (*WORD_METRICS, *VOICE_METRICS, *NATURALNESS_METRICS)
    if unknown := [name for name in metrics or () if name not in ALL_METRICS and name not in judged]:
        known = ", ".join([*ALL_METRICS, *judged])
        raise TaaeInputError(f"--metrics {' '.join(unknown)}: not known; choose from {known}")
    loaders: list[tuple[tuple[str, ...], str | None, str, Callable[[], Judge]]] = [
        (WORD_METRICS, recognizer, "--recognizer", lambda: load_recognizer(recognizer, device)),
        (VOICE_METRICS, speaker_model, "--speaker-model", lambda: load_speaker_judge(speaker_model, device)),
        (NATURALNESS_METRICS, None, "", lambda: DistillMos(device)),
    ]
    judges: list[Judge] = []
    missing: list[str] = []
    for names, model, option, loader in loaders:
        asked = [name for name in names if name in (metrics or ())]
        if metrics is not None and not asked and model is None:
            continue
        try:
            judges.append(loader())
        except MissingJudgeError as error:
            if asked:
                way = f"name a model with {option}, or install one that needs no download" if option else "install it"
                raise TaaeInputError(
                    f"--metrics {' '.join(asked)}: {one_line(error)}; {way}: {HOW_TO_INSTALL}"
                ) from error
            missing += names
    plain = [name for name in dict.fromkeys(metrics or ALL_METRICS) if name in ALL_METRICS]
    left_out = [
        f"left out, because their judges are not installed: {', '.join(missing)}; get them with {HOW_TO_INSTALL}"
    ]
    return plain, judges, left_out if missing else []


def need_package(package: str, modules: Iterable[str]) -> str:
    """Returns a package's version.

    Raises:
        MissingJudgeError: if the package, or one of the modules that it needs, is not installed.
    """
    try:
        if missing := [module for module in modules if find_spec(module) is None]:
            raise MissingJudgeError(f"the package {', '.join(missing)} is not installed")
        return version(package)
    except ModuleNotFoundError as error:
        raise MissingJudgeError(f"the package {package} is not installed") from error


def load(loader: Callable[[], T], name: str) -> T:
    """Loads a model, and names it in errors.

    Raises:
        TaaeInputError: if it cannot be loaded.
    """
    try:
        return loader()
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise TaaeInputError(
            f"{name}: cannot be loaded ({one_line(error)}); expected a folder or the name of a fitting model on the Hub"
        ) from error
