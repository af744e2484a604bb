"""The loss of pre-training and fine-tuning (METHOD 6)."""

from __future__ import annotations

from torch import Tensor


def soft_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy to label distributions, −Σ_c q[c] log softmax(logits)[c], in float32.

    Args:
        logits: float [B, C].
        targets: float [B, C], rows sum to 1; one-hot rows give the usual cross-entropy.
        label_smoothing: share of every target that is spread over all classes, 0 up to, not including, 1.

    Returns:
        a scalar, float32.
    """
    smoothed = targets * (1 - label_smoothing) + label_smoothing / targets.shape[1]
    return -(smoothed * logits.float().log_softmax(dim=1)).sum(dim=1).mean()
