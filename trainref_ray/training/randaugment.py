"""RandAugment (Cubuk et al. 2020) of a batch, on the device that holds it.

A batch of 256 is cut into at most 13 groups of images that go through one operation together: all that only move pixels
are one group, whatever moved them. Draws are made on the CPU and sent without waiting, so a GPU is never waited for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional

from trainref_ray.training.transforms import to_device

OPERATIONS_AN_IMAGE = 2
"""As in the paper."""
STRONGEST = 30
"""The magnitude at which every operation is as strong as it can be."""
KINDS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "saturation", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)
"""The paper's 14. An operation's number is its place here, and 14 more where its strength has a minus sign."""
MOVING, SIGNED = KINDS[1:6], KINDS[6:10]
"""Kinds that move pixels, and others whose strength has a sign."""


def _group(number: int) -> int:
    """The least number of an operation that the one of this number can share a batch with."""
    kind = number % len(KINDS)
    if KINDS[kind] in MOVING:
        return KINDS.index(MOVING[0])
    return number if KINDS[kind] in SIGNED else kind


GROUPS = torch.tensor([_group(number) for number in range(2 * len(KINDS))])
PIXELS_AT_ONCE = 100_000
"""On a CPU, so that what an operation writes stays in the cache. How many times as fast as torchvision, image by image,
on one core, by pixels at once (medians of 5):

    side   all  400,000  200,000  100,000  60,000
      32   4.8      4.8      4.6      5.0     6.4
      96  1.25     1.49     1.55     1.63    1.62
     224  0.78     1.07     1.13     1.15    1.18"""


def randaugment(pixels: Tensor, magnitude: int, generator: torch.Generator) -> Tensor:
    """Two operations an image, drawn with replacement from 14, each of the given magnitude and of either sign.

    Ranges and results are torchvision's, but that a translation is rounded to whole pixels, not cut: of 2.9 pixels, at
    magnitude 6 and 32 px, it is 3 and not 2. Areas that come into view are black.

    Args:
        pixels: uint8 [B, S, S, 3].
        magnitude: 0 to 30 (strongest); at 0 only autocontrast and equalize, which have no strength, change an image,
            and solarize, which then turns pure white.
        generator: on the CPU.

    Returns:
        uint8 [B, S, S, 3].
    """
    strength, side = magnitude / STRONGEST, pixels.shape[1]
    matrices, colours = moves(strength, side), colour_operations(strength)
    images = pixels.permute(0, 3, 1, 2).contiguous()
    piece = max(1, PIXELS_AT_ONCE // side**2) if pixels.device.type == "cpu" else len(pixels)
    for _ in range(OPERATIONS_AN_IMAGE):
        drawn = torch.randint(2 * len(KINDS), (len(pixels),), generator=generator)
        groups = GROUPS[drawn]
        order = groups.argsort(stable=True)
        there = to_device(order, pixels.device)
        changed, start = images.clone(), 0
        for group, count in enumerate(groups.bincount().tolist()):
            rows, start = slice(start, start + count), start + count
            if not count or KINDS[group % len(KINDS)] == "identity":
                continue
            for places, numbers in zip(there[rows].split(piece), drawn[order[rows]].split(piece), strict=True):
                if KINDS[group % len(KINDS)] in MOVING:
                    changed[places] = _moved(images[places], matrices[numbers])
                else:
                    changed[places] = colours[group](images[places])
        images = changed
    return images.permute(0, 2, 3, 1).contiguous()


@cache
def moves(strength: float, side: int) -> Tensor:
    """float32 [28, 2, 3]: by an operation's number, from a pixel's place to the place that it is taken from.

    Places are in pixels from the image's centre. Shears keep the top left corner where it is, as torchvision's do;
    operations that move nothing have the identity.
    """
    table = torch.eye(2, 3, dtype=torch.float64).repeat(2 * len(KINDS), 1, 1)
    for minus in (0, 1):
        sign = -1.0 if minus else 1.0
        of = {kind: table[minus * len(KINDS) + place] for place, kind in enumerate(KINDS)}
        lean = math.tan(math.radians(math.degrees(math.atan(0.3 * strength)) * sign))
        of["shear_x"][0, 1], of["shear_x"][0, 2] = lean, lean * side / 2
        of["shear_y"][1, 0], of["shear_y"][1, 2] = lean, lean * side / 2
        shift = round(150 / 331 * side * strength * sign)
        of["translate_x"][0, 2] = of["translate_y"][1, 2] = -shift
        angle = math.radians(30.0 * strength * sign)
        turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        of["rotate"][:, :2] = torch.tensor(turn, dtype=torch.float64)
    return table.float()


def _moved(images: Tensor, matrices: Tensor) -> Tensor:
    """uint8 [B, 3, S, S], each pixel the one nearest to where its image's matrix float32 [B, 2, 3] says, or black."""
    side = images.shape[-1]
    along = torch.linspace((1 - side) / 2, (side - 1) / 2, side, device=images.device)
    across, down, offset = to_device(matrices / (side / 2), images.device)[..., None, None].unbind(2)
    # not a batched product of matrices: with so narrow ones an image of 224 px takes a CPU 1.5 ms here, not 0.5
    grid = (across * along + down * along[:, None] + offset).permute(0, 2, 3, 1)
    sampled = functional.grid_sample(images.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return sampled.round_().to(torch.uint8)


@cache
def colour_operations(strength: float) -> dict[int, Callable[[Tensor], Tensor]]:
    """The operations that leave pixels in their place, uint8 [B, 3, S, S] in and out, by the number of their group."""
    from torchvision.transforms.v2 import functional as tv  # here: the import takes 4 s, and few trainings need it

    either: dict[str, Callable[..., Tensor]] = {
        "brightness": tv.adjust_brightness,
        "saturation": tv.adjust_saturation,
        "contrast": tv.adjust_contrast,
        "sharpness": adjust_sharpness,
    }
    same: dict[str, Callable[[Tensor], Tensor]] = {
        "posterize": partial(tv.posterize, bits=8 - round(4 * strength)),
        "solarize": partial(tv.solarize, threshold=255 * (1 - strength)),
        "autocontrast": tv.autocontrast,
        "equalize": tv.equalize,
    }
    found = {KINDS.index(kind): operation for kind, operation in same.items()}
    for kind, operation in either.items():
        for minus, sign in ((0, 1.0), (len(KINDS), -1.0)):
            found[KINDS.index(kind) + minus] = partial(operation, **{f"{kind}_factor": 1 + 0.9 * strength * sign})
    return found


def adjust_sharpness(images: Tensor, sharpness_factor: float) -> Tensor:
    """As torchvision's, which makes its kernel on the CPU and so waits for a GPU; uint8 [B, 3, S, S] in and out.

    Args:
        images: the outermost pixels stay as they are.
        sharpness_factor: 0 = blurred, 1 = as it is, above = sharper.
    """
    if images.shape[-1] <= 2:
        return images
    kernel = torch.full((3, 1, 3, 3), 1 / 13, device=images.device)
    kernel[:, :, 1, 1] = 5 / 13
    values = images.float()
    inner = values[..., 1:-1, 1:-1]
    blurred = functional.conv2d(values, kernel, groups=3).round_()
    inner.add_(blurred.sub_(inner), alpha=1 - sharpness_factor)
    return values.clamp_(0, 255).to(torch.uint8)
