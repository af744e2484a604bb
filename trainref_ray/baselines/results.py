"""What a rival says of every sample, in one form for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RivalResult:
    """What a rival has to say; None where it says nothing of the kind.

    Attributes:
        label_quality: float32 [N], 0 to 1, higher = the given label is more likely right.
        flagged: bool [N], the rival itself calls the given label wrong.
        soft_label: float32 [N, C], rows sum to 1.
        ood: float32 [N], higher = stranger; only the order has a meaning.
        test_logits: float32 [T, C], before temperature scaling.
    """

    label_quality: np.ndarray | None = None
    flagged: np.ndarray | None = None
    soft_label: np.ndarray | None = None
    ood: np.ndarray | None = None
    test_logits: np.ndarray | None = None


def from_probabilities(
    probabilities: np.ndarray, labels: np.ndarray, test_logits: np.ndarray | None = None
) -> RivalResult:
    """The usual reading of class probabilities: quality is the given label's, and another leading class is a flag.

    Args:
        probabilities: float [N, C], rows sum to 1.
        labels: int [N], given labels.
        test_logits: float [T, C], passed on.
    """
    soft_label = np.asarray(probabilities, np.float32)
    return RivalResult(
        label_quality=soft_label[np.arange(len(labels)), labels],
        flagged=soft_label.argmax(axis=1) != labels,
        soft_label=soft_label,
        test_logits=None if test_logits is None else np.asarray(test_logits, np.float32),
    )
