"""Animal-10N (Song et al. 2019): `training/LABEL_*.jpg`, labels by people, about 8 % wrong; `testing/LABEL_*.jpg`."""

from __future__ import annotations

import re
from pathlib import Path

from trainref_ray.data.images import EXTENSIONS
from trainref_ray.data.sources import ListedFile, ListedSource, split_path, unique_key
from trainref_ray.errors import ConfigError

CLASS_NAMES = (
    "cat",
    "lynx",
    "wolf",
    "coyote",
    "cheetah",
    "jaguar",
    "chimpanzee",
    "orangutan",
    "hamster",
    "guinea pig",
)
"""In the order of the labels, as the data set's page lists them."""
FOLDERS = {"train": "training", "test": "testing"}


def animal10n_source(root: str | Path, split: str) -> ListedSource:
    """The split `train` or `test`, sorted by file name; the keys are SPLIT/NAME.

    Raises:
        ConfigError: no such folder, no image, or an image whose name does not begin with a label and an underscore.
    """
    root = Path(root)
    folder = root / FOLDERS[split]
    if not folder.is_dir():
        raise ConfigError(f"Animal-10N in {root}: there is no folder {FOLDERS[split]}/")
    files: list[ListedFile] = []
    taken: set[str] = set()
    ignored = 0
    for name in sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".")):
        key, extension = split_path(name)
        if extension not in EXTENSIONS:
            ignored += 1
            continue
        label = re.match(r"([0-9])_", name)
        if label is None:
            raise ConfigError(f"Animal-10N in {folder}: {name!r} does not begin with its label, 0_ to 9_")
        files.append(
            ListedFile(unique_key(f"{split}/{key}", taken), f"{FOLDERS[split]}/{name}", extension, int(label[1]), {})
        )
    if not files:
        raise ConfigError(f"Animal-10N in {folder}: there is no image (.{', .'.join(EXTENSIONS)})")
    return ListedSource("animal10n", CLASS_NAMES, root, files, known_truth=split == "test", ignored_files=ignored)
