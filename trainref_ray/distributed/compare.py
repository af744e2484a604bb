"""`compare`: this project and its rivals on the same shards, features, references, test images and seeds.

Each seed is a curation in a run folder of its own; then each rival is a task that reads that run's tables and leaves
its result in a folder with a fingerprint. Started again, finished results stay and trainings go on from their last
epoch.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import ray
import yaml

from trainref_ray.baselines import methods
from trainref_ray.baselines.training import AUGMENTED
from trainref_ray.config import METHOD_VERSION, MODEL_SETTINGS, Config, make_config, setting
from trainref_ray.data.images import stored_size
from trainref_ray.data.shards import count_samples
from trainref_ray.data.votes import has_votes
from trainref_ray.distributed.context import Inputs, weights_digest
from trainref_ray.distributed.job import (
    KEY_SCAN_BYTES,
    check_settings,
    curate,
    embedded_sample,
    environment,
    find_inputs,
    write_settings,
)
from trainref_ray.distributed.rival_data import read_split, shards_of, training_history, usable_counts
from trainref_ray.distributed.rival_worker import (
    OUT_OF_FOLD,
    PRETRAINED_PIECE,
    SCORES,
    TRUTH,
    RivalJob,
    RivalStage,
    finetune_views,
    is_asymmetric,
    load_piece,
    load_result,
    rival_settings,
    run_method,
    run_piece,
    score_method,
    scores_key,
)
from trainref_ray.distributed.session import Cluster, connect
from trainref_ray.distributed.stages import own_error
from trainref_ray.distributed.states import epochs_written
from trainref_ray.errors import ConfigError
from trainref_ray.progress import Reporter
from trainref_ray.report.compare_page import render_comparison, render_confidence
from trainref_ray.report.comparison import ComparisonTable, Row, markdown, tabulate
from trainref_ray.report.confidence import Confidence, confidence_content
from trainref_ray.report.image_files import read_image_files
from trainref_ray.report.summary import usable_decisions
from trainref_ray.results import CurationRun, load_run
from trainref_ray.run import COMPARE_FILE, RUN_FILE, RunLock, Storage, open_run, remove_results
from trainref_ray.training.calibrate import softmax

COMPARE_VERSION = 4
"""Raised when a change of the code changes a rival's result for equal settings."""
LOOK_SECONDS = 10.0
"""Between two looks at the trainings' epochs."""
MAX_FAILURES = 3
"""Times that a method is begun again whose worker or machine died."""


@dataclass(frozen=True)
class Request:
    """What a comparison is of, besides the curation's settings.

    Attributes:
        methods: names, as `baselines.methods.choose_methods` gives them.
        seeds: each a curation and all rivals.
        human_field: field of KEY.json with people's votes, for `soft_*`; None = there is none.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    human_field: str | None = None


@dataclass(frozen=True)
class Comparison:
    """A finished comparison: its rows as a table, and where its files are."""

    table: ComparisonTable
    storage: Storage


def compare(config: Config, request: Request, reporter: Reporter | None = None) -> Comparison:
    """Run every method of every seed and write `compare.json`, `compare.md` and the pages in `report/`.

    Args:
        config: the curation's settings; `out` is the comparison's folder, and `seed` is not read.
        request: methods and seeds.
        reporter: shows progress; by default on the terminal's standard error.

    Raises:
        TrainRefError: one of its kinds, with what would be right.
    """
    reporter = reporter or Reporter()
    check_settings(config)
    storage = open_run(config.out, mark=COMPARE_FILE)
    with RunLock(storage, reporter.message) as lock:
        afresh, config = not config.resume, config.model_copy(update={"resume": True})
        settings = config.model_dump(mode="json") | {"methods": list(request.methods), "seeds": list(request.seeds)}
        content = yaml.safe_dump(settings, sort_keys=False).encode()
        if not storage.exists(COMPARE_FILE):
            storage.write_bytes(COMPARE_FILE, content)  # it says that the folder is a comparison's
        _check_inputs(config, request, storage)
        if afresh:
            remove_results(storage, COMPARE_FILE)
        storage.write_bytes(COMPARE_FILE, content)
        seeds: list[_Seed] = []
        with connect(config.resources) as cluster:
            for seed in request.seeds:
                lock.check()
                seeds.append(_Seed(config, request, seed, storage, cluster, reporter))
                seeds[-1].run()
        return _finish(storage, config, request, seeds)


def _run_config(config: Config, storage: Storage, seed: int) -> Config:
    return config.model_copy(update={"seed": seed, "out": storage.location(f"seed-{seed}/{methods.OURS}")})


def _check_inputs(config: Config, request: Request, storage: Storage) -> None:
    """What would stop a curation or a training, told before Ray is started.

    Raises:
        TrainRefError: as `find_inputs`; or the images do not fit into the memory that the trainings may take; or there
            is nothing that a method asks for.
    """
    _check_budget(config, request)
    first = _run_config(config, storage, request.seeds[0])
    home = open_run(first.out)
    with RunLock(home):
        if not home.exists(RUN_FILE):
            write_settings(first, home)
        inputs = find_inputs(embedded_sample(first, home), home)
    if sum(shard.bytes for shard in inputs.shards) <= KEY_SCAN_BYTES:  # else the inventory counts them
        _check_memory(config, request, sum(shard.limit or count_samples(shard.url) for shard in inputs.shards))
        _check_votes(config, request, inputs)


def _check_budget(config: Config, request: Request) -> None:
    trained = [name for name in request.methods if name in methods.TRAINED]
    if trained and config.pretrain.objective == "none" and not config.finetune_model:
        raise ConfigError(
            f"{', '.join(trained)} train for as many image passes as trainref, and with pretrain.objective none and no "
            "fine-tuning it trains for none; leave them out with --methods"
        )


def _check_votes(config: Config, request: Request, inputs: Inputs) -> None:
    if request.human_field is None:
        return
    urls = [shard.url for shard in (*inputs.test_shards, *inputs.shards)]
    if not has_votes(urls, request.human_field, max_bytes=config.read.max_bytes):
        raise ConfigError(
            f"--human-field is {request.human_field!r}, and no sample of --data or --test-data has such a field in its "
            "KEY.json; allowed: a field with a number for each class, or leave the option out"
        )


def _check_memory(config: Config, request: Request, images: int) -> None:
    trained = [name for name in request.methods if name in methods.TRAINED]
    needed = images * stored_size(config.image_size) ** 2 * 3
    if trained and needed > config.resources.cache_bytes:
        raise ConfigError(
            f"{', '.join(trained)} hold their images in memory: {images:,} take {needed:,} bytes, and "
            f"resources.cache_bytes is {config.resources.cache_bytes:,}; raise it, lower --limit, or leave them out "
            "with --methods"
        )


class _Seed:
    """The curation and all rivals of one seed.

    Attributes:
        rows: of all methods, in the request's order.
        jobs: by method.
        setup: what the methods were given, as plain data.
    """

    def __init__(
        self, config: Config, request: Request, seed: int, storage: Storage, cluster: Cluster, reporter: Reporter
    ) -> None:
        self.rows: list[Row] = []
        self.jobs: dict[str, RivalJob] = {}
        self.setup: dict[str, Any] = {}
        self._config = _run_config(config, storage, seed)
        self._request = request
        self._seed = seed
        self._storage = storage
        self._cluster = cluster
        self._reporter = reporter
        self._node_cpus = max(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"])

    def run(self) -> None:
        """Run what is not done yet."""
        errors: dict[str, str] = {}
        plain = [name for name in self._request.methods if name not in methods.RETRAINED]
        for name in self._request.methods:
            if name in methods.RETRAINED:  # before the plain run, whose tables the run folder shows in the end
                changed = make_config(self._config.model_dump(), methods.RETRAINED[name])
                errors |= self._methods(self._curated(changed), [name])
        errors |= self._methods(self._curated(self._config), plain)
        self.rows = [self._row(name, errors.get(name)) for name in self._request.methods]

    def _curated(self, config: Config) -> CurationRun:
        return curate(config, Reporter(self._reporter.console))  # a summary lists the stages of its own run alone

    def _methods(self, run: CurationRun, names: Sequence[str]) -> dict[str, str]:
        """Run what is not done yet of the methods, and their figures; gives the reasons of those that failed."""
        facts = _run_facts(run)
        _check_memory(self._config, self._request, facts["samples"])
        self.setup = {"seed": self._seed} | facts
        pieces, errors = self._pieces(run, facts, names)
        jobs = {
            name: self._job(name, run, facts, {piece: pieces[piece] for piece in _pieces_of([name])})
            for name in names
            if name not in errors
        }
        self.jobs |= jobs
        missing = {name: job for name, job in jobs.items() if not job.stage.is_done()}
        if len(missing) < len(jobs):
            done = len(jobs) - len(missing)
            self._reporter.message(f"resuming: seed {self._seed}: {done} of {len(jobs)} methods done")
        errors |= {name: reason for name, reason in self._run(run_method, missing).items() if reason is not None}
        self._score([job for name, job in jobs.items() if name not in errors])
        return errors

    def _pieces(
        self, run: CurationRun, facts: dict[str, Any], names: Sequence[str]
    ) -> tuple[dict[str, RivalStage], dict[str, str]]:
        """What several methods need, made where it is not there; and the methods that must do without, with reasons."""
        pieces: dict[str, RivalStage] = {}
        errors: dict[str, str] = {}
        for piece in _pieces_of(names):
            if all(name in errors for name in names if piece in _pieces_of([name])):
                continue
            job = self._job(piece, run, facts, pieces)
            if not job.stage.is_done():
                reason = self._run(run_piece, {piece: job})[piece]
                if reason is not None:
                    errors |= {name: reason for name in names if piece in _pieces_of([name])}
            pieces[piece] = job.stage
        return pieces, errors

    def _job(self, name: str, run: CurationRun, facts: dict[str, Any], pieces: dict[str, RivalStage]) -> RivalJob:
        content = _depends_on(name, run, self._config, facts) | {
            "pieces": {piece: stage.fingerprint for piece, stage in pieces.items() if piece != TRUTH},
            "human_field": self._request.human_field if name == TRUTH else None,
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
        return RivalJob(
            method=name,
            stage=RivalStage(self._storage, name, self._seed, digest),
            run=run.path,
            config=self._config,
            pieces=dict(pieces),
            budget=facts["image_passes"],
            noise_rate=facts["noise_rate"],
            human_field=self._request.human_field,
            device=self._cluster.device if self._is_heavy(name) else "cpu",
            threads=max(1, int(self._node_cpus)) if self._is_heavy(name) else 1,
        )

    def _is_heavy(self, name: str) -> bool:
        return name in (*methods.TRAINED, PRETRAINED_PIECE)

    def _options(self, name: str) -> dict[str, float]:
        """A training has a GPU, or all CPUs of a node; anything else has a CPU."""
        if self._is_heavy(name):
            return {"num_gpus": 1} if self._cluster.gpus else {"num_cpus": self._node_cpus}
        return {"num_cpus": 1}

    def _run(self, function: Any, jobs: dict[str, RivalJob]) -> dict[str, str | None]:
        """Run the jobs in tasks. Gives what these return, by name, with a line for each and for the epochs of trainings
        meanwhile."""
        running = {_submit(function, job, self._options(name)): name for name, job in jobs.items()}
        found = dict[str, str | None]()
        failures, shown = dict.fromkeys(jobs, 0), dict.fromkeys(jobs, 0)
        while running:
            ready, _ = ray.wait(list(running), timeout=LOOK_SECONDS)
            for reference in ready:
                name = running.pop(reference)
                try:
                    found[name] = ray.get(reference)
                except ray.exceptions.OutOfMemoryError as error:
                    found[name] = f"out of memory: {str(error).splitlines()[0]}"
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
                    failures[name] += 1
                    if failures[name] > MAX_FAILURES:
                        raise own_error(error) from error
                    running[_submit(function, jobs[name], self._options(name))] = name
                    continue
                except ray.exceptions.RayError as error:
                    raise own_error(error) from error
                self._tell(name, jobs[name], found[name])
            for name in running.values():
                epochs = epochs_written(jobs[name].stage)
                if epochs > shown[name]:
                    shown[name] = epochs
                    self._reporter.message(f"seed {self._seed} {name}: {epochs} epochs done")
        return found

    def _tell(self, name: str, job: RivalJob, reason: str | None) -> None:
        if reason is not None:
            self._reporter.message(f"seed {self._seed} {name}: no figures: {reason}")
            return
        seconds = job.stage.facts()["seconds"]
        self._reporter.message(f"seed {self._seed} {name}: done" + ("" if seconds is None else f", {seconds:.1f} s"))

    def _score(self, jobs: Sequence[RivalJob]) -> None:
        """Figures of the results that have none yet, each in a task."""
        resamples = self._config.evaluate.bootstrap
        missing = [job for job in jobs if not _is_scored(job, resamples)]
        if not missing:
            return
        started = time.monotonic()
        try:
            ray.get([_submit(score_method, job, {"num_cpus": 1}, resamples) for job in missing])
        except ray.exceptions.RayError as error:
            raise own_error(error) from error
        seconds = time.monotonic() - started
        self._reporter.message(f"seed {self._seed}: figures of {len(missing)} methods in {seconds:.1f} s")

    def _row(self, name: str, error: str | None) -> Row:
        if error is not None:
            return Row(name, self._seed, error=error)
        stage = self.jobs[name].stage
        scores, facts = self._storage.read_json(stage.path(SCORES)), stage.facts()
        known = ("fingerprint", "seconds", "image_passes")
        return Row(
            method=name,
            seed=self._seed,
            metrics=scores["metrics"],
            intervals=scores["intervals"],
            seconds=facts["seconds"],
            image_passes=facts.get("image_passes"),
            facts={"temperature": scores["temperature"]}
            | {key: value for key, value in facts.items() if key not in known},
        )

    def confidence(self) -> Confidence | None:
        """Ours and DISC's predictions of some test images side by side, where both were run and there are some."""
        chosen = [self.jobs.get(name) for name in (methods.OURS, "disc")]
        if any(job is None or not job.stage.is_done() for job in chosen) or not self.setup["tests"]:
            return None
        config, run = self._config, load_run(self._config.out)
        logits, temperatures = [], []
        for job in chosen:
            assert job is not None
            found = load_result(job.stage).test_logits
            if found is None:  # a model without labels predicts no class
                return None
            logits.append(found)
            temperatures.append(self._storage.read_json(job.stage.path(SCORES))["temperature"] or 1.0)
        tests = read_split(run).tests
        content = confidence_content(
            [softmax(values, temperature) for values, temperature in zip(logits, temperatures, strict=True)],
            load_piece(self.jobs[methods.OURS].pieces[TRUTH])["test_labels"],
            names=("trainref", "DISC"),
            class_names=run.class_names,
            temperatures=temperatures,
            size=config.report.gallery,
            seed=self._seed,
        )
        return content.with_images(lambda rows: _images(run, tests, rows))


def _images(run: CurationRun, tests: np.ndarray, rows: Sequence[int]) -> dict[int, bytes]:
    """Test images' files by row."""
    files = read_image_files(run, tests[list(rows)], test=True)
    return {row: files[int(tests[row])] for row in rows}


def _submit(function: Any, job: RivalJob, options: dict[str, float], *arguments: Any) -> ray.ObjectRef:
    # with retries Ray would start a task that ran out of memory again without end
    return ray.remote(function).options(max_retries=0, **options).remote(job, *arguments)


def _is_scored(job: RivalJob, resamples: int) -> bool:
    storage, path = job.stage.storage, job.stage.path(SCORES)
    return storage.exists(path) and storage.read_json(path)["of"] == scores_key(job, resamples)


def _pieces_of(names: Sequence[str]) -> list[str]:
    """Pieces that the methods need, in the order in which they can be made."""
    on_features = any(name in (*methods.ON_FEATURES, *methods.CLEANLAB) for name in names)
    return [
        TRUTH,
        *([PRETRAINED_PIECE] if on_features or methods.PRETRAINED in names else []),
        *([OUT_OF_FOLD] if any(name in methods.ON_PROBABILITIES for name in names) else []),
    ]


def _run_facts(run: CurationRun) -> dict[str, Any]:
    """What every method is given of a run, in numbers."""
    split = read_split(run)
    decisions = usable_decisions(run)
    judged = np.isin(decisions["uid"].to_numpy(), split.samples)
    wrong, classes = float(1 - decisions["label_quality"].to_numpy()[judged].mean()), len(run.class_names)
    return {
        "samples": len(split.samples),
        "references": len(split.references),
        "held_out": len(split.held_out),
        "curating": int(run.is_curating.sum()),
        "tests": len(split.tests),
        "classes": classes,
        "image_passes": sum(report["images"] for report in training_history(run)),
        # DISC's published settings ask for the rate at which labels were drawn from all classes, of which the share
        # (C - 1)/C became wrong: by the share that our own scores expect
        "noise_rate": round(wrong * classes / max(classes - 1, 1), 2),
    }


def _depends_on(name: str, run: CurationRun, config: Config, facts: dict[str, Any]) -> dict[str, Any]:
    """Everything that may change a method's result, as plain data."""
    stages = run.stages
    settings = config.model_dump(mode="json")
    content: dict[str, Any] = {
        "method": name,
        "versions": [METHOD_VERSION, COMPARE_VERSION],
        "seed": config.seed,
        "inventory": [stages["inventory"], stages.get("noisy")],
        "shards": [[s.shard_id, s.etag, s.rows] for test in (False, True) for s in shards_of(run, test=test)],
        "usable": usable_counts(run),
        "references": [stages["references"], stages["held_out"], stages["curating"]],
        "classes": run.class_names,
        "image_size": config.image_size,
    }
    if name == methods.OURS or name in methods.RETRAINED:
        return content | {"stages": [stages["rounds"], stages["models"], stages["predictions"]]}
    if name in methods.TRAINED:
        own = {
            **{key: setting(config, key) for key in MODEL_SETTINGS},
            "pretrain": rival_settings(config).model_dump(mode="json"),
            "weights": weights_digest(config),
            "image_passes": facts["image_passes"],
        }
        if name == AUGMENTED:
            own |= {"views": finetune_views(config)}
        if name == "disc":
            images = facts["samples"] + facts["references"]
            plan = methods.disc_plan(
                images, facts["image_passes"], facts["noise_rate"], asymmetric=is_asymmetric(config)
            )
            own |= {"plan": asdict(plan)}
        return content | own
    if name == methods.HARD_LABEL:
        return content | {"decisions": stages["rounds"][-1]["decisions"]}
    if name == methods.TRAINED_ON:
        return content | {"decisions": stages["rounds"][config.rounds - 1]["decisions"]}
    content["embeddings"] = stages["rounds"][0]["embeddings"]
    if name == methods.FIRST_ROUND:
        return content | {"decisions": stages["rounds"][0]["decisions"]}
    if name in methods.REWEIGHTED:
        changed = make_config(settings, methods.REWEIGHTED[name]).model_dump(mode="json")
        return content | {key: changed[key] for key in ("probe", "augment", "vote", "ood", "decide")}
    if name in methods.CLEANLAB:
        return content | {"cleanlab": version("cleanlab")}
    return content


def _finish(storage: Storage, config: Config, request: Request, seeds: Sequence[_Seed]) -> Comparison:
    """Write the rows, the table and the pages."""
    rows = [row for name in request.methods for seed in seeds for row in seed.rows if row.method == name]
    table = tabulate(rows)
    setups = [seed.setup for seed in seeds]
    settings = config.model_dump(mode="json") | {
        "methods": list(request.methods),
        "seeds": list(request.seeds),
        "human_field": request.human_field,
        "setup": setups,
        "versions": environment(),
    }
    title = "Comparison"
    notes = comparison_notes(setups, config)
    storage.write_json("compare.json", {"rows": [row.as_dict() for row in rows], "config": settings})
    storage.write_bytes("compare.md", markdown(table, title, notes).encode())
    confidence = seeds[0].confidence()
    page = render_comparison(table, title, notes, settings, has_confidence=confidence is not None)
    storage.write_bytes("report/compare.html", page.encode())
    if confidence is not None:
        storage.write_bytes("report/confidence.html", render_confidence(confidence).encode())
    return Comparison(table, storage)


FIRST_MODELS = {
    "supervised": "the model that was trained on the noisy labels",
    "contrastive": "the model that was trained without labels",
    "none": "the model that model.weights names",
}
"""By `pretrain.objective`."""


def comparison_notes(setups: Sequence[dict[str, Any]], config: Config) -> list[str]:
    """What a reader of the figures should know."""
    first = setups[0]
    everyone = first["references"] + first["held_out"]
    notes = [
        f"{first['samples']:,} samples of {first['classes']} classes, {first['tests']:,} test images, {everyone:,} "
        f"references. {first['held_out']:,} of these choose the temperature and, where pretrain.keep_best is set, the "
        "epoch of the first model and of all rivals but disc, which releases its last as trainref's fine-tunings do "
        "(but for finetune.keep_best); no model is trained on them. Every rival has the other "
        f"{first['references']:,} in its training set.",
        f"trainref compares its samples with {first['curating']:,} of the references"
        + (", held-out ones among them." if first["curating"] > first["references"] else ", none of them held out."),
        f"Trainings: backbone {config.backbone}, "
        + " or ".join(f"{passes:,}" for passes in sorted({setup["image_passes"] for setup in setups}))
        + " forward-backward image passes: what trainref's own trainings made, each view counted.",
        "Methods on embeddings, and trainref/… without a training, get round 1's float16 embeddings, of "
        f"{FIRST_MODELS[config.pretrain.objective]}; their seconds leave what was trained before out.",
    ]
    views = finetune_views(config)
    if config.finetune_model and views != {name: getattr(rival_settings(config), name) for name in views}:
        strong = ", ".join(f"{name} {views[name]:g}" for name in ("randaugment", "mixup"))
        notes.append(
            f"trainref's fine-tuning has views of its own ({strong}); of the rivals {AUGMENTED} alone trains on them. "
            "All others have none of these but crop and flip, and disc has a strong view of its own beside them."
        )
    if config.model.mirror:
        notes.append(
            "Embeddings and predictions, rivals' too, are means of an image's and its mirror image's (model.mirror)."
        )
    notes.append(
        "A rival's label quality is what its model gives the label, as it comes; in the figures with _ts its model, as "
        "trainref's in all, speaks at the temperature that fits the held-out references."
    )
    if config.finetune_model and config.calibrate.samples:
        notes.append(
            "trainref's temperature is also fitted to the label distributions of at most "
            f"{config.calibrate.samples:,} curated samples that its last training left out; a rival has none."
        )
    if not first["references"]:
        notes.append(
            f"All references are held out (calibrate.per_class {config.calibrate.per_class}): no rival was trained on "
            "any. A lower calibrate.per_class gives them some."
        )
    return notes
