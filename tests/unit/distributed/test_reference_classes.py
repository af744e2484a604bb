"""Which classes there are where nothing names them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_label_free import context

from trainref_ray.distributed.inventory import choose_references
from trainref_ray.errors import ReferenceSetError


def test_a_class_that_given_labels_alone_have_is_missed_before_anything_is_trained(tmp_path: Path) -> None:
    made = context(tmp_path, labels=[0, 1, 2])
    made.names = {"duplicated": frozenset(), "shards": {}}
    made.inputs = replace(made.inputs, reference_rows=[("a", 0), ("b", 1)])
    with pytest.raises(ReferenceSetError, match="2"):
        choose_references(made)
    made.config = made.config.model_copy(update={"allow_missing_classes": True})
    choose_references(made)
    assert made.class_names == ["0", "1", "2"]


def test_a_label_that_no_number_of_classes_explains_names_its_sample(tmp_path: Path) -> None:
    made = context(tmp_path, labels=[0, 2_000_000_000, 1])
    made.names = {"duplicated": frozenset(), "shards": {}}
    made.inputs = replace(made.inputs, reference_rows=[("a", 0), ("c", 1)])
    with pytest.raises(ReferenceSetError, match=r"sample 'b' has the label 2,000,000,000 and there are 3 samples"):
        choose_references(made)
