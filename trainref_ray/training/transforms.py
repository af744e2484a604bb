"""Views of a batch, on the device that holds it.

Every choice is drawn from a generator on the CPU: the same seed gives the same views on every device, and a GPU is
never waited for. On one CPU core at 32 px an image costs 12 µs for the crop, 4 µs for the flip and 66 µs for
RandAugment, beside 600 to 1,000 µs for forward and backward of `cnn_small`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

RANDAUGMENT_OPERATIONS = 2
"""Operations an image, as in RandAugment (Cubuk et al. 2020)."""
STRONGEST = 30
"""The magnitude at which every operation is as strong as it can be."""


def random_crop(pixels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A random square of each image.

    Args:
        pixels: uint8 [B, S', S', 3], S' >= size. If S' = size, images are first padded by size // 8 on each side with
            their own mirror image, as is usual on CIFAR (4 pixels at 32).
        size: side of the result.
        generator: on the CPU.

    Returns:
        uint8 [B, size, size, 3].
    """
    count, side = pixels.shape[0], pixels.shape[1]
    padding = size // 8 if side == size else 0
    offsets = torch.randint(-padding, side - size + padding + 1, (2, count, 1), generator=generator)
    places = (offsets + torch.arange(size)).abs()
    rows, columns = ((side - 1) - ((side - 1) - places).abs()).to(pixels.device)  # mirrored at both ends
    image = torch.arange(count, device=pixels.device)[:, None, None]
    return pixels[image, rows[:, :, None], columns[:, None, :]]


def random_flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2; uint8 [B, S, S, 3] in and out."""
    flipped = torch.rand(len(pixels), generator=generator) < 0.5
    return torch.where(flipped.to(pixels.device)[:, None, None, None], pixels.flip(2), pixels)


def randaugment(pixels: Tensor, magnitude: int, generator: torch.Generator) -> Tensor:
    """RandAugment: two operations an image, drawn with replacement from 14, each of the given magnitude.

    Images that drew the same operation and sign go through it as one batch. Areas that come into view are black.

    Args:
        pixels: uint8 [B, S, S, 3].
        magnitude: 0 to 30 (strongest); at 0 only autocontrast and equalize, which have no strength, change an image.
        generator: on the CPU.

    Returns:
        uint8 [B, S, S, 3].
    """
    images = pixels.permute(0, 3, 1, 2)
    operations = _operations(magnitude / STRONGEST, pixels.shape[1])
    for _ in range(RANDAUGMENT_OPERATIONS):
        drawn = torch.randint(len(operations), (len(pixels),), generator=generator)
        changed = images.clone()
        for number in drawn.unique().tolist():
            group = (drawn == number).nonzero().flatten().to(pixels.device)
            changed[group] = operations[number](images[group])
        images = changed
    return images.permute(0, 2, 3, 1).contiguous()


def _operations(strength: float, side: int) -> list[Callable[[Tensor], Tensor]]:
    """The 14 operations with torchvision's ranges; each stands twice, with either sign where it has one."""
    from torchvision.transforms.v2 import functional as tv  # here: the import takes 4 s, and few trainings need it

    both: list[Callable[[Tensor], Tensor]] = []
    for sign in (1.0, -1.0):
        lean = float(np.degrees(np.arctan(0.3 * strength))) * sign
        shift = round(150 / 331 * side * strength * sign)
        factor = 1 + 0.9 * strength * sign
        move = partial(tv.affine, angle=0.0, scale=1.0)
        both += [
            torch.clone,
            partial(move, translate=[0, 0], shear=[lean, 0.0], center=[0, 0]),
            partial(move, translate=[0, 0], shear=[0.0, lean], center=[0, 0]),
            partial(move, translate=[shift, 0], shear=[0.0, 0.0]),
            partial(move, translate=[0, shift], shear=[0.0, 0.0]),
            partial(tv.rotate, angle=30.0 * strength * sign),
            partial(tv.adjust_brightness, brightness_factor=factor),
            partial(tv.adjust_saturation, saturation_factor=factor),
            partial(tv.adjust_contrast, contrast_factor=factor),
            partial(tv.adjust_sharpness, sharpness_factor=factor),
            partial(tv.posterize, bits=8 - round(4 * strength)),
            partial(tv.solarize, threshold=255 * (1 - strength)),
            tv.autocontrast,
            tv.equalize,
        ]
    return both


def mixup(images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018): the batch blended with itself in another order, by one share from Beta(alpha, alpha).

    Args:
        images: float [B, 3, S, S].
        targets: float [B, C], rows sum to 1.
        alpha: above 0; small values leave most batches nearly unblended.
        generator: on the CPU.

    Returns:
        blended (images, targets) of the same shapes.
    """
    seed = int(torch.randint(2**62, (1,), generator=generator))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    order = torch.randperm(len(images), generator=generator).to(images.device)
    return images.lerp(images[order], 1 - share), targets.lerp(targets[order], 1 - share)
