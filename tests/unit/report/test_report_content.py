"""Contents that contradict themselves are refused where they are built."""

from __future__ import annotations

import pytest

from trainref_ray.report.content import Figure, SampleCard, Table, baseline_label, metric_label


def test_an_unknown_direction_is_refused() -> None:
    with pytest.raises(ValueError, match="figure 'accuracy': better is 'up'; allowed: 'higher', 'lower', None"):
        Figure("accuracy", "Accuracy", 0.9, None, "", "up", "share of right answers")
    with pytest.raises(ValueError, match="column 'nll'"):
        Table(["nll"], [], ["less"])


def test_a_row_or_direction_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="row 'a' has 1 values for 2 columns"):
        Table(["x", "y"], [("a", [1])], [None, None])
    with pytest.raises(ValueError, match="1 columns, but 0 directions"):
        Table(["x"], [], [])


def test_metrics_have_words_and_unknown_ones_keep_their_name() -> None:
    assert metric_label("ece_mass_ts") == "Calibration error, equal mass, scaled"
    assert metric_label("noise_auroc") == "Wrong labels, AUROC"
    assert metric_label("my_metric") == "my_metric"


def test_baselines_have_words() -> None:
    assert baseline_label("cross_entropy") == "first model (cross-entropy)"
    assert baseline_label("references_per_class_1") == "trainref before fine-tuning, 1 reference a class"
    assert baseline_label("references_per_class_5") == "trainref before fine-tuning, 5 references a class"


def test_leading_class() -> None:
    card = SampleCard("k", b"", "cat", None, "soften", 0.5, 0.1, "why", [("dog", 0.6), ("cat", 0.4)])
    assert card.leading == "dog"
    assert SampleCard("k", b"", "cat", None, "ood", 0.5, 0.9, "why").leading is None
