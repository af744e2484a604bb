"""What a comparison is asked for, and what of it cannot be done, told before Ray is started."""

from __future__ import annotations

from dataclasses import dataclass

from trainref_ray.baselines import methods
from trainref_ray.config import Config
from trainref_ray.data.images import stored_size
from trainref_ray.data.shards import count_samples
from trainref_ray.data.votes import has_votes
from trainref_ray.distributed.context import Inputs
from trainref_ray.distributed.job import KEY_SCAN_BYTES, embedded_sample, find_inputs, write_settings
from trainref_ray.errors import ConfigError
from trainref_ray.run import RUN_FILE, RunLock, open_run


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


def check_inputs(config: Config, request: Request, first: Config) -> None:
    """What would stop a curation or a training, told before Ray is started.

    Args:
        config: settings of the comparison.
        request: what it is of.
        first: settings of its first curation.

    Raises:
        TrainRefError: as `find_inputs`; or the images do not fit into the memory that the trainings may take; or there
            is nothing that a method asks for.
    """
    _check_budget(config, request)
    home = open_run(first.out)
    with RunLock(home):
        if not home.exists(RUN_FILE):
            write_settings(first, home)
        inputs = find_inputs(embedded_sample(first, home), home)
    train_bytes, test_bytes = (sum(shard.bytes for shard in part) for part in (inputs.shards, inputs.test_shards))
    if train_bytes <= KEY_SCAN_BYTES:  # else the inventory counts them
        check_memory(config, request, sum(shard.limit or count_samples(shard.url) for shard in inputs.shards))
    if train_bytes + test_bytes <= KEY_SCAN_BYTES:
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


def check_memory(config: Config, request: Request, images: int) -> None:
    """Whether the rivals' trainings may hold so many images.

    Raises:
        ConfigError: they may not.
    """
    trained = [name for name in request.methods if name in methods.TRAINED]
    needed = images * stored_size(config.image_size) ** 2 * 3
    if trained and needed > config.resources.cache_bytes:
        raise ConfigError(
            f"{', '.join(trained)} hold their images in memory: {images:,} take {needed:,} bytes, and "
            f"resources.cache_bytes is {config.resources.cache_bytes:,}; raise it, lower --limit, or leave them out "
            "with --methods"
        )
