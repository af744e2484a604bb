"""Errors a user can act on: each message says what is wrong, where, and what would be right.

The command line prints such an error as one line and leaves with `exit_code`; anything else is a defect and keeps its
traceback.
"""

from __future__ import annotations


class TrainRefError(Exception):
    """Base of all errors that this package raises on purpose."""

    exit_code = 2


class ConfigError(TrainRefError):
    """A setting, preset or option that is unknown or out of range."""


class ShardError(TrainRefError):
    """A shard, or a set of shards, that cannot be used as a whole."""


class ReferenceSetError(TrainRefError):
    """A reference set that does not fit the data: unknown key, class without a reference, unknown column."""


class SchemaError(TrainRefError):
    """A table that does not have the columns, types or values its schema states."""


class ResumeError(TrainRefError):
    """A run folder that cannot be continued: not a run, or owned by another job."""


class ResourceError(TrainRefError):
    """The machine or cluster cannot run a stage: too few CPUs, GPUs or memory."""


class TrackingError(TrainRefError):
    """The MLflow store cannot be reached or used."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in a line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
