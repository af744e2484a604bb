"""Views of a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainref_ray.training import transforms
from trainref_ray.training.randaugment import randaugment
from trainref_ray.training.transforms import (
    colour_jitter,
    mixup,
    random_crop,
    random_flip,
    random_resized_crop,
)


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


def ramp(count: int, side: int) -> Tensor:
    """Images that say where a pixel is: red rises by 4 a column, green by 4 a row."""
    place = 4 * torch.arange(side)
    image = torch.zeros(side, side, 3, dtype=torch.int64)
    image[:, :, 0], image[:, :, 1], image[:, :, 2] = place[None, :], place[:, None], 7
    return image.to(torch.uint8).repeat(count, 1, 1, 1)


@pytest.mark.parametrize(("side", "size"), [(8, 8), (40, 32)])
def test_resized_crops_are_boxes_of_the_allowed_areas_and_shapes(side: int, size: int) -> None:
    """On a ramp the step between two pixels tells the box's sides; its border rows are left out."""
    crops = random_resized_crop(ramp(300, side), size, 0.25, generator()).float()
    assert crops.shape == (300, size, size, 3)
    assert (crops[..., 2] == 7).all()
    middle = slice(size // 4, size - size // 4)
    count = size - 2 * (size // 4) - 1
    inner = crops[:, middle, middle]
    width = (inner[:, 0, -1, 0] - inner[:, 0, 0, 0]) / count * size / (4 * side)
    height = (inner[:, -1, 0, 1] - inner[:, 0, 0, 1]) / count * size / (4 * side)
    tolerance = 1.2 / count * size / (4 * side)  # two values rounded to integers, and the mirrored border
    area, ratio = width * height, width / height
    assert area.min() > 0.25 - 2.5 * tolerance
    assert area.max() <= (1 + tolerance) ** 2
    assert area.min() < 0.35
    assert area.max() > 0.9
    assert ratio.min() > 3 / 4 - 3 * tolerance
    assert ratio.max() < 4 / 3 + 4 * tolerance
    corners = crops[:, 0, 0, :2]
    assert len(corners.unique(dim=0)) > 30, "an own place for each image"


def test_a_resized_crop_of_everything_changes_nothing_where_the_shape_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "ASPECT", (1.0, 1.0 + 1e-9))
    pixels = images(5, 9)
    assert torch.equal(random_resized_crop(pixels, 9, 1.0, generator()), pixels)


def draw(values: list[list[float]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Script what `torch.rand` gives: one list after the other."""
    rows = iter(values)
    monkeypatch.setattr(
        transforms.torch, "rand", lambda shape, generator: torch.tensor([next(rows) for _ in range(shape[0])])
    )


HALF, JITTERED, NOT_GREY = [0.5, 0.5], [0.0, 0.0], [0.9, 0.9]


def jitter_with(monkeypatch: pytest.MonkeyPatch, draws: list[list[float]], grey: list[float] = NOT_GREY) -> Tensor:
    """Two images of two pixels each; draws of brightness, contrast, saturation and hue, 0.5 = unchanged."""
    pixels = torch.tensor([[[[100, 60, 20], [40, 80, 120]]], [[[200, 0, 0], [50, 50, 50]]]], dtype=torch.uint8)
    with monkeypatch.context() as patch:
        draw([*draws, JITTERED, grey], patch)
        return colour_jitter(pixels, 0.5, generator())


def test_colours_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """At strength 0.5 a draw of 1 means a factor of 1.4, of 0 one of 0.6."""
    pixels = jitter_with(monkeypatch, [HALF] * 4)
    assert pixels.tolist() == [[[[100, 60, 20], [40, 80, 120]]], [[[200, 0, 0], [50, 50, 50]]]]
    brighter = jitter_with(monkeypatch, [[1.0, 0.0], HALF, HALF, HALF])  # an image its own factor
    assert brighter.tolist() == [[[[140, 84, 28], [56, 112, 168]]], [[[120, 0, 0], [30, 30, 30]]]]
    # luma of the first image: means (70, 70, 70) give 70; v -> 70 + 1.4 (v - 70)
    # of the second (125, 25, 25) give 54.9; v -> 54.9 + 0.6 (v - 54.9)
    contrast = jitter_with(monkeypatch, [HALF, [1.0, 0.0], HALF, HALF])
    assert contrast.tolist() == [[[[112, 56, 0], [28, 84, 140]]], [[[142, 22, 22], [52, 52, 52]]]]
    # luma of (100, 60, 20) is 67.4; v -> 67.4 + 0.6 (v - 67.4)
    pale = jitter_with(monkeypatch, [HALF, HALF, [0.0, 0.0], HALF])
    assert pale[0, 0, 0].tolist() == [87, 63, 39]
    assert pale[1, 0, 1].tolist() == [50, 50, 50]


def test_hue_turns_colours_and_keeps_luma(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = jitter_with(monkeypatch, [HALF, HALF, HALF, [1.0, 1.0]])  # 0.1 of a turn
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert turned[0, 0, 0].tolist() != [100, 60, 20]
    assert float(turned[0, 0, 0].float() @ luma) == pytest.approx(67.4, abs=1.0)
    chroma = torch.tensor(transforms.RGB_TO_YIQ)[1:] @ turned[0, 0, 0].float()
    assert float(chroma.norm()) == pytest.approx(36.9, abs=1.0), "as far from grey as before: (36.7, -4.0)"
    assert float(torch.atan2(chroma[1], chroma[0])) == pytest.approx(0.2 * np.pi - 0.109, abs=0.05)
    assert turned[1, 0, 1].tolist() == [50, 50, 50], "grey has no hue"
    back = jitter_with(monkeypatch, [HALF, HALF, HALF, [0.0, 0.0]])
    assert not torch.equal(back[0], turned[0])


def test_greyscale_is_luma_of_one_image_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = jitter_with(monkeypatch, [HALF] * 4, grey=[0.1, 0.9])
    assert grey[0].tolist() == [[[67, 67, 67], [73, 73, 73]]]  # 67.4; 0.299 * 40 + 0.587 * 80 + 0.114 * 120 = 72.6
    assert grey[1, 0, 0].tolist() == [200, 0, 0]


def test_shares_of_changed_and_grey_images_and_grey_stays_grey() -> None:
    pixels = images(2000, 2)
    changed = colour_jitter(pixels, 0.5, generator())
    same = (changed == pixels).flatten(1).all(1).float().mean()
    grey = (changed[..., :1] == changed).flatten(1).all(1).float().mean()
    assert same == pytest.approx(0.2 * 0.8, abs=0.03)
    assert grey == pytest.approx(0.2, abs=0.03)
    grey_images = pixels[..., :1].repeat(1, 1, 1, 3)
    still = colour_jitter(grey_images, 1.0, generator())
    assert (still == still[..., :1]).all()
    assert not torch.equal(still, grey_images)
