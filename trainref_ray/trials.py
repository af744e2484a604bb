"""The trials of a sweep: what each is, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from trainref_ray.config import Config
from trainref_ray.evaluate.ranking import Judgement
from trainref_ray.run import Storage
from trainref_ray.search_space import Point

Status = Literal["running", "complete", "stopped", "failed"]


@dataclass(frozen=True)
class Trial:
    """What one trial is.

    Attributes:
        name: eight hexadecimal digits that change with anything that changes its result.
        point: the values of the space's settings.
        config: all settings.
    """

    name: str
    point: Point
    config: Config

    def home(self, storage: Storage) -> Storage:
        """The trial's own folder in the sweep's."""
        return storage.below(f"trials/{self.name}")


@dataclass
class TrialResult:
    """What is known of a trial, as `trials/NAME/result.json` holds it.

    Attributes:
        name, point: of the trial.
        status: running, complete, stopped (by the scheduler) or failed.
        error: why it failed.
        rounds: agreement and log-likelihood with the references left out, after each round; empty where none can be.
        judged: the last round's references, whether each is right, and the probability of its trusted class.
        metrics: figures that need truth or test data, where there are; they choose nothing.
        stages: records of the stages, as in `summary.json`.
        seconds: of this start.
    """

    name: str
    point: Point
    status: Status = "running"
    error: str | None = None
    rounds: list[dict[str, float]] = field(default_factory=list)
    judged: dict[str, list[Any]] | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    PATH = "result.json"

    @property
    def judgement(self) -> Judgement | None:
        """The last round's, or None where no reference can be left out."""
        if self.judged is None:
            return None
        return Judgement(
            np.array(self.judged["uids"], np.int64),
            np.array(self.judged["right"], bool),
            np.array(self.judged["probability"], np.float64),
        )

    def write(self, home: Storage) -> None:
        """Save to the trial's folder."""
        home.write_json(self.PATH, asdict(self))

    @classmethod
    def read(cls, home: Storage) -> TrialResult | None:
        """What an earlier start has saved, None where it has not."""
        return cls(**home.read_json(cls.PATH)) if home.exists(cls.PATH) else None
