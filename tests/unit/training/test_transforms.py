"""Views of a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainref_ray.training import transforms
from trainref_ray.training.transforms import mixup, randaugment, random_crop, random_flip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, side: int) -> Tensor:
    return torch.randint(0, 256, (count, side, side, 3), generator=generator(9), dtype=torch.uint8)


def windows(image: Tensor, size: int) -> list[Tensor]:
    """Every square of `size` of an image [S, S, 3]."""
    last = image.shape[0] - size + 1
    return [image[top : top + size, left : left + size] for top in range(last) for left in range(last)]


@pytest.mark.parametrize(("size", "padding"), [(8, 1), (16, 2)])
def test_crops_of_small_images_are_windows_of_the_mirror_padded_image(size: int, padding: int) -> None:
    pixels = images(40, size)
    padded = functional.pad(pixels.permute(0, 3, 1, 2).float(), [padding] * 4, mode="reflect")
    padded = padded.permute(0, 2, 3, 1).to(torch.uint8)
    cropped = random_crop(pixels, size, generator())
    assert cropped.shape == pixels.shape
    assert cropped.dtype == torch.uint8
    places = set()
    for image, crop in zip(padded, cropped, strict=True):
        found = [number for number, window in enumerate(windows(image, size)) if torch.equal(window, crop)]
        assert len(found) == 1
        places.update(found)
    assert len(places) > (2 * padding + 1) ** 2 // 2, "all offsets are drawn, in both directions"


def test_crops_of_larger_images_are_their_windows() -> None:
    pixels = images(60, 11)
    cropped = random_crop(pixels, 8, generator())
    places = set()
    for image, crop in zip(pixels, cropped, strict=True):
        places.update(number for number, window in enumerate(windows(image, 8)) if torch.equal(window, crop))
    assert cropped.shape == (60, 8, 8, 3)
    assert {0, 15} <= places, "from corner to corner"


def test_flip_mirrors_about_half_from_left_to_right() -> None:
    pixels = images(400, 4)
    flipped = random_flip(pixels, generator())
    mirrored = [torch.equal(new, old.flip(1)) for new, old in zip(flipped, pixels, strict=True)]
    same = [torch.equal(new, old) for new, old in zip(flipped, pixels, strict=True)]
    assert all(one or other for one, other in zip(mirrored, same, strict=True))
    assert 150 < sum(mirrored) < 250


@pytest.mark.parametrize("side", [8, 32])
@pytest.mark.parametrize("magnitude", [1, 9, 30])
def test_randaugment_keeps_type_and_shape_and_changes_most_images(side: int, magnitude: int) -> None:
    pixels = images(64, side)
    before = pixels.clone()
    changed = randaugment(pixels, magnitude, generator())
    assert changed.shape == pixels.shape
    assert changed.dtype == torch.uint8
    assert torch.equal(pixels, before), "the input is left alone"
    different = sum(not torch.equal(new, old) for new, old in zip(changed, pixels, strict=True))
    assert 20 < different <= 64


def test_randaugment_operations_are_as_strong_as_torchvisions() -> None:
    """At full strength, on one bright column and on a grey image."""
    operations = transforms._operations(1.0, 32)
    assert len(operations) == 28
    column = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    column[..., 16] = 200
    moved = operations[3](column)  # along x by 150/331 of the side
    assert moved[0, 0, 0].argmax().item() == 16 + 15
    assert operations[14 + 3](column)[0, 0, 0].argmax().item() == 16 - 15
    grey = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    assert operations[6](grey).unique().tolist() == [190], "brightness, factor 1.9"
    assert operations[14 + 6](grey).unique().tolist() == [10], "brightness, factor 0.1"
    assert operations[10](grey + 5).unique().tolist() == [96], "posterize to 4 bits: 105 becomes 96"
    assert operations[11](grey).unique().tolist() == [155], "solarize from 0: everything is inverted"
    assert torch.equal(operations[0](grey), grey)


def test_randaugment_of_magnitude_zero_changes_no_geometry() -> None:
    column = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    column[..., 5] = 255
    for operation in transforms._operations(0.0, 16)[:6]:
        assert torch.equal(operation(column), column)


def test_mixup_blends_images_and_targets_by_one_share() -> None:
    pictures = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    targets = torch.eye(4)
    blended, mixed = mixup(pictures, targets, 0.4, generator(3))
    np.testing.assert_allclose(mixed.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(blended[:, 0, 0, 0], mixed @ torch.arange(4.0), atol=1e-6)
    shares = {round(float(value), 4) for value in mixed.flatten()} - {0.0, 1.0}
    assert len(shares) == 2
    assert sum(shares) == pytest.approx(1, abs=1e-3)


def test_mixup_draws_from_beta() -> None:
    """With alpha = 0.4 the share has mean 1/2 and variance 1 / (4 (2 alpha + 1)) = 0.139."""
    targets = torch.eye(2)
    draws = []
    for seed in range(600):
        _, mixed = mixup(torch.zeros(2, 1, 1, 1), targets, 0.4, generator(seed))
        if mixed[0, 1] > 0 and mixed[0, 0] > 0:
            draws.append(float(mixed[0, 0]))
    assert np.mean(draws) == pytest.approx(0.5, abs=0.06)
    assert np.var(draws) == pytest.approx(0.139, abs=0.02)


def test_equal_seeds_give_equal_views_and_others_do_not() -> None:
    pixels = images(16, 8)

    def view(seed: int) -> Tensor:
        draws = generator(seed)
        return randaugment(random_flip(random_crop(pixels, 8, draws), draws), 9, draws)

    assert torch.equal(view(1), view(1))
    assert not torch.equal(view(1), view(2))
