"""What a person sees while a run goes on, and the record of each stage for the summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_LINE_SECONDS = 10.0
"""Between two lines of one stage where the output is no terminal: a log should stay readable."""


@dataclass
class StageRecord:
    """One stage of one round, as `summary.json` lists it. `seconds` is what this start of the run spent on it."""

    name: str
    round: int
    seconds: float = 0.0
    items: int = 0
    items_per_second: float = 0.0
    shards: int = 0
    shards_reused: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


class StageProgress:
    """Counts shards and items of one running stage and shows them."""

    def __init__(
        self, record: StageRecord, unit: str, total_items: int, parts: tuple[int, str], reporter: Reporter
    ) -> None:
        self.record = record
        self._unit = unit
        self._total = total_items
        self._parts, self._part_name = parts
        self._parts_done = record.shards_reused
        self._reporter = reporter
        self._started = time.monotonic()
        self._last_line = self._started

    def resume(self, parts: int, items: int) -> None:
        """So many parts and items an earlier start has done: fewer are left, and none of this start's."""
        self._parts_done += parts
        self._total -= items
        self._reporter.message(f"resuming: {self.title}: {self._parts_done} of {self._parts} {self._part_name} done")

    def advance(self, items: int, shards: int = 0) -> None:
        """`items` more are done, and `shards` (or what the stage's parts are) more are finished."""
        self.record.items += items
        self._parts_done += shards
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = self.record.items / elapsed
        self._reporter.update(self, self._text(rate), min(self.record.items, self._total), self._total)
        if self.record.items < self._total and time.monotonic() - self._last_line >= PLAIN_LINE_SECONDS:
            self._last_line = time.monotonic()
            left = max(self._total - self.record.items, 0) / rate if rate else 0.0
            self._reporter.plain(f"{self.title}: {self._text(rate)}, about {left:.0f} s left")

    @property
    def title(self) -> str:
        """Stage and round."""
        return f"round {self.record.round} {self.record.name}" if self.record.round else self.record.name

    def _text(self, rate: float) -> str:
        return f"{self._parts_done} of {self._parts} {self._part_name}, {rate:,.0f} {self._unit}/s"


class Reporter:
    """Shows stages: a live bar in a terminal, plain lines elsewhere. Collects the records, and calls `on_stage` with
    each."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr)
        self.records: list[StageRecord] = []
        self.on_stage: Callable[[StageRecord], object] | None = None
        self._live: Progress | None = None
        self._task: Any = None

    def plain(self, line: str) -> None:
        """A line where there is no live bar."""
        if self._live is None:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def message(self, line: str) -> None:
        """A line in any case."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def update(self, stage: StageProgress, text: str, done: int, total: int) -> None:
        """Move the live bar, if there is one."""
        if self._live is not None:
            self._live.update(self._task, completed=done, total=max(total, 1), status=text)

    @contextmanager
    def stage(
        self,
        name: str,
        round_: int,
        *,
        shards: int,
        reused: int,
        items: int,
        unit: str = "images",
        epochs: int | None = None,
    ) -> Iterator[StageProgress]:
        """Show a stage while it runs and record it.

        Args:
            name: of the stage.
            round_: 0 for what comes before the first curation.
            shards: all shards of the stage.
            reused: shards that an earlier start of the run has finished.
            items: what is to be done now, in `unit`.
            unit: what is counted.
            epochs: of a training, whose parts are epochs and not shards.
        """
        record = StageRecord(name, round_, shards=shards, shards_reused=reused)
        parts = (shards, "shards") if epochs is None else (epochs, "epochs")
        progress = StageProgress(record, unit, items, parts, self)
        if reused:
            self.message(f"resuming: {progress.title}: {reused} of {shards} shards done")
        started = time.monotonic()
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description:<28}"),
                BarColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self.console, transient=True) as self._live:
                self._task = self._live.add_task(progress.title, total=max(items, 1), status="starting")
                try:
                    yield progress
                finally:
                    self._live.stop()
                    self._live = None
        else:
            yield progress
        record.seconds = round(time.monotonic() - started, 3)
        record.items_per_second = round(record.items / record.seconds, 1) if record.seconds else 0.0
        self.records.append(record)
        if self.on_stage is not None:
            self.on_stage(record)
        self.message(
            f"{progress.title}: {record.items:,} {unit} in {record.seconds:.1f} s"
            + (f", {record.items_per_second:,.0f} {unit}/s" if record.items else "")
        )

    def reused(self, name: str, round_: int, shards: int) -> None:
        """Record a stage that an earlier start has finished whole."""
        self.records.append(StageRecord(name, round_, shards=shards, shards_reused=shards))
        title = f"round {round_} {name}" if round_ else name
        self.message(f"resuming: {title}: done before")
