"""Ray tasks whose worker or machine may die: they are begun again a few times, by us.

Ray begins a task that may be retried at all again without end when its worker ran out of memory (2.60, measured: with
`max_retries` 3 it had not given up after 45 s, with 0 it told at once). So no task here has Ray's own retries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from trainref_ray.distributed.stages import own_error
from trainref_ray.errors import ResourceError

MAX_FAILURES = 3
"""Times that a task is begun again whose worker or machine died."""
LOOK_SECONDS = 10.0
"""Between two calls of `look`."""


@dataclass(frozen=True)
class Task:
    """A call in a worker.

    Attributes:
        function: what is called there.
        arguments: with what.
        options: what it needs, as `ray.remote` takes them.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def start(self) -> ray.ObjectRef:
        return ray.remote(self.function).options(max_retries=0, **self.options).remote(*self.arguments)


def completed(
    tasks: Mapping[str, Task], look: Callable[[Iterable[str]], None] | None = None
) -> Iterator[tuple[str, Any]]:
    """Run the tasks, and give each with what it returned, as they are finished; a task without memory with a
    `ResourceError` in its place.

    Args:
        tasks: by name.
        look: called now and then with the names of those that run.

    Raises:
        TrainRefError: what a task raised on purpose.
        ray.exceptions.RayError: what else it raised, or its worker died too often.
    """
    running = {task.start(): name for name, task in tasks.items()}
    failures = dict.fromkeys(tasks, 0)
    while running:
        ready, _ = ray.wait(list(running), timeout=LOOK_SECONDS)
        for reference in ready:
            name = running.pop(reference)
            try:
                result = ray.get(reference)
            except ray.exceptions.OutOfMemoryError as error:
                result = ResourceError(f"{name} ran out of memory: {str(error).splitlines()[0]}")
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
                failures[name] += 1
                if failures[name] > MAX_FAILURES:
                    raise own_error(error) from error
                running[tasks[name].start()] = name
                continue
            except ray.exceptions.RayError as error:
                raise own_error(error) from error
            yield name, result
        if look is not None:
            look(running.values())


def run_all(tasks: Mapping[str, Task]) -> dict[str, Any]:
    """What the tasks return, by name, in their order.

    Raises:
        ResourceError: one of them ran out of memory.
        TrainRefError, ray.exceptions.RayError: see `completed`.
    """
    found: dict[str, Any] = {}
    for name, result in completed(tasks):
        if isinstance(result, ResourceError):
            raise result
        found[name] = result
    return {name: found[name] for name in tasks}
