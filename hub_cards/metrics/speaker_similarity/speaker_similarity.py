"""Speaker similarity: cosine of the angle between the speaker embeddings of a decoded clip and its original.

The embeddings are those of a Transformers x-vector model, which must be named with the figure: they do not compare
across models. -1 to 1, higher is better. `evaluate.load(path).compute(predictions=…, references=…, model=NAME)`; the
usual model is microsoft/wavlm-base-plus-sv.
"""

import sys

import datasets
import evaluate
import numpy as np

from modeling_taae.evaluation import hub_modules as evaluate_modules
from modeling_taae.evaluation import model_metrics as judges


class SpeakerSimilarity(evaluate.Metric):
    """Speaker similarity."""

    def _info(self) -> evaluate.MetricInfo:
        clips = {"predictions": evaluate_modules.CLIP, "references": evaluate_modules.CLIP}
        return evaluate.MetricInfo(
            description=sys.modules[type(self).__module__].__doc__,
            citation="",
            inputs_description=evaluate_modules.INPUTS.format(unused="") + "\n`model`: folder or Hub name.",
            features=datasets.Features(clips),
        )

    def _compute(self, predictions: list, references: list, model: str = judges.USUAL_VERIFIER) -> dict:
        verifier = judges.SpeakerVerifier(model)
        pairs = [
            (np.asarray(reference, np.float32), np.asarray(decoded, np.float32))
            for reference, decoded in zip(references, predictions, strict=True)
        ]
        values = [verifier.judge(*pair, text=None)["speaker_similarity"] for pair in pairs]
        return {"speaker_similarity": float(np.mean(values)), "speaker_similarity_n": len(values)}
