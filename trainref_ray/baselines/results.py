"""What a rival says of every sample, in one form for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class RivalResult:
    """What a rival has to say; None where it says nothing of the kind.

    Attributes:
        label_quality: float32 [N], 0 to 1, higher = the given label is more likely right.
        flagged: bool [N], the rival itself calls the given label wrong.
        soft_label: float32 [N, C], rows sum to 1; a row of zeros = the rival wrote no distribution for the sample.
        best_class: int64 [N], the leading class where it is not the largest of `soft_label`.
        ood: float32 [N], higher = stranger; only the order has a meaning.
        test_logits: float32 [T, C], before temperature scaling.
        held_out_logits: float32 [H, C] of the references that fit the temperature.
        temperature: float64 [1], where the method does not leave it to those references alone.
    """

    label_quality: np.ndarray | None = None
    flagged: np.ndarray | None = None
    soft_label: np.ndarray | None = None
    best_class: np.ndarray | None = None
    ood: np.ndarray | None = None
    test_logits: np.ndarray | None = None
    held_out_logits: np.ndarray | None = None
    temperature: np.ndarray | None = None


def to_tensors(result: RivalResult) -> dict[str, np.ndarray]:
    """What the rival says, by name, for a safetensors file."""
    values = {part.name: getattr(result, part.name) for part in fields(RivalResult)}
    return {name: np.ascontiguousarray(value) for name, value in values.items() if value is not None}


def from_tensors(tensors: Mapping[str, np.ndarray]) -> RivalResult:
    """The inverse of `to_tensors`.

    Raises:
        ValueError: a tensor is none of a result's.
    """
    unknown = sorted(tensors.keys() - {part.name for part in fields(RivalResult)})
    if unknown:
        raise ValueError(f"{unknown} are no parts of a result")
    return RivalResult(**tensors)


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
