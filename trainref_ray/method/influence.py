"""Influence of references on samples, factorised, and the evidence it gives for each class (METHOD 1).

The probe is linear, so the loss gradient of one sample is residual ⊗ [z; 1] and the cosine of two gradients is a
product of two small cosines. No gradient is ever built.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import one_hot

BLOCK_ELEMENTS = 2**25
"""Most entries of one samples x members block: 128 MiB of float32, however many members there are."""


@dataclass(frozen=True)
class Evidence:
    """What the references say of each sample.

    Attributes:
        normalised: float32 [N, C], unit length over the classes, or all 0 without any evidence.
        norm: float32 [N], length before it was normalised, 0 and up.
    """

    normalised: np.ndarray
    norm: np.ndarray


UNIT_ROWS = 16384
"""Rows at once: in one piece float64 copies would take five times the result, 100 GB for 2.4 million rows of 2,048."""
LARGEST_EXPONENT = 1023
"""Of a power of two in float64."""


def unit_rows(values: np.ndarray) -> np.ndarray:
    """float32 [N, D] rows of length 1 from rows of any floating type, such as stored float16 embeddings, and any length
    but 0.

    Raises:
        ValueError: a row is zero or not finite, and so has no direction; names the row.
    """
    values = np.asarray(values)
    result = np.empty(values.shape, np.float32)
    for start in range(0, len(values), UNIT_ROWS):
        rows = np.asarray(values[start : start + UNIT_ROWS], dtype=np.float64)
        if values.dtype.itemsize > 4:  # squares of narrower types are in float64's range
            rows = _scaled(rows)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
        if len(bad):
            row, length = start + bad[0], norms[bad[0], 0]
            raise ValueError(f"row {row} has length {length:g}; every row must be finite and not zero")
        result[start : start + UNIT_ROWS] = rows / norms
    return result


def _scaled(rows: np.ndarray) -> np.ndarray:
    """float64 [n, D] times a power of two, which rounds nothing: largest entries are near 1, squares in range."""
    _, exponents = np.frexp(np.abs(rows).max(axis=1, keepdims=True, initial=0.0))
    return rows * np.ldexp(1.0, np.minimum(-exponents, LARGEST_EXPONENT))


def residuals(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Gradient of cross-entropy with respect to the logits, p − onehot(label) (METHOD 1).

    The label's component is written as minus the sum of the others: p_y − 1 cancels to 0 in float32 when the model is
    sure, and the direction of the residual with it.

    Args:
        probabilities: [..., C], each row sums to 1.
        labels: int64 [...].

    Returns:
        [..., C], each row sums to 0.
    """
    index = labels.unsqueeze(-1)
    others = probabilities.scatter(-1, index, 0.0)
    return others.scatter(-1, index, -others.sum(-1, keepdim=True))


def label_free_residuals(probabilities: torch.Tensor) -> torch.Tensor:
    """Residual against a target that prefers no class, p − 1/C: [..., C] to [..., C] (METHOD 1)."""
    return probabilities - 1.0 / probabilities.shape[-1]


def _unit(values: torch.Tensor) -> torch.Tensor:
    """Rows of length 1; zero rows stay 0, so that cos(0, ·) = 0. Scaled first: 1e-25 squared underflows in float32."""
    largest = values.abs().amax(-1, keepdim=True)
    scaled = torch.where(largest > 0, values / largest, torch.zeros_like(values))
    return scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True).clamp_min(1.0)


def _embedding_factor(samples: torch.Tensor, members: torch.Tensor, bias: bool) -> torch.Tensor:
    """[N, M]: cos(z_i, z_j), at least 0, times the cosine of the gradients' embedding part."""
    cosine = _unit(samples) @ _unit(members).T
    if not bias:
        return cosine.clamp_min(0.0) * cosine
    lengths = [torch.linalg.vector_norm(part, dim=-1) for part in (samples, members)]
    extended = [torch.sqrt(length.square() + 1.0) for length in lengths]
    with_bias = (cosine * torch.outer(*lengths) + 1.0) / torch.outer(*extended)
    return cosine.clamp_min(0.0) * with_bias


def _residual_factor(samples: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """[N, M]: mean over the checkpoints of the cosine of residuals [K, N, C] and [K, M, C], by one GEMM."""
    checkpoints = samples.shape[0]
    flat = [_unit(part).transpose(0, 1).reshape(part.shape[1], -1) for part in (samples, members)]
    return flat[0] @ flat[1].T / checkpoints


def influence(
    embeddings: torch.Tensor,
    sample_residuals: torch.Tensor,
    member_embeddings: torch.Tensor,
    member_residuals: torch.Tensor,
    bias: bool,
) -> torch.Tensor:
    """Influence of each member on each sample (METHOD 1): with residuals of given labels I_ij, label-free A_ij.

    A negative cosine of the embeddings counts as 0, else two opposed embeddings would count as alike.

    Args:
        embeddings: float32 [N, D].
        sample_residuals: float32 [K, N, C], one for each checkpoint.
        member_embeddings: float32 [M, D].
        member_residuals: float32 [K, M, C].
        bias: whether the probe has a bias, and the gradient its column.

    Returns:
        float32 [N, M], −1 to 1, positive where both would move the probe the same way.
    """
    factor = _embedding_factor(embeddings, member_embeddings, bias)
    return factor * _residual_factor(sample_residuals, member_residuals)


def class_evidence(
    embeddings: np.ndarray,
    probabilities: np.ndarray,
    member_embeddings: np.ndarray,
    member_probabilities: np.ndarray,
    member_labels: np.ndarray,
    *,
    classes: int,
    bias: bool,
    block: int = 4096,
    device: str = "cpu",
) -> Evidence:
    """Evidence of each class for each sample, e_i[c] = −mean over members j of class c of A_ij (METHOD 1).

    A sample of class c pushes against the members of class c, hence the sign. Computed in blocks of rows: the memory
    is one block of samples x members, never N x M.

    Args:
        embeddings: floating [N, D].
        probabilities: float32 [K, N, C] of the probe, one for each checkpoint.
        member_embeddings: floating [M, D].
        member_probabilities: float32 [K, M, C].
        member_labels: int [M], 0 to C − 1.
        classes: C.
        bias: whether the probe has a bias.
        block: most rows at once.
        device: of torch, where the GEMMs run.

    Returns:
        The evidence of all N samples; a class without a member has evidence 0.
    """
    count = len(embeddings)
    normalised, norm = np.zeros((count, classes), np.float32), np.zeros(count, np.float32)
    if not count or not len(member_labels):
        return Evidence(normalised, norm)
    labels = torch.as_tensor(np.asarray(member_labels, dtype=np.int64), device=device)
    members = _to_device(member_embeddings, device)
    member_residuals = residuals(_to_device(member_probabilities, device), labels.expand(len(member_probabilities), -1))
    membership = one_hot(labels, classes).to(torch.float32)
    mean_of_class = membership / membership.sum(0).clamp_min(1.0)
    rows = max(1, min(block, BLOCK_ELEMENTS // len(member_labels)))
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        free = label_free_residuals(_to_device(probabilities[:, part], device))
        found = influence(_to_device(embeddings[part], device), free, members, member_residuals, bias)
        evidence = -(found @ mean_of_class)
        normalised[part] = _unit(evidence).cpu().numpy()
        norm[part] = torch.linalg.vector_norm(evidence, dim=1).cpu().numpy()
    return Evidence(normalised, norm)


def soft_labels(evidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label distribution of the influence alone, relu(e) / Σ relu(e) (METHOD 1).

    Args:
        evidence: float [N, C], normalised.

    Returns:
        float32 [N, C], each row sums to 1, and bool [N] `no_evidence`: no entry was positive, so the row is uniform.
    """
    positive = np.maximum(np.asarray(evidence, dtype=np.float32), 0.0)
    total = positive.sum(axis=1, keepdims=True)
    no_evidence = total[:, 0] <= 0
    uniform = np.float32(1.0 / positive.shape[1])
    return np.where(no_evidence[:, None], uniform, positive / np.where(total > 0, total, 1.0)), no_evidence


def _to_device(values: np.ndarray, device: str) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(values, dtype=np.float32), device=device)
