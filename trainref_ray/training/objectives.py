"""The losses of pre-training and fine-tuning (METHOD 6)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


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


def nt_xent(projections: Tensor, temperature: float) -> Tensor:
    """NT-Xent, the contrastive loss of SimCLR (Chen et al. 2020, equation 1), in float32.

    For each view, cross-entropy over the cosines to all other views of the batch, divided by the temperature: the right
    one is the other view of the same image, and every view of another image is a negative.

    Args:
        projections: float [2B, P], rows i and i + B are the two views of image i; any length.
        temperature: above 0; lower = the nearest negatives weigh more.

    Returns:
        the mean over the 2B views, a scalar, float32.

    Raises:
        ValueError: an odd number of rows, or none.
    """
    views = len(projections)
    if views == 0 or views % 2:
        raise ValueError(f"{views} projections; need two views of each image, and one image at least")
    unit = functional.normalize(projections.float(), dim=1)
    itself = torch.eye(views, dtype=torch.bool, device=unit.device)
    similarity = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)
    other_view = torch.arange(views, device=unit.device).roll(views // 2)
    return functional.cross_entropy(similarity, other_view)
