"""Views of a batch, on the device that holds it.

Every choice is drawn from a generator on the CPU and sent on: the same seed gives the same views on every device, and a
GPU is never waited for. On one CPU core at 32 px an image costs 12 µs for the crop, 4 µs for the flip and 52 µs for
RandAugment (`randaugment.py`), beside 600 to 1,000 µs for forward and backward of `cnn_small`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

ASPECT = (3 / 4, 4 / 3)
"""Width by height of a resized crop, as in Inception's and SimCLR's."""
JITTER_PROBABILITY, GREY_PROBABILITY = 0.8, 0.2
"""Shares of the views whose colours are changed, and that lose them (Chen et al. 2020, appendix A)."""
JITTER, HUE_JITTER = 0.8, 0.2
"""Largest change of brightness, contrast and saturation, and of hue in turns, at strength 1 (the same appendix)."""
RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))
"""Luma and two chroma axes (NTSC): hue turns the chroma plane, saturation scales it."""


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on that device. From the CPU to a GPU it goes through pinned memory: from any other memory the copy
    would wait until the GPU has done all that it was given before."""
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


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
    mirrored = (side - 1) - ((side - 1) - places).abs()  # at both ends
    rows, columns = to_device(mirrored, pixels.device)
    image = torch.arange(count, device=pixels.device)[:, None, None]
    return pixels[image, rows[:, :, None], columns[:, None, :]]


def random_flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2; uint8 [B, S, S, 3] in and out."""
    flipped = torch.rand(len(pixels), generator=generator) < 0.5
    return torch.where(to_device(flipped, pixels.device)[:, None, None, None], pixels.flip(2), pixels)


def random_resized_crop(pixels: Tensor, size: int, least_area: float, generator: torch.Generator) -> Tensor:
    """A random box of each image, enlarged or reduced to one size, by bilinear interpolation.

    Args:
        pixels: uint8 [B, S', S', 3].
        size: side of the result.
        least_area: smallest share of the image's area in a box, above 0 and up to 1; shares are drawn uniformly, the
            logarithm of width by height in `ASPECT`, sides of boxes that would not fit are cut to the image's.
        generator: on the CPU.

    Returns:
        uint8 [B, size, size, 3].
    """
    count = len(pixels)
    area, aspect, x, y = torch.rand((4, count), generator=generator)
    ratio = torch.exp(math.log(ASPECT[0]) + aspect * math.log(ASPECT[1] / ASPECT[0]))
    side = (least_area + area * (1 - least_area)).sqrt()
    width, height = (side * ratio.sqrt()).clamp(max=1.0), (side / ratio.sqrt()).clamp(max=1.0)
    boxes = torch.zeros(count, 2, 3)  # in units in which the image reaches from -1 to 1
    boxes[:, 0, 0], boxes[:, 0, 2] = width, (2 * x - 1) * (1 - width)
    boxes[:, 1, 1], boxes[:, 1, 2] = height, (2 * y - 1) * (1 - height)
    grid = functional.affine_grid(to_device(boxes, pixels.device), [count, 3, size, size], align_corners=False)
    images = pixels.permute(0, 3, 1, 2).float()
    cropped = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return cropped.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def colour_jitter(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """SimCLR's change of colours, as one linear map of each image's colours, and greyscale.

    Brightness, contrast, saturation and hue change in four of five images, all colour is lost in one of five. Unlike
    there the order of the four is fixed, hue turns in YIQ instead of HSV and values are clipped once, at the end: so a
    3x3 matrix and an offset an image do it. Grey pixels stay grey.

    Args:
        pixels: uint8 [B, S, S, 3].
        strength: 0 and up; 0.5 is SimCLR's for CIFAR-10, 1 for ImageNet.
        generator: on the CPU.

    Returns:
        uint8 [B, S, S, 3].
    """
    count = len(pixels)
    draws = 2 * torch.rand((4, count), generator=generator) - 1
    jittered, grey = torch.rand((2, count), generator=generator)
    amount = strength * (jittered < JITTER_PROBABILITY)
    brightness, contrast, saturation = (1 + JITTER * amount * draws[:3]).clamp(min=0.0)
    saturation = saturation * (grey >= GREY_PROBABILITY)
    angle = 2 * math.pi * HUE_JITTER * amount * draws[3]
    to_yiq = torch.tensor(RGB_TO_YIQ)
    turn = torch.zeros(count, 3, 3)
    turn[:, 0, 0] = 1.0
    turn[:, 1, 1] = turn[:, 2, 2] = saturation * angle.cos()
    turn[:, 2, 1] = saturation * angle.sin()
    turn[:, 1, 2] = -turn[:, 2, 1]
    colours = (brightness * contrast)[:, None, None] * (torch.linalg.inv(to_yiq) @ turn @ to_yiq)
    values = pixels.reshape(count, -1, 3).float()
    # Contrast turns about the mean brightness.
    luma = (values.mean(1) @ to_device(to_yiq[0], pixels.device))[:, None, None]
    offset = to_device(brightness * (1 - contrast), pixels.device)[:, None, None] * luma
    changed = torch.baddbmm(offset, values, to_device(colours.transpose(1, 2), pixels.device))
    return changed.round_().clamp_(0, 255).to(torch.uint8).view(pixels.shape)


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
    order = to_device(torch.randperm(len(images), generator=generator), images.device)
    return images.lerp(images[order], 1 - share), targets.lerp(targets[order], 1 - share)
