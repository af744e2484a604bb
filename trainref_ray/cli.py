"""The command line: `trainref curate`, `trainref doctor`, `trainref prepare`, and what the scripts in `jobs/` share.

Options are the settings of `trainref_ray.config`, read by tyro over the preset's values.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainref_ray.config import Config, SweepSettings, load_preset, make_config
from trainref_ray.errors import ConfigError, ResourceError, TrainRefError
from trainref_ray.report.content import baseline_label
from trainref_ray.results import CurationRun, CurationSweep, load_run

if TYPE_CHECKING:
    from trainref_ray.distributed.needs import Check

TABLE_METRICS = ("noise_auroc", "noise_ap", "noise_f1", "relabel_accuracy", "ood_auroc", "accuracy", "nll_ts", "ece_ts")

if TYPE_CHECKING:
    from trainref_ray.distributed.compare import Comparison
    from trainref_ray.distributed.compare_checks import Request
    from trainref_ray.report.suggestions import Suggestions


def parse_curate(arguments: Sequence[str], *, default_preset: str | None, prog: str = "curate") -> Config:
    """Settings from `--preset NAME` and further options.

    Without `--preset` and `--data` it is the demo preset on the embedded sample.

    Args:
        arguments: of the command line, without the program's name.
        default_preset: what `--preset` is when only `--data` is given; None = the defaults.
        prog: the command, as help and errors name it.

    Raises:
        ConfigError: unknown preset or bad value. An unknown option ends the program with exit code 2, by tyro.
    """
    rest, preset = take_option(list(arguments), "--preset")
    if preset is None:
        has_data = any(argument == "--data" or argument.startswith("--data=") for argument in rest)
        preset = default_preset if has_data else "demo"
    content = load_preset(preset) if preset else {}
    if any(argument == "--reference" or argument.startswith("--reference=") for argument in rest):
        content.pop("reference_per_class", None)  # a file given by the user stands for the preset's drawn references
    base = make_config(content)
    if base.out == Config().out and preset is not None:
        base = make_config(base.model_dump(), {"out": f"runs/{preset.removesuffix('.yaml').rsplit('/', 1)[-1]}"})
    try:
        parsed = tyro.cli(
            Config,
            default=base,
            args=rest,
            prog=prog,
            description="Curate an image set with noisy labels. --preset NAME (demo, cifar10, cifar100, webvision, "
            "webvision_mini or a .yaml file) sets the defaults below.",
        )
    except ValueError as error:
        raise ConfigError(str(error).replace("\n", " ")) from None
    return make_config(parsed.model_dump())


def take_option(arguments: list[str], name: str) -> tuple[list[str], str | None]:
    """Remove `name VALUE` or `name=VALUE`; returns what is left and the value.

    Raises:
        ConfigError: the value is missing.
    """
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            return arguments[:position] + arguments[position + 1 :], argument.split("=", 1)[1]
        if argument == name:
            if position + 1 == len(arguments):
                raise ConfigError(f"{name} needs a value")
            return arguments[:position] + arguments[position + 2 :], arguments[position + 1]
    return arguments, None


def run_command(command: Callable[[], None]) -> int:
    """Run, and turn errors on purpose into one line and their exit code, Ctrl-C into 130."""
    try:
        command()
    except TrainRefError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; start again with the same --out to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        return 141  # as a shell reports SIGPIPE
    return 0


def _reader_is_gone() -> bool:
    """Whether nobody reads what this process prints, as with `| head`; what is left to print then goes nowhere."""
    output = select.poll()
    output.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def curate_command(arguments: Sequence[str], default_preset: str | None = None) -> int:
    """`curate`: settings, the job, the results table. Returns the exit code."""

    def command() -> None:
        config = parse_curate(arguments, default_preset=default_preset)
        from trainref_ray.distributed.job import curate  # imported late: wrong options are told at once

        print_results(curate(config))

    return run_command(command)


def doctor_command(arguments: Sequence[str], default_preset: str | None = None) -> int:
    """`doctor`: what a curation with these settings would need and what is there. Returns the exit code."""
    failed = False

    def command() -> None:
        nonlocal failed
        config = parse_curate(arguments, default_preset=default_preset, prog="doctor")
        from trainref_ray.distributed.job import doctor  # imported late: wrong options are told at once

        checks = doctor(config)
        print_checks(checks)
        failed = any(check.verdict == "error" for check in checks)

    code = run_command(command)
    return code or (ResourceError.exit_code if failed else 0)


def print_checks(checks: Sequence[Check]) -> None:
    """A row a check, on standard output."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table(title=None)
    for name in ("check", "needed", "there", "verdict", "what to do"):
        table.add_column(name, overflow="fold")
    for check in checks:
        cells = (check.name, check.needed, check.there, check.verdict, check.advice)
        table.add_row(*(escape(cell) for cell in cells))
    console.print(table)


def sweep_command(arguments: Sequence[str]) -> int:
    """`sweep`: its own options, then those of the curation. Returns the exit code."""

    def command() -> None:
        config, settings = parse_sweep(arguments)
        from trainref_ray.distributed.sweep import sweep  # imported late: wrong options are told at once

        print_sweep(sweep(config, settings))

    return run_command(command)


def parse_sweep(arguments: Sequence[str]) -> tuple[Config, SweepSettings]:
    """Settings of the curation and of the sweep from one command line.

    Raises:
        ConfigError: as `parse_curate`, or there is no `--space`.
    """
    if "--space" not in [argument.partition("=")[0] for argument in arguments] and not _asks_for_help(arguments):
        raise ConfigError("--space FILE is missing: a YAML file such as jobs/sweeps/k.yaml")
    settings, rest = tyro.cli(
        SweepSettings,
        args=list(arguments),
        prog="sweep",
        return_unknown_args=True,
        description="Try settings of a curation and rank them by references left out: sweep --preset NAME --space "
        "FILE --out DIR. All options of `trainref curate` are taken too, for every trial.",
    )
    config = parse_curate(rest, default_preset=None, prog="sweep")
    if config.out.startswith("runs/") and "--out" not in [argument.partition("=")[0] for argument in rest]:
        config = make_config(config.model_dump(), {"out": f"runs/sweep-{config.out.removeprefix('runs/')}"})
    return config, settings


def _asks_for_help(arguments: Sequence[str]) -> bool:
    return "-h" in arguments or "--help" in arguments


def print_sweep(finished: CurationSweep) -> None:
    """The ranking, how sure it is and where the page is, on standard output."""
    from trainref_ray.report.sweep_page import sureness

    summary = finished.summary
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table(title=None)
    for name in ("", "agreement", "standard error", "behind the best", "trials"):
        table.add_column(name, justify="right" if name else "left")
    for entry in summary["settings"]:
        table.add_row(
            entry["title"],
            f"{entry['agreement']:.4f}",
            f"{entry['standard_error']:.4f}",
            f"{entry['behind']:.4f}",
            str(entry["trials"]),
        )
    console.print(table)
    console.print(sureness(summary["settings"]), highlight=False, soft_wrap=True)
    failed = [trial for trial in summary["trials"] if trial["status"] == "failed"]
    for trial in failed:
        console.print(f"failed: {trial['title']}: {trial['error']}", highlight=False, markup=False, soft_wrap=True)
    if summary["settings"]:
        console.print(f"best settings: {finished.storage.location('best.yaml')}", highlight=False, soft_wrap=True)
    console.print(f"report: {finished.storage.location('report/sweep.html')}", highlight=False, soft_wrap=True)


def print_results(run: CurationRun) -> None:
    """Counts, the table of figures and where the report is, on standard output."""
    summary = run.summary
    counts = summary["counts"]
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(", ".join(f"{value:,} {name}" for name, value in counts.items()), highlight=False)
    names = [name for name in TABLE_METRICS if any(row.get(name) is not None for _, row in result_rows(summary))]
    table = Table(title=None)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for title, row in result_rows(summary):
        table.add_row(title, *(_cell(row.get(name), row.get("intervals", {}).get(name)) for name in names))
    console.print(table)
    console.print(f"report: {run.storage.location('report/index.html')}", highlight=False, soft_wrap=True)


def result_rows(summary: dict) -> list[tuple[str, dict]]:
    """Rows of the results table: the baselines, each round, the final figures with their intervals."""
    rows: list[tuple[str, dict]] = []
    for name, figures in summary["baselines"].items():
        rows.append((baseline_label(name), figures))
    for number, figures in enumerate(summary["rounds"][:-1], start=1):
        rows.append((f"trainref, round {number}", figures))
    rows.append(("trainref", {**summary["metrics"], "intervals": summary["intervals"]}))
    return rows


def _cell(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" + (f" ({interval[0]:.3f}-{interval[1]:.3f})" if interval else "")


COMPARE_OPTIONS = """compare has the options of a curation (below) and:
  --methods A,B       what to run; by default all that are installed and need no fine-tuning of their own:
                      {methods}
  --seeds 0,1,2       a curation and all rivals of each; by default 0
  --human-field NAME  field of KEY.json with people's votes, one number a class, for soft_nll and soft_kl
"""


def parse_compare(arguments: Sequence[str], *, default_preset: str | None) -> tuple[Config, Request]:
    """Settings of the curations, and what is compared. Where no methods are named, cleanlab's are left out with a line
    on standard error if it is not installed.

    Raises:
        ConfigError: an unknown method, a seed that is no number, or what `parse_curate` refuses.
    """
    from trainref_ray.baselines.methods import CLEANLAB, METHODS, choose_methods, cleanlab_installed
    from trainref_ray.distributed.compare_checks import Request

    rest, named = take_option(list(arguments), "--methods")
    rest, numbers = take_option(rest, "--seeds")
    rest, human_field = take_option(rest, "--human-field")
    if "--help" in rest or "-h" in rest:
        print(COMPARE_OPTIONS.format(methods=", ".join(METHODS)))
    methods = choose_methods(None if named is None else [name.strip() for name in named.split(",")])
    seeds = [number.strip() for number in (numbers or "0").split(",")]
    wrong = [number for number in seeds if not (number.isascii() and number.isdigit())]
    if wrong:
        raise ConfigError(f"--seeds is {numbers!r}: {wrong[0]!r} is no number from 0; right is e.g. --seeds 0,1,2")
    config = parse_curate(rest, default_preset=default_preset, prog="compare")
    if named is None and not cleanlab_installed():
        print(
            f"cleanlab is not installed: no {', '.join(CLEANLAB)}; install 2.9 (in a checkout: make benchmarks)",
            file=sys.stderr,
        )
    return config, Request(tuple(methods), tuple(dict.fromkeys(map(int, seeds))), human_field)


def compare_command(arguments: Sequence[str], default_preset: str | None = None) -> int:
    """`compare`: settings, all methods of all seeds, the table. Returns the exit code."""

    def command() -> None:
        config, request = parse_compare(arguments, default_preset=default_preset)
        from trainref_ray.distributed.compare import compare

        print_comparison(compare(config, request))

    return run_command(command)


def print_comparison(found: Comparison) -> None:
    """The headline figures of each method and where the whole table is, on standard output."""
    table = found.table
    names = table.columns(TABLE_METRICS)
    console = Console(width=None if sys.stdout.isatty() else 200)
    shown = Table(title=None)
    shown.add_column("")
    for name in names:
        shown.add_column(name, justify="right")
    for method in table.methods:
        cells = table.cells[method]
        shown.add_row(method, *(cells[name].text if name in cells else "" for name in names))
    console.print(shown)
    for method, seed, reason in table.errors:
        console.print(f"{method}, seed {seed}: no figures: {reason}", highlight=False, markup=False)
    for name in ("compare.md", "report/compare.html"):
        console.print(found.storage.location(name), highlight=False, soft_wrap=True)


def prepare_command(arguments: Sequence[str]) -> int:
    """`prepare`: a source's images as shards. Returns the exit code."""
    from trainref_ray.data.prepare import LISTED, PrepareSettings, prepare

    def command() -> None:
        settings = tyro.cli(
            PrepareSettings,
            args=name_positionals(arguments, ("--source", "--root")),
            prog="prepare",
            description="Write images as shards: prepare SOURCE ROOT --out DIR, or with --source and --root by name.",
        )
        if settings.source in LISTED:
            from trainref_ray.distributed.prepare import prepare_listed  # imported late: the others need no Ray

            print(prepare_listed(settings))
        else:
            print(prepare(settings))

    return run_command(command)


def name_positionals(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """The arguments with leading ones that are no options as the values of `options`, in this order."""
    leading = list(takewhile(lambda argument: not argument.startswith("-"), arguments[: len(options)]))
    named = [part for pair in zip(options, leading, strict=False) for part in pair]
    return [*named, *arguments[len(leading) :]]


@dataclass(frozen=True)
class SuggestSettings:
    """Which images to check next."""

    run: str
    """Folder of a finished curation: a path or an object-store URL."""
    count: int = 20
    """Images to suggest."""
    seed: int = 0
    """Of the draw, where more than 10,000 images are in doubt."""


def suggest_command(arguments: Sequence[str]) -> int:
    """`suggest-references`: the images whose checking would help most. Returns the exit code."""

    def command() -> None:
        settings = tyro.cli(
            SuggestSettings,
            args=name_positionals(arguments, ("--run",)),
            prog="suggest-references",
            description="List the images of a finished curation whose checking would help most as references: "
            "suggest-references RUN --count 20.",
        )
        from trainref_ray.report.suggestions import FILE, PAGE, suggest_references, write_suggestions

        run = load_run(settings.run)
        found = suggest_references(run, count=settings.count, seed=settings.seed)
        write_suggestions(run, found)
        print_suggestions(found)
        print(f"to label in a browser: {run.storage.location(PAGE)}")
        print(f"to fill in by hand: {run.storage.location(FILE)}")

    return run_command(command)


def print_suggestions(found: Suggestions) -> None:
    """A row an image, on standard output."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table(title=None)
    for name in ("key", "given", "curated"):
        table.add_column(name, overflow="fold")
    for image in found.images:
        curated = ", ".join(f"{name} {share:.2f}" for name, share in image.top)
        table.add_row(*(escape(cell) for cell in (image.key, image.given, curated)))
    console.print(table)
    reached = found.images[-1].nearest if found.images else found.nearest
    console.print(
        f"{len(found.images):,} of {found.doubtful:,} images in doubt; similarity of these to their nearest reference "
        f"{found.nearest:.3f} now, {reached:.3f} with all suggested",
        highlight=False,
        soft_wrap=True,
    )


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "curate": (curate_command, "curate an image set with noisy labels"),
    "sweep": (sweep_command, "try settings of a curation, and rank them by references left out"),
    "doctor": (doctor_command, "check nodes, data, room and memory before a curation; the same options"),
    "prepare": (prepare_command, "write WebVision, Animal-10N, CIFAR, digits or an image folder as shards"),
    "suggest-references": (suggest_command, "list the images whose checking would help a finished curation most"),
    "compare": (compare_command, "run this project and its rivals on the same data"),
}


def main() -> int:
    """The console script `trainref`."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: trainref COMMAND [OPTIONS]; trainref COMMAND --help shows the options\n")
        for command, (_, meaning) in COMMANDS.items():
            print(f"  {command:<19} {meaning}")
        return 0
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}; allowed: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return COMMANDS[name][0](arguments)


if __name__ == "__main__":
    sys.exit(main())
