"""The losses of DISC that cross-entropy does not cover (METHOD 8)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def generalised_cross_entropy(logits: Tensor, labels: Tensor, power: float) -> Tensor:
    """(1 − p[label]^q)/q of each sample (Zhang and Sabuncu 2018): between cross-entropy (q → 0) and 1 − p (q = 1).

    Args:
        logits: float [B, C].
        labels: int64 [B].
        power: q, above 0, at most 1.

    Returns:
        float32 [B].
    """
    log_probability = logits.float().log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
    return (1 - (power * log_probability).exp()) / power


def supervised_loss(
    logits: Tensor, labels: Tensor, clean: Tensor, hard: Tensor, *, hard_weight: float, power: float
) -> Tensor:
    """Cross-entropy on the clean images and generalised cross-entropy on the hard ones of one view.

    Each mean is weighted by its subset's share of the batch, so both are sums divided by the whole batch.

    Args:
        logits: float [B, C].
        labels: int64 [B], given labels.
        clean, hard: bool [B].
        hard_weight: λ_h.
        power: q of the generalised cross-entropy.

    Returns:
        a scalar, float32; 0 where no image is clean or hard.
    """
    on_clean = functional.cross_entropy(logits.float(), labels, reduction="none")
    on_hard = generalised_cross_entropy(logits, labels, power)
    return (on_clean * clean + hard_weight * on_hard * hard).sum() / len(labels)
