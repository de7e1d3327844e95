"""Word and character error rate: substitutions, deletions, insertions per word or character of the reference.

Errors are counted by rapidfuzz. They and lengths are added up over all texts before they are divided. Both texts are
first normalised as Whisper's language-neutral normaliser does it: lower case, no punctuation, no symbols. Lower is
better; 1 is 100 %. With a recogniser's transcript of the original speech as reference this is the dWER of the codec
literature.
"""

import sys

import datasets
import evaluate

from modeling_taae.evaluation.recognition import character_errors, normalize_text, word_errors


class WordErrorRate(evaluate.Metric):
    """Word and character error rate."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=sys.modules[type(self).__module__].__doc__,
            citation="",
            inputs_description="predictions, references: texts. Returns `wer` and `cer`.",
            features=datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float | None]:
        pairs = [tuple(map(normalize_text, pair)) for pair in zip(references, predictions, strict=True)]
        rates = {}
        for name, function in (("wer", word_errors), ("cer", character_errors)):
            counts = [function(*pair) for pair in pairs]
            length = sum(count.length for count in counts)
            rates[name] = sum(count.errors for count in counts) / length if length else None
        return rates
