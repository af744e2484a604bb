"""Two models' predictions of the same test images side by side: which images, and what is shown of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

SHOWN_CLASSES = 5
"""As the paper's page shows them."""
GROUPS = ("only {0} is right", "only {1} is right", "both are right", "both are wrong")


@dataclass(frozen=True)
class Side:
    """What one model says of an image: its largest classes with their probabilities, and whether the first is right."""

    top: list[tuple[str, float]]
    right: bool


@dataclass(frozen=True)
class ConfidenceCard:
    """A test image: its row, its file's bytes (None = not read yet), its true class, the two models' sides."""

    row: int
    image: bytes | None
    truth: str
    sides: tuple[Side, Side]


@dataclass(frozen=True)
class ConfidenceGroup:
    """Images on which the models differ or agree in one way: how many there are, and some of them, drawn at random."""

    name: str
    count: int
    cards: list[ConfidenceCard]


@dataclass(frozen=True)
class Confidence:
    """The page's content.

    Attributes:
        names: of the two models.
        temperatures: by which their logits were divided.
        tests: test images with a known class.
        groups: in the order of `GROUPS`.
    """

    names: tuple[str, str]
    temperatures: tuple[float, float]
    tests: int
    groups: list[ConfidenceGroup]

    def with_images(self, fetch: Callable[[Sequence[int]], Mapping[int, bytes]]) -> Confidence:
        """The same with the images' files, which `fetch` gives for the rows that it is called with."""
        files = fetch(sorted(card.row for group in self.groups for card in group.cards))
        groups = [
            replace(group, cards=[replace(card, image=files[card.row]) for card in group.cards])
            for group in self.groups
        ]
        return replace(self, groups=groups)


def confidence_content(
    probabilities: Sequence[np.ndarray],
    labels: np.ndarray,
    *,
    names: tuple[str, str],
    class_names: Sequence[str],
    temperatures: Sequence[float],
    size: int,
    seed: int,
) -> Confidence | None:
    """Draw images at random, as many (to within one) from each way in which the two models differ or agree.

    A draw from all images alike would show the easy ones; how many each group stands for is told beside it.

    Args:
        probabilities: of the two models, float [T, C].
        labels: int [T], −1 = unknown, never drawn.
        names: of the models.
        class_names: C names.
        temperatures: of the models.
        size: images on the page, at most.
        seed: of the draw.

    Returns:
        None if the class of no image is known.
    """
    ours, theirs = (values.argmax(axis=1) == labels for values in probabilities)
    known = labels >= 0
    if not known.any():
        return None
    random = np.random.default_rng(seed)
    groups: list[ConfidenceGroup] = []
    for form, rows in zip(GROUPS, (ours & ~theirs, ~ours & theirs, ours & theirs, ~ours & ~theirs), strict=True):
        members = np.flatnonzero(rows & known)
        drawn = np.sort(random.permutation(members)[: (size + len(groups)) // len(GROUPS)])
        cards = [
            ConfidenceCard(
                row=int(row),
                image=None,
                truth=class_names[labels[row]],
                sides=(
                    _side(probabilities[0][row], labels[row], class_names),
                    _side(probabilities[1][row], labels[row], class_names),
                ),
            )
            for row in drawn
        ]
        groups.append(ConfidenceGroup(form.format(*names), len(members), cards))
    first, second = temperatures
    return Confidence(names, (first, second), int(known.sum()), groups)


def _side(probabilities: np.ndarray, label: int, class_names: Sequence[str]) -> Side:
    order = np.argsort(-probabilities, kind="stable")[:SHOWN_CLASSES]
    return Side([(class_names[index], float(probabilities[index])) for index in order], bool(order[0] == label))
