"""One pyarrow schema per table; the meaning of each column stands in its metadata.

Missing values are null, never NaN. Scores lie in [0, 1]; their direction is part of the description.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainref_ray.errors import SchemaError

SCHEMA_VERSION = 3
"""Part of every stage's fingerprint: a change of any schema below computes the tables anew."""

SHARD_BITS = 32
"""uid = shard_id << 32 | row: room for 2^31 shards of 2^32 samples."""

OK = "ok"
QUARANTINED = "quarantined"
DECISIONS = ("keep", "relabel", "soften", "ood", "quarantined")


def make_uids(shard_id: int, rows: int, first: int = 0) -> np.ndarray:
    """int64 ids of rows `first .. first + rows - 1` of a shard."""
    return (np.int64(shard_id) << np.int64(SHARD_BITS)) + np.arange(first, first + rows, dtype=np.int64)


def _column(name: str, kind: pa.DataType, meaning: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": meaning})


SOFT_LABEL = pa.list_(pa.struct([("class", pa.int32()), ("p", pa.float32())]))

INVENTORY = pa.schema(
    [
        _column("shard_id", pa.int32(), "number of the shard in this run; assigned once, only appended to"),
        _column("url", pa.string(), "where the tar is"),
        _column("etag", pa.string(), "changes when the file changes: the store's tag, else size and modification time"),
        _column("bytes", pa.int64(), "size of the tar"),
        _column(
            "samples", pa.int64(), "rows of the shard, the quarantined included; null before it is read", nullable=True
        ),
    ]
)

SAMPLES = pa.schema(
    [
        _column("uid", pa.int64(), "shard_id << 32 | row"),
        _column("key", pa.string(), "name of the sample in its tar, without extension"),
        _column("label", pa.int32(), "given (noisy) label", nullable=True),
        _column("width", pa.int32(), "pixels", nullable=True),
        _column("height", pa.int32(), "pixels", nullable=True),
        _column("sha256", pa.string(), "of the image's bytes as stored, hexadecimal", nullable=True),
        _column("status", pa.string(), "ok or quarantined"),
        _column("error", pa.string(), "why a quarantined sample cannot be used", nullable=True),
    ]
)

TRUTH = pa.schema(
    [
        _column("uid", pa.int64(), "shard_id << 32 | row"),
        _column(
            "true_label",
            pa.int32(),
            "true class, -1 = of none; for evaluation and the choice of references only",
            nullable=True,
        ),
    ]
)

REFERENCES = pa.schema(
    [
        _column("uid", pa.int64(), "shard_id << 32 | row"),
        _column("label", pa.int32(), "trusted label of a given reference, given label of an added one"),
        _column("given", pa.bool_(), "true: from the reference set; false: added by augmentation"),
        _column("evidence", pa.float32(), "normalised evidence of the label, -1 to 1, higher = surer", nullable=True),
        _column("sha256", pa.string(), "of the image's bytes", nullable=True),
    ]
)


def embeddings(width: int, classes: int) -> pa.Schema:
    """Table of unit-norm embeddings of `width` float16 components and, where the model has a trained head (`classes`
    above 0), of its logits."""
    head = [_column("model_logits", pa.list_(pa.float16(), classes), "of the embedding model's own head")]
    return pa.schema(
        [
            _column("uid", pa.int64(), "shard_id << 32 | row"),
            _column("embedding", pa.list_(pa.float16(), width), "unit norm"),
            *(head if classes else []),
        ]
    )


def evidence(classes: int) -> pa.Schema:
    """Table of what the probe and the given references say of each sample, over `classes` classes."""
    return pa.schema(
        [
            _column("uid", pa.int64(), "shard_id << 32 | row"),
            _column("label", pa.int32(), "given label; trusted label of a reference"),
            _column("label_evidence", pa.float32(), "normalised evidence of `label`, -1 to 1, higher = label likelier"),
            _column("evidence_norm", pa.float32(), "length of the evidence before it was normalised, 0 and up"),
        ]
    )


def supporters(k: int) -> pa.Schema:
    """Table of the k supporters of each sample, most similar first; null where there are fewer."""
    return pa.schema(
        [
            _column("uid", pa.int64(), "shard_id << 32 | row"),
            _column("supporter_uid", pa.list_(pa.int64(), k), "uids of the supporters"),
            _column("supporter_similarity", pa.list_(pa.float32(), k), "cosine, -1 to 1"),
            _column("supporter_label", pa.list_(pa.int32(), k), "labels of the supporters"),
        ]
    )


def distributions(classes: int) -> pa.Schema:
    """Table of the combined evidence of each sample over `classes` classes."""
    return pa.schema(
        [
            _column("uid", pa.int64(), "shard_id << 32 | row"),
            _column(
                "distribution",
                pa.list_(pa.float16(), classes),
                "mean of supporters' vote, influence and model, before sharpening and before the given label speaks",
            ),
        ]
    )


DECISION = pa.schema(
    [
        _column("uid", pa.int64(), "shard_id << 32 | row"),
        _column("key", pa.string(), "name of the sample; `shard:key` where the key is not unique over all shards"),
        _column("label", pa.int32(), "given label", nullable=True),
        _column("decision", pa.dictionary(pa.int32(), pa.string()), "keep, relabel, soften, ood or quarantined"),
        _column(
            "soft_label",
            SOFT_LABEL,
            "curated label distribution, largest first; null for ood and quarantined",
            nullable=True,
        ),
        _column(
            "best_class", pa.int32(), "largest class of the distribution, that of an ood sample included", nullable=True
        ),
        _column("label_quality", pa.float32(), "0 to 1, higher = the given label is more likely right", nullable=True),
        _column("ood_score", pa.float32(), "0 to 1, higher = stranger; above 0.5 lies beyond the cut", nullable=True),
        _column("reason", pa.string(), "why this decision"),
    ]
)


def predictions(classes: int) -> pa.Schema:
    """Table of a model's logits for each test image or reference."""
    return pa.schema(
        [
            _column("uid", pa.int64(), "shard_id << 32 | row"),
            _column("logits", pa.list_(pa.float32(), classes), "before softmax and temperature"),
        ]
    )


def check(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """Return `table` with exactly `schema`, its columns in the schema's order.

    Args:
        table: the table to check; it may have its columns in another order, and no metadata.
        schema: one of the schemas above.
        where: what the table is, for the message (e.g. "decisions of shard 12").

    Raises:
        SchemaError: a column is missing, unknown, of another type, has nulls where none are allowed, or has a NaN.
    """
    missing = [name for name in schema.names if name not in table.column_names]
    unknown = [name for name in table.column_names if name not in schema.names]
    if missing or unknown:
        raise SchemaError(f"{where}: missing columns {missing}, unknown columns {unknown}; allowed: {schema.names}")
    columns = []
    for field in schema:
        column = table.column(field.name)
        try:
            column = column.cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise SchemaError(f"{where}: column {field.name!r} is {column.type}, not {field.type} ({error})") from None
        if not field.nullable and column.null_count:
            raise SchemaError(f"{where}: column {field.name!r} has {column.null_count} nulls; none are allowed")
        if pa.types.is_floating(field.type) and pc.any(pc.is_nan(column)).as_py():
            raise SchemaError(f"{where}: column {field.name!r} has NaN values; missing values are null")
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def fixed_size_list(values: np.ndarray, kind: pa.DataType, mask: np.ndarray | None = None) -> pa.FixedSizeListArray:
    """[n, d] numpy values as a portable Arrow column; `mask` true = null component."""
    flat = pa.array(
        np.ascontiguousarray(values).reshape(-1),
        type=kind,
        mask=None if mask is None else np.ascontiguousarray(mask).reshape(-1),
    )
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def to_matrix(column: pa.ChunkedArray, fill: float | None = None) -> np.ndarray:
    """A fixed-size-list column as a numpy [n, d] matrix; null components become `fill`."""
    width = column.type.list_size
    flat = column.combine_chunks().flatten() if isinstance(column, pa.ChunkedArray) else column.flatten()
    if fill is not None:
        flat = pc.fill_null(flat, fill)
    return flat.to_numpy(zero_copy_only=False).reshape(-1, width)


def soft_label_column(distributions: np.ndarray, keep: np.ndarray, floor: float = 1e-4) -> pa.ListArray:
    """[n, C] distributions as sparse lists, largest first; rows with `keep` false are null.

    Classes below `floor` are left out and the rest is scaled to sum to 1, so that 1,000 classes do not cost 1,000
    entries a row.
    """
    kept = np.where(distributions >= floor, distributions, 0.0) * keep[:, None]
    kept = kept / np.maximum(kept.sum(axis=1, keepdims=True), 1e-12)
    counts = (kept > 0).sum(axis=1)
    order = np.argsort(-kept, axis=1, kind="stable")
    taken = np.arange(kept.shape[1])[None, :] < counts[:, None]
    entries = pa.StructArray.from_arrays(
        [
            pa.array(order[taken].astype(np.int32)),
            pa.array(np.take_along_axis(kept, order, axis=1)[taken].astype(np.float32)),
        ],
        names=["class", "p"],
    )
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), entries, mask=pa.array(~keep))


def dense_soft_labels(column: pa.ChunkedArray | pa.ListArray, classes: int) -> np.ndarray:
    """The inverse of `soft_label_column`: float32 [n, C]; a null row is all zero."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    dense = np.zeros((len(array), classes), np.float32)
    if not len(array):
        return dense
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    entries = array.flatten()
    rows = np.repeat(np.arange(len(array)), lengths)
    dense[rows, entries.field(0).to_numpy()] = entries.field(1).to_numpy()
    return dense
