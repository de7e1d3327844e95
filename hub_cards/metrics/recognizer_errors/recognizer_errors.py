"""Word and character errors that a speech recogniser makes on decoded clips, against texts and against the originals.

`wer` and `cer` compare what it hears of the decoded clip with the text, where there is one; `dwer` and `dcer` compare
with what it hears of the original, so that its own errors cancel out. Errors and lengths are added up over all clips
before they are divided. Lower is better; 1 is 100 %. In languages written without spaces, count characters. The figure
is of this recogniser: name it. Without a model it is Whisper tiny.en, which knows English alone. Where Whisper repeats
itself without end, it transcribes the clip again and uses no phrase twice.
"""

from modeling_taae.evaluation import hub_modules as evaluate_modules
from modeling_taae.evaluation import recognition


class RecognizerErrors(evaluate_modules.JudgeMetric):
    """Errors of a recogniser."""

    metrics = recognition.recognizer_metrics()
    further = """
    model: folder or Hub name of a recogniser (Transformers, or Whisper for CTranslate2); None for Whisper tiny.en.
    texts: what is said in each clip, for `wer` and `cer`.
    languages: the language of each clip, such as en or zh."""

    def load_judge(self, model: str | None) -> recognition.Recognizer:
        """Loads the recogniser."""
        return recognition.load_recognizer(model)
