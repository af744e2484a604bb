"""The linear probe: a head on frozen embeddings, kept at several points of its training (METHOD 1 and 6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Probe:
    """K checkpoints of a linear head on unit-norm embeddings; logits = weight[k] z + bias[k].

    Attributes:
        weight: float32 [K, C, D], the scale of the training already multiplied in.
        bias: float32 [K, C], or None for a head without.
    """

    weight: np.ndarray
    bias: np.ndarray | None

    def probabilities(self, embeddings: np.ndarray, device: str = "cpu") -> np.ndarray:
        """Softmax of every checkpoint.

        Args:
            embeddings: float [N, D], unit norm.
            device: where to compute.

        Returns:
            float32 [K, N, C]; rows sum to 1.
        """
        vectors = torch.from_numpy(np.ascontiguousarray(embeddings, np.float32)).to(device)
        weight = torch.from_numpy(self.weight).to(device)
        logits = vectors @ weight.transpose(1, 2)
        if self.bias is not None:
            logits += torch.from_numpy(self.bias).to(device)[:, None, :]
        return logits.softmax(dim=2).cpu().numpy()


def fit_probe(
    embeddings: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    scale: float,
    checkpoints: int,
    bias: bool,
    seed: int,
    device: str = "cpu",
) -> Probe:
    """Train a linear head with Adam on mini-batches of scaled embeddings, from zero.

    Args:
        embeddings: float32 [N, D], unit norm.
        labels: int64 [N] in 0..classes-1, noisy.
        classes: C.
        epochs: passes over the embeddings.
        batch_size: embeddings a step.
        learning_rate: Adam's, constant.
        weight_decay: Adam's L2 penalty.
        scale: embeddings are multiplied by this, else a head on unit-norm inputs learns too slowly.
        checkpoints: K; the training is cut in K pieces of equal length and the head is kept at the end of each.
        bias: whether the head has one.
        seed: of the order of the samples; equal seeds give equal probes on a device.
        device: where to compute; the embeddings stay in memory and go there batch by batch.

    Raises:
        ValueError: lengths differ, there is no sample, a label is out of range, or there are fewer steps than
            checkpoints.
    """
    count, width = embeddings.shape
    steps = epochs * -(-count // batch_size)
    _check(embeddings, labels, classes, checkpoints, steps)
    vectors, targets = torch.from_numpy(np.ascontiguousarray(embeddings, np.float32)), torch.from_numpy(labels)
    weight = torch.zeros(classes, width, device=device, requires_grad=True)
    offset = torch.zeros(classes, device=device, requires_grad=bias)
    optimizer = torch.optim.Adam([weight, offset] if bias else [weight], lr=learning_rate, weight_decay=weight_decay)
    keep_at = {round(steps * (piece + 1) / checkpoints) for piece in range(checkpoints)}
    kept: list[tuple[Tensor, Tensor]] = []
    generator = torch.Generator().manual_seed(seed)
    step = 0
    for _ in range(epochs):
        for rows in torch.randperm(count, generator=generator).split(batch_size):
            logits = (vectors[rows].to(device) * scale) @ weight.T + offset
            loss = functional.cross_entropy(logits, targets[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step in keep_at:
                kept.append((weight.detach().clone(), offset.detach().clone()))
    weights = torch.stack([head for head, _ in kept]) * scale
    biases = torch.stack([one for _, one in kept]).cpu().numpy() if bias else None
    return Probe(weights.cpu().numpy(), biases)


def _check(embeddings: np.ndarray, labels: np.ndarray, classes: int, checkpoints: int, steps: int) -> None:
    if len(embeddings) == 0 or len(embeddings) != len(labels):
        raise ValueError(
            f"{len(embeddings)} embeddings and {len(labels)} labels; need as many of both, and one at least"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels from {labels.min()} to {labels.max()}; allowed: 0 to {classes - 1}")
    if steps < checkpoints:
        raise ValueError(f"{steps} steps are too few for {checkpoints} checkpoints: raise epochs or lower batch_size")
