"""RandAugment: the operations of torchvision, each image its own."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from trainref_ray.training import randaugment as module
from trainref_ray.training.randaugment import GROUPS, KINDS, MOVING, colour_operations, moves, randaugment

COUNT = 2 * len(KINDS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, side: int) -> Tensor:
    return torch.randint(0, 256, (count, side, side, 3), generator=generator(9), dtype=torch.uint8)


def one_operation(pixels: Tensor, number: int, magnitude: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """All images through the operation of this number first, and the identity after it."""
    draws = iter([torch.full((len(pixels),), number), torch.zeros(len(pixels), dtype=torch.int64)])
    monkeypatch.setattr(torch, "randint", lambda *shape, generator: next(draws))
    return randaugment(pixels, magnitude, generator())


def expected(images: Tensor, number: int, strength: float) -> Tensor:
    """What torchvision makes of uint8 [B, 3, S, S], with the ranges of its RandAugment."""
    kind, sign = KINDS[number % len(KINDS)], 1.0 if number < len(KINDS) else -1.0
    lean = float(np.degrees(np.arctan(0.3 * strength))) * sign
    shift = round(150 / 331 * images.shape[-1] * strength * sign)
    move = partial(tv.affine, images, angle=0.0, scale=1.0)
    factor = 1 + 0.9 * strength * sign
    if kind in ("shear_x", "shear_y"):
        return move(translate=[0, 0], shear=[lean, 0.0] if kind == "shear_x" else [0.0, lean], center=[0, 0])
    if kind in ("translate_x", "translate_y"):
        return move(translate=[shift, 0] if kind == "translate_x" else [0, shift], shear=[0.0, 0.0])
    if kind == "rotate":
        return tv.rotate(images, angle=30.0 * strength * sign)
    if kind in ("brightness", "saturation", "contrast", "sharpness"):
        return getattr(tv, f"adjust_{kind}")(images, factor)
    if kind == "posterize":
        return tv.posterize(images, bits=8 - round(4 * strength))
    if kind == "solarize":
        return tv.solarize(images, threshold=255 * (1 - strength))
    return images if kind == "identity" else getattr(tv, kind)(images)


@pytest.mark.parametrize("side", [7, 32, 96])
@pytest.mark.parametrize("magnitude", [6, 30])
@pytest.mark.parametrize("number", range(COUNT))
def test_each_operation_is_torchvisions(
    number: int, magnitude: int, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = images(5, side)
    pixels[0] = 90  # one without any contrast
    wanted = expected(pixels.permute(0, 3, 1, 2), number, magnitude / 30).permute(0, 2, 3, 1)
    assert torch.equal(one_operation(pixels, number, magnitude, monkeypatch), wanted)


def test_each_image_goes_through_its_own_operations() -> None:
    """Two of those it drew, one after the other, whatever its neighbours drew."""
    pixels, draws = images(300, 16), generator(3)
    first, second = (torch.randint(COUNT, (300,), generator=draws) for _ in range(2))
    changed = randaugment(pixels, 12, generator(3))
    assert set(first.tolist()) == set(range(COUNT))
    for image, result, *numbers in zip(pixels, changed, first.tolist(), second.tolist(), strict=True):
        wanted = image.permute(2, 0, 1)[None]
        for number in numbers:
            wanted = expected(wanted, number, 12 / 30)
        assert torch.equal(result, wanted[0].permute(1, 2, 0))


def test_a_group_goes_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = images(64, 16)
    whole = randaugment(pixels, 9, generator())
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 3 * 16**2)
    assert torch.equal(randaugment(pixels, 9, generator()), whole)
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 16)  # less than an image
    assert torch.equal(randaugment(pixels, 9, generator()), whole)


def test_the_input_is_left_alone_and_most_images_change() -> None:
    pixels = images(64, 32)
    before = pixels.clone()
    changed = randaugment(pixels, 9, generator())
    assert torch.equal(pixels, before)
    assert (changed.shape, changed.dtype) == (pixels.shape, torch.uint8)
    assert 20 < (changed != pixels).flatten(1).any(1).sum() <= 64


def test_magnitude_zero_moves_nothing() -> None:
    assert torch.equal(moves(0.0, 16), torch.eye(2, 3).expand(COUNT, 2, 3))


def test_groups_hold_what_one_call_can_do() -> None:
    """Identity, all moves together, four with a sign, twice, and four without."""
    assert len(GROUPS.unique()) == 1 + 1 + 2 * 4 + 4
    moving = [KINDS[number % len(KINDS)] in MOVING for number in range(COUNT)]
    assert len(GROUPS[torch.tensor(moving)].unique()) == 1
    assert set(colour_operations(0.3)) == set(GROUPS.tolist()) - {0, 1}
