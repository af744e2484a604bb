"""`curate`: the whole job, from settings to a finished run folder."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from trainref_ray.config import Config
from trainref_ray.data.noise import parse_noise
from trainref_ray.data.prepare import prepare_digits
from trainref_ray.data.reference import check_classes, match_keys, read_reference_csv
from trainref_ray.data.shards import ShardFile, check_end, resolve_split, sample_keys, shard_name
from trainref_ray.data.sources.cifar import confusion_by_names
from trainref_ray.distributed.context import Context, Inputs
from trainref_ray.distributed.curation import RoundStages
from trainref_ray.distributed.datasource import ShardRead
from trainref_ray.distributed.limit import first_samples
from trainref_ray.distributed.needs import Check
from trainref_ray.distributed.pipeline import Pipeline
from trainref_ray.distributed.preflight import preflight, tell, warm_up
from trainref_ray.distributed.session import connect
from trainref_ray.distributed.trainer import SCRATCH
from trainref_ray.errors import ConfigError, ReferenceSetError, ShardError, TrackingError, first_line
from trainref_ray.models.backbones import check_backbone, weights_path
from trainref_ray.progress import Reporter, StageRecord
from trainref_ray.report.collect import build_report
from trainref_ray.report.summary import summarise
from trainref_ray.results import CurationRun, load_run, open_tables
from trainref_ray.run import INVENTORY_FILE, RUN_FILE, RunLock, Storage, open_run, remove_results
from trainref_ray.schemas import INVENTORY
from trainref_ray.tracking import NO_DATABASE, Tracker, tracking_uri

SAMPLE_SCHEME = "sample:"
KEY_SCAN_BYTES = 2 * 2**30
"""Most bytes of tars that the driver reads to find the references' keys: seconds on a disk, a minute from a store."""
INJECTED = ("none", "sym", "symflip", "asym")
"""Kinds of noise that need no more than the labels."""
PACKAGES = ("trainref-ray", "ray", "torch", "torchvision", "faiss-gpu", "faiss-cpu", "mlflow", "numpy", "pyarrow")


def curate(config: Config, reporter: Reporter | None = None) -> CurationRun:
    """Curate an image set: decisions, soft labels, supporters and scores for every sample, and a fine-tuned model.

    Args:
        config: all settings, see `trainref_ray.config`.
        reporter: shows progress; by default on the terminal's standard error.

    Returns:
        The finished run; its folder holds the tables, `summary.json`, the model and `report/index.html`.

    Raises:
        TrainRefError: one of its kinds (settings, shards, references, run folder, resources), with what would be right.
    """
    reporter = reporter or Reporter()
    check_settings(config)
    storage = open_run(config.out)
    with RunLock(storage, reporter.message) as lock:
        if not storage.exists(RUN_FILE):
            write_settings(config, storage)  # first of all: it says that the folder is a run's, whatever comes next
        config = embedded_sample(config, storage)
        inputs = find_inputs(config, storage)
        begin(config, storage, inputs)
        warm_up()
        with tracked(config, storage, reporter) as starting, connect(config.resources, reporter.message) as cluster:
            tell(preflight(config, storage, cluster, inputs), reporter)
            tracker = None if starting is None else started(starting.result)
            pipeline = Pipeline(Context(config, storage, storage, cluster, reporter, inputs), lock.check)
            pipeline.run()
            lock.check()
            finish(pipeline, tracker)
    return load_run(storage.root)


def begin(config: Config, home: Storage, inputs: Inputs) -> None:
    """Make a run folder one of these settings and inputs. Until the curation is finished it is no complete run; what
    was refused before has left an earlier one as it was."""
    if not config.resume:
        remove_results(home)
    for name in ("stages.json", "summary.json"):
        home.remove(name)
    write_settings(config, home)
    home.write_table(INVENTORY_FILE, inputs.inventory)
    home.write_json("environment.json", environment())


def write_settings(config: Config, home: Storage) -> None:
    """`run.yaml` of a run folder."""
    home.write_bytes(RUN_FILE, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())


def doctor(config: Config, reporter: Reporter | None = None) -> list[Check]:
    """What `curate` would check before it runs, without running it; of the run folder only a file is tried.

    Raises:
        TrainRefError: what `curate` would refuse before it looks at the resources.
    """
    reporter = reporter or Reporter()
    check_settings(config)
    storage = open_run(config.out)
    with TemporaryDirectory() as scratch:  # stands for the run folder in what writes there
        known = embedded_sample(config, Storage(scratch))
        inputs = find_inputs(known, Storage(scratch))
        warm_up()
        with connect(config.resources, reporter.message) as cluster:
            return preflight(known, storage, cluster, inputs, data_exists=known is config)


@contextmanager
def tracked(config: Config, storage: Storage, reporter: Reporter) -> Iterator[Future[Tracker] | None]:
    """The job's MLflow run, which is started beside Ray, and gets each stage's figures when the stage is done.

    Raises:
        TrackingError: it could not be ended after a curation without an error; an error of the curation's own is not
            hidden by MLflow's.
    """
    uri = tracking_uri(config.tracking, storage)
    if uri is None:
        if config.tracking.enabled:
            reporter.message(NO_DATABASE)
        yield None
        return
    with ThreadPoolExecutor(1, thread_name_prefix="mlflow") as thread:
        starting = thread.submit(Tracker, uri, config.tracking.experiment, storage, config.model_dump(mode="json"))
        failed: list[Exception] = []

        def log_stage(record: StageRecord) -> None:
            try:
                starting.result().stage(record.as_dict())
            except Exception as error:  # of many libraries
                if not failed:
                    reporter.message(f"MLflow does not take figures of stages any more: {first_line(error)}")
                failed.append(error)

        reporter.on_stage = lambda record: thread.submit(log_stage, record)
        status = "FAILED"
        try:
            yield starting
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            reporter.on_stage = None
            if starting.exception() is None:
                ending = thread.submit(starting.result().finish, status).exception()
                if ending is not None and status == "FINISHED":
                    raise no_longer_tracked(ending) from ending


def no_longer_tracked(error: BaseException) -> TrackingError:
    """For an error of MLflow after all else is done."""
    return TrackingError(
        f"the run folder is complete, but MLflow cannot be used any more: {first_line(error)}; the same command logs "
        "the run when it can"
    )


def started(connect_tracker: Callable[[], Tracker]) -> Tracker:
    """The tracker, once it is connected.

    Raises:
        TrackingError: it could not be; said before any stage runs, not when hours of work are to be logged.
    """
    try:
        return connect_tracker()
    except Exception as error:  # MLflow's stores raise errors of many libraries
        raise TrackingError(
            f"MLflow cannot be used: {first_line(error)}; see tracking.uri, or go on without: --tracking.no-enabled"
        ) from error


def finish(pipeline: Pipeline, tracker: Tracker | None) -> None:
    """Summary, report, model and tracking of a curation whose tables are complete.

    Raises:
        TrackingError: all but the last is done.
    """
    context = pipeline.context
    storage, reporter = context.storage, context.reporter
    storage.remove(SCRATCH)  # an earlier start that was killed may have left it
    storage.write_json("stages.json", stage_list(pipeline))
    summary = summarise(open_tables(storage), [record.as_dict() for record in reporter.records])
    release_model(pipeline, summary["temperature"])
    storage.write_json("summary.json", summary)  # last of what `load_run` asks for
    build_report(load_run(storage.root), lambda uids: context.read_images(uids, pixels=False))
    if tracker is not None:
        try:
            log_run(tracker, pipeline, summary)
        except Exception as error:  # as in `started`
            raise no_longer_tracked(error) from error


def release_model(pipeline: Pipeline, temperature: float) -> None:
    """Put the last model, with what makes its confidence true, into the curation's own folder."""
    context, model = pipeline.context, pipeline.models[-1]
    for name in context.storage.names(model.path("model")):
        context.home.write_bytes(f"model/{name}", context.storage.read_bytes(model.path(f"model/{name}")))
    context.home.write_json("model/calibration.json", {"temperature": temperature, "class_names": context.class_names})


def log_run(tracker: Tracker, pipeline: Pipeline, summary: dict[str, Any]) -> None:
    """Figures of each round, curves of each training, the files a person wants, and the model."""
    context = pipeline.context
    for step, figures in enumerate(summary["rounds"], start=1):
        tracker.metrics({key: value for key, value in figures.items() if key != "classes_left_short"}, step)
    tracker.metrics(summary["metrics"], len(summary["rounds"]))
    for name, figures in summary["baselines"].items():
        tracker.metrics({f"{name}/{key}": value for key, value in figures.items() if key != "intervals"}, 0)
    for model in pipeline.models:
        title = f"{model.name}-{model.round}" if model.round else model.name
        for epoch in context.storage.read_json(model.path("history.json")):
            curve = {f"{title}/{key}": epoch[key] for key in ("train_loss", "validation_loss", "validation_accuracy")}
            tracker.metrics(curve, epoch["epoch"])
    for name in ("summary.json", "references.csv"):
        tracker.artifact(context.storage, name, "")
    for name in context.storage.names("report"):
        tracker.artifact(context.storage, f"report/{name}", "report")
    if summary["temperature"] is not None:  # else the model has no head, and predicts nothing
        tracker.model(context.storage, context.config.image_size, context.classes)


def check_settings(config: Config) -> None:
    """What can be known without any file."""
    if not config.data:
        raise ConfigError("setting 'data' is missing: give --data SHARDS (pattern, glob, folder or URL)")
    if config.reference is None and config.reference_per_class is None:
        raise ConfigError("no references: give --reference FILE (csv: key,label) or --reference-per-class K")
    if parse_noise(config.noise).kind not in INJECTED:
        raise ConfigError(f"setting 'noise' is {config.noise!r}; allowed: none, sym:RATE, symflip:RATE, asym:RATE")
    try:
        check_backbone(config.backbone)
    except ValueError as error:
        raise ConfigError(f"setting 'backbone' is {config.backbone!r}: {error}") from None
    path = weights_path(config.model.weights)
    if path is not None and not path.is_file():
        raise ConfigError(
            f"setting 'model.weights' is {config.model.weights!r}: {path} does not exist; "
            "allowed: none, public, a model/ folder of a run, or a safetensors file"
        )


def embedded_sample(config: Config, storage: Storage) -> Config:
    """Replace `sample:digits` by shards written into the run folder, where they are once written left alone."""
    patterns = [*config.data, *config.test_data]
    samples = [pattern for pattern in patterns if pattern.startswith(SAMPLE_SCHEME)]
    if not samples:
        return config
    unknown = [pattern for pattern in samples if pattern != "sample:digits"]
    if unknown:
        raise ConfigError(f"data {unknown[0]!r} is unknown; the embedded sample is 'sample:digits'")
    if not storage.is_local:
        raise ConfigError(f"the embedded sample needs a run folder on a disk, not {config.out!r}")
    folder = Path(storage.location("sample"))
    prepare_digits(folder, seed=0)

    def shards(values: tuple[str, ...], split: str) -> tuple[str, ...]:
        return tuple(str(folder / f"{split}-*.tar") if value in samples else value for value in values)

    return config.model_copy(
        update={"data": shards(config.data, "train"), "test_data": shards(config.test_data, "test")}
    )


def find_inputs(config: Config, storage: Storage) -> Inputs:
    """Shards with their numbers, class names, the reference file: all that can be wrong before a worker starts.

    Args:
        config: what to read; without `resume` numbers begin anew.
        storage: a run folder, of which the numbers that shards have there are read, and nothing is written.

    Raises:
        ShardError: no shard matches, a shard is cut off, a shard is both training and test data, or a folder of both
            was given.
        ReferenceSetError: the reference file is wrong.
        ConfigError: the file of class names is.
    """
    train = resolve_split(config.data)
    test = resolve_split(config.test_data)
    both = {file.url for file in train} & {file.url for file in test}
    if both:
        raise ShardError(f"{min(both)} is in --data and in --test-data; figures on it would mean nothing")
    if not config.read.allow_truncated_shards:
        for file in [*train, *test]:
            problem = check_end(file.url, file.bytes)
            if problem:
                raise ShardError(
                    f"{file.url}: {problem}; write it again, or go on with what it holds: --read.allow-truncated-shards"
                )
    names = class_names(config, train)
    rows = read_reference_csv(config.reference, names) if config.reference else None
    if rows is not None and not rows:
        raise ReferenceSetError(f"{config.reference}: no references")
    check_noise(config.noise, names)
    if names is None and rows:
        names = [str(label) for label in range(max(label for _, label in rows) + 1)]
    if names is not None and rows is not None:
        labels = np.array([label for _, label in rows], np.int64)
        check_classes(labels, names, allow_missing=config.allow_missing_classes)
    known = storage.read_table(INVENTORY_FILE).to_pylist() if config.resume and storage.exists(INVENTORY_FILE) else []
    inventory = number_shards(known, [*train, *test])
    numbers = {row["url"]: row["shard_id"] for row in inventory.to_pylist()}
    shards = [_to_read(numbers, file) for file in train]
    if config.limit is not None:
        shards = first_samples(shards, config.limit)
    if rows is not None:
        check_keys([key for key, _ in rows], shards)
    shards.sort(key=lambda shard: shard.shard_id)
    tests = sorted((_to_read(numbers, file) for file in test), key=lambda shard: shard.shard_id)
    return Inputs(shards, tests, names, rows, inventory)


def check_noise(noise: str, class_names: list[str] | None) -> None:
    """Refuse asymmetric noise for classes of which it is not known what they are taken for.

    Raises:
        ConfigError: they are not CIFAR's.
    """
    if noise.startswith("asym") and class_names is not None and confusion_by_names(class_names) is None:
        raise ConfigError(f"noise {noise!r} needs CIFAR-10's or CIFAR-100's class names; these are others")


def check_keys(keys: list[str], shards: list[ShardRead]) -> None:
    """Refuse a reference that is in no shard before anything is started, if that costs seconds and not hours.

    Of larger data it is told after the inventory, which reads the tars once in any case.

    Raises:
        ReferenceSetError: a key is in no shard; names it, with close matches.
    """
    if sum(shard.bytes for shard in shards) > KEY_SCAN_BYTES:
        return
    wanted, known = set(keys), set[str]()
    for shard in shards:
        name = shard_name(shard.url)
        for key in sample_keys(shard.url, stop_after=shard.limit):
            known |= {key} | ({f"{name}:{key}"} & wanted)
        if wanted <= known:
            return
    match_keys(keys, sorted(known))


def _to_read(numbers: dict[str, int], file: ShardFile) -> ShardRead:
    return ShardRead(numbers[file.url], file.url, file.etag, file.bytes)


def class_names(config: Config, shards: list[ShardFile]) -> list[str] | None:
    """Names from `--classes`, else from classes.json beside the shards, else None.

    Raises:
        ConfigError: the file is missing or not a JSON list of different strings.
    """
    location = config.classes or shards[0].url
    address, mark, query = location.partition("?") if "://" in location else (location, "", "")
    folder, _, name = address.rpartition("/")
    home = Storage((folder or str(Path.cwd())) + mark + query)
    name = name if config.classes else "classes.json"
    location = home.location(name)
    if not home.exists(name):
        if config.classes:
            raise ConfigError(f"classes file {config.classes!r} does not exist")
        return None
    try:
        names = json.loads(home.read_bytes(name))
    except ValueError as error:
        raise ConfigError(f"{location} is not JSON: {error}") from None
    except OSError as error:
        raise ConfigError(f"{location} cannot be read: {error}") from None
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(entry, str) for entry in names):
        raise ConfigError(f"{location} must be a JSON list of at least two class names")
    if len(set(names)) < len(names):
        raise ConfigError(f"{location} names a class twice")
    return names


def number_shards(known: Sequence[Mapping[str, Any]], files: Sequence[ShardFile]) -> pa.Table:
    """Each shard's number in a run: kept from earlier starts, new shards get the next ones.

    Args:
        known: rows of the table of an earlier start.
        files: all shards of this one.

    Returns:
        Of `schemas.INVENTORY`, earlier starts' shards among them.
    """
    numbers = {row["url"]: row["shard_id"] for row in known}
    for file in files:
        numbers.setdefault(file.url, len(numbers))
    facts = {row["url"]: (row["etag"], row["bytes"]) for row in known} | {
        file.url: (file.etag, file.bytes) for file in files
    }
    rows = [
        {"shard_id": number, "url": url, "etag": facts[url][0], "bytes": facts[url][1], "samples": None}
        for url, number in numbers.items()
    ]
    return pa.Table.from_pylist(rows, schema=INVENTORY)


def environment() -> dict[str, Any]:
    """Versions that a result may depend on."""
    found: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            continue
    return found


def stage_list(pipeline: Pipeline) -> dict[str, Any]:
    """Where each stage's result is, for `load_run`."""
    context = pipeline.context
    elsewhere = ("model", "ood_embeddings")  # with the models, and with the first round
    names = [name for name in RoundStages.__dataclass_fields__ if name not in elsewhere]
    rounds = [{name: getattr(stages, name).fingerprint for name in names} for stages in pipeline.rounds]
    return {
        "class_names": context.class_names,
        "inventory": context.inventory.fingerprint,
        "noisy": None if context.labelled == context.inventory else context.labelled.fingerprint,
        "shards": [shard.shard_id for shard in context.shards],
        "test_shards": [shard.shard_id for shard in context.inputs.test_shards],
        "rounds": rounds,
        "models": [
            {"name": stage.name, "round": stage.round, "fingerprint": stage.fingerprint} for stage in pipeline.models
        ],
        "predictions": {str(round_): stage.fingerprint for round_, stage in pipeline.predictions.items()},
        "references": {"uids": context.references.uids.tolist(), "labels": context.references.labels.tolist()},
        "held_out": context.held_out().uids.tolist(),
        "curating": context.curating.uids.tolist(),
    }
