"""Where a training stands, in memory and on disk: tensors in safetensors, the rest in json, never half-written."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

from trainref_ray.files import written_aside

DESCRIPTION = "state.json"
"""Written last: it names the file of tensors that belongs to it."""


@dataclass(frozen=True)
class EpochReport:
    """What an epoch did: mean loss of this worker's steps, loss (NLL) and accuracy on the validation images if there
    are some, seconds, and images that all workers together put through the model."""

    epoch: int
    train_loss: float
    validation_loss: float | None
    validation_accuracy: float | None
    seconds: float
    images: int


@dataclass(frozen=True)
class TrainState:
    """Everything that resuming needs, on the CPU.

    Attributes:
        epoch: epochs that are finished.
        model: parameters and buffers after the last epoch.
        optimizer: the optimiser's tensors, named `<parameter number>.<name>`.
        best: parameters and buffers after the epoch with the lowest validation loss, if that one is kept.
        history: a report for each finished epoch.
    """

    epoch: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    best: dict[str, Tensor] | None = None
    history: list[EpochReport] = field(default_factory=list)

    def final(self) -> dict[str, Tensor]:
        """The model state to release: the best one if it is kept, else the last."""
        return self.model if self.best is None else self.best


def save_state(state: TrainState, folder: str | Path) -> None:
    """Write `state.json` and `tensors-<epoch>.safetensors`.

    Each file is written aside and renamed, the description last, and what an earlier state left is removed after that:
    a reader finds the one state or the other, whenever the writer dies.
    """
    folder = Path(folder)
    # Cloned: the best state may be the last one, and safetensors refuses two names for one piece of memory.
    best = {name: value.clone() for name, value in (state.best or {}).items()}
    parts = {"model": state.model, "optimizer": state.optimizer, "best": best}
    tensors = {f"{part}/{key}": value.contiguous() for part, values in parts.items() for key, value in values.items()}
    name = f"tensors-{state.epoch:04d}.safetensors"
    with written_aside(folder / name) as aside:
        save_file(tensors, aside)
    content = {
        "epoch": state.epoch,
        "tensors": name,
        "has_best": state.best is not None,
        "history": [asdict(report) for report in state.history],
    }
    with written_aside(folder / DESCRIPTION) as aside:
        aside.write_text(json.dumps(content, indent=2) + "\n")
    for old in folder.glob("tensors-*"):
        if old.name != name:
            old.unlink()


def load_state(folder: str | Path) -> TrainState:
    """Read what `save_state` wrote.

    Raises:
        ValueError: the description or the tensors are not a training state.
        FileNotFoundError: a file is missing.
    """
    path = Path(folder) / DESCRIPTION
    try:
        content = json.loads(path.read_text())
        epoch, name, has_best = content["epoch"], content["tensors"], content["has_best"]
        history = [EpochReport(**report) for report in content["history"]]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} does not describe a training state: {error!r}") from error
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "best": {}}
    for key, value in read_tensors(Path(folder) / name).items():
        part, _, tensor = key.partition("/")
        if part not in parts:
            raise ValueError(f"{Path(folder) / name} holds an unknown tensor {key!r}")
        parts[part][tensor] = value
    return TrainState(epoch, parts["model"], parts["optimizer"], parts["best"] if has_best else None, history)


def remove_state(folder: str | Path) -> None:
    """Remove what `save_state` wrote, the description first: what is left when the remover dies is no state."""
    (Path(folder) / DESCRIPTION).unlink(missing_ok=True)
    for path in Path(folder).glob("tensors-*"):
        path.unlink()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, in memory. They are not mapped: whoever goes on from a state removes its file
    after the next epoch, and on a network file system the folder of a mapped file cannot be removed."""
    return load(path.read_bytes())


def on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, which later steps of the training leave alone."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors, named `<parameter number>.<name>`, as `TrainState.optimizer` holds them."""
    return {
        f"{number}.{name}": value
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if value is not None  # SGD without momentum keeps an empty buffer
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put `optimizer_tensors` back, each laid out in memory as its parameter: the fused arithmetic of another layout
    may round differently."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        like = parameters[int(number)]
        laid_out = torch.empty_like(like).copy_(value) if value.shape == like.shape else value.clone()
        state.setdefault(int(number), {})[name] = laid_out
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def next_state(
    before: TrainState, model: nn.Module, optimizer: torch.optim.Optimizer, report: EpochReport, *, keep_best: bool
) -> TrainState:
    """The state after an epoch, its tensors copied. With `keep_best` the weights of the epoch with the lowest
    validation loss are kept beside them, the earlier one of equals."""
    weights, best = on_cpu(model.state_dict()), before.best
    if keep_best and report.validation_loss is not None:
        earlier = [past.validation_loss for past in before.history if past.validation_loss is not None]
        if not earlier or report.validation_loss < min(earlier):
            best = weights
    tensors = on_cpu(optimizer_tensors(optimizer))
    return TrainState(report.epoch + 1, weights, tensors, best, [*before.history, report])
