"""Tables: what `check` refuses, and sparse soft labels there and back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainref_ray import schemas
from trainref_ray.errors import SchemaError


def test_uids_hold_shard_and_row() -> None:
    assert schemas.make_uids(3, 2, first=5).tolist() == [3 * 2**32 + 5, 3 * 2**32 + 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uid": None}, "missing columns"),
        ({"more": [1]}, "unknown columns"),
        ({"true_label": ["x"]}, "true_label"),
        ({"uid": [None]}, "nulls"),
    ],
)
def test_check_names_the_column(change: dict, message: str) -> None:
    content = {"uid": [1], "true_label": [2]} | change
    table = pa.table({name: values for name, values in content.items() if values is not None})
    with pytest.raises(SchemaError, match=message):
        schemas.check(table, schemas.TRUTH, "truth of shard 0")


def test_check_refuses_nan() -> None:
    table = pa.table({"uid": [1], "label": [0], "label_evidence": [float("nan")], "evidence_norm": [0.0]})
    with pytest.raises(SchemaError, match="NaN"):
        schemas.check(table, schemas.evidence(2), "evidence")


def test_check_orders_casts_and_describes_columns() -> None:
    table = schemas.check(pa.table({"true_label": [1], "uid": [7]}), schemas.TRUTH, "truth")
    assert table.schema.names == ["uid", "true_label"]
    assert table.schema.field("true_label").type == pa.int32()
    assert b"description" in table.schema.field("uid").metadata


def test_soft_labels_are_sorted_and_null_where_not_kept() -> None:
    column = schemas.soft_label_column(np.array([[0.2, 0.8, 0.0], [1.0, 0.0, 0.0]]), np.array([True, False]))
    assert column.to_pylist()[1] is None
    assert [entry["class"] for entry in column.to_pylist()[0]] == [1, 0]
    assert [entry["p"] for entry in column.to_pylist()[0]] == pytest.approx([0.8, 0.2])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.integers(2, 12), st.integers(0, 2**31))
def test_sparse_soft_labels_come_back(rows: int, classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    dense = random.dirichlet(np.full(classes, 0.3), rows).reshape(rows, classes)
    keep = random.random(rows) < 0.7
    back = schemas.dense_soft_labels(schemas.soft_label_column(dense, keep, floor=0.0), classes)
    assert np.allclose(back, dense * keep[:, None], atol=1e-6)


def test_fixed_size_lists_keep_nulls_and_shape() -> None:
    values = np.arange(6, dtype=np.int64).reshape(2, 3)
    column = schemas.fixed_size_list(values, pa.int64(), values == 5)
    assert column.to_pylist() == [[0, 1, 2], [3, 4, None]]
    assert schemas.to_matrix(pa.chunked_array([column]), fill=-1).tolist() == [[0, 1, 2], [3, 4, -1]]
