"""What each loss pulls with: norms that a hand can check, and a table with a line for each term of a recipe."""

import pytest
import torch
from support.training_runs import ADVERSARIAL, write_recipe

from training.experiments.gradient_norms import gradient_norm, main

pytestmark = pytest.mark.slow


def test_norms_are_over_all_inputs_that_count():
    one, other, unused = (torch.tensor(value, requires_grad=True) for value in ([1.0, 2.0], [3.0], [9.0]))
    term = 2 * one.sum() + other.square().sum()
    assert gradient_norm(term, [one, other, unused]) == pytest.approx((4 + 4 + 36) ** 0.5)
    assert gradient_norm(term, [unused]) == 0


def test_each_term_of_a_recipe_has_a_line_and_nothing_is_written(corpus, recipe_file, tmp_path, capsys):
    texts = ["--ctc.corpora", f"[{{source: {corpus}}}]", "--ctc.batch_size", "2"]
    options = [*ADVERSARIAL, *texts, "--output_dir", tmp_path / "run"]
    main([recipe_file, *map(str, options)])
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    rows = {name.strip("| `"): (at_audio, at_weights.strip("| ")) for name, _, at_audio, at_weights in lines}
    assert list(rows) == ["log_mel", "magnitude", "waveform", "adversarial", "feature_matching", "ctc"]
    assert all(float(at_weights) > 0 for _, at_weights in rows.values())
    assert rows["ctc"][0] == "–", "it comes from utterances of its own"
    assert not (tmp_path / "run").exists()


def test_a_mistake_is_told_in_a_line(tmp_path, capsys):
    assert main([write_recipe(tmp_path, "nowhere")]) == 2
    assert "No corpus at 'nowhere'" in capsys.readouterr().err
