"""Speaker similarity: cosine of the angle between the speaker embeddings of a decoded clip and its original.

The embeddings are those of Resemblyzer, whose weights come in its package, or of a Transformers x-vector model: name it
with the figure, for figures do not compare across models. -1 to 1, higher is better. A figure means something beside
those of two recordings of one person and of two people, by the same model. In the literature the model is mostly
microsoft/wavlm-base-plus-sv: `evaluate.load(path).compute(predictions=…, references=…, model=NAME)`.
"""

from modeling_taae.evaluation import hub_modules as evaluate_modules
from modeling_taae.evaluation import voices


class SpeakerSimilarity(evaluate_modules.JudgeMetric):
    """Speaker similarity."""

    metrics = voices.SpeakerJudge.metrics
    further = "\n    model: folder or Hub name of a Transformers x-vector model; None for Resemblyzer."

    def load_judge(self, model: str | None) -> voices.SpeakerJudge:
        """Loads the speaker model."""
        return voices.load_speaker_judge(model)
