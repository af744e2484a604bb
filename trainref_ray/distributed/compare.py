"""`compare`: this project and its rivals on the same shards, features, references, test images and seeds.

Each seed is a curation in a run folder of its own; then each rival is a task that reads that run's tables and leaves
its result in a folder with a fingerprint. Started again, finished results stay and trainings go on from their last
epoch.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import yaml

from trainref_ray.baselines import methods
from trainref_ray.config import Config, make_config
from trainref_ray.distributed.compare_checks import Request, check_inputs, check_memory
from trainref_ray.distributed.job import check_settings, curate, environment
from trainref_ray.distributed.rival_data import read_split
from trainref_ray.distributed.rival_jobs import depends_on, pieces_of, run_facts
from trainref_ray.distributed.rival_worker import (
    PRETRAINED_PIECE,
    SCORES,
    TRUTH,
    RivalJob,
    RivalStage,
    load_piece,
    load_result,
    run_method,
    run_piece,
    score_method,
    scores_key,
)
from trainref_ray.distributed.session import Cluster, connect
from trainref_ray.distributed.states import epochs_written
from trainref_ray.distributed.tasks import Task, completed, run_all
from trainref_ray.errors import ResourceError
from trainref_ray.progress import Reporter
from trainref_ray.report.compare_page import render_comparison, render_confidence
from trainref_ray.report.comparison import ComparisonTable, Row, markdown, tabulate
from trainref_ray.report.comparison_notes import comparison_notes
from trainref_ray.report.confidence import Confidence, confidence_content
from trainref_ray.report.image_files import read_image_files
from trainref_ray.results import CurationRun, load_run
from trainref_ray.run import COMPARE_FILE, RunLock, Storage, open_run, remove_results
from trainref_ray.training.calibrate import softmax


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
        check_inputs(config, request, _run_config(config, storage, request.seeds[0]))
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
        facts = run_facts(run)
        check_memory(self._config, self._request, facts["samples"])
        self.setup = {"seed": self._seed} | facts
        pieces, errors = self._pieces(run, facts, names)
        jobs = {
            name: self._job(name, run, facts, {piece: pieces[piece] for piece in pieces_of([name])})
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
        for piece in pieces_of(names):
            if all(name in errors for name in names if piece in pieces_of([name])):
                continue
            job = self._job(piece, run, facts, pieces)
            if not job.stage.is_done():
                reason = self._run(run_piece, {piece: job})[piece]
                if reason is not None:
                    errors |= {name: reason for name in names if piece in pieces_of([name])}
            pieces[piece] = job.stage
        return pieces, errors

    def _job(self, name: str, run: CurationRun, facts: dict[str, Any], pieces: dict[str, RivalStage]) -> RivalJob:
        content = depends_on(name, run, self._config, facts) | {
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
        """Run the jobs in tasks. Gives what these return, by name, or why they do not, with a line for each and for the
        epochs of trainings meanwhile."""
        found, shown = dict[str, str | None](), dict.fromkeys(jobs, 0)

        def tell_epochs(running: Iterable[str]) -> None:
            for name in running:
                epochs = epochs_written(jobs[name].stage)
                if epochs > shown[name]:
                    shown[name] = epochs
                    self._reporter.message(f"seed {self._seed} {name}: {epochs} epochs done")

        tasks = {name: Task(function, (job,), self._options(name)) for name, job in jobs.items()}
        for name, result in completed(tasks, tell_epochs):
            found[name] = str(result) if isinstance(result, ResourceError) else result
            self._tell(name, jobs[name], found[name])
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
        run_all({job.method: Task(score_method, (job, resamples), {"num_cpus": 1}) for job in missing})
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
        return None if content is None else content.with_images(lambda rows: _images(run, tests, rows))


def _images(run: CurationRun, tests: np.ndarray, rows: Sequence[int]) -> dict[int, bytes]:
    """Test images' files by row."""
    files = read_image_files(run, tests[list(rows)], test=True)
    return {row: files[int(tests[row])] for row in rows}


def _is_scored(job: RivalJob, resamples: int) -> bool:
    storage, path = job.stage.storage, job.stage.path(SCORES)
    return storage.exists(path) and storage.read_json(path)["of"] == scores_key(job, resamples)


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
    else:
        storage.remove("report/confidence.html")  # of an earlier start
    return Comparison(table, storage)
