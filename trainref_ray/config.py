"""Every setting of a run: one frozen model per stage, presets, and the fingerprint that decides what runs again.

Unknown keys and bad values are refused where the settings are built, before any worker starts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from trainref_ray.errors import ConfigError
from trainref_ray.schemas import SCHEMA_VERSION
from trainref_ray.version import METHOD_VERSION


class Settings(BaseModel):
    """Base of all groups of settings: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ReadSettings(Settings):
    """Reading and decoding of shards."""

    max_pixels: int = Field(64_000_000, gt=0)
    """Largest image that is decoded, width times height; a larger one is quarantined."""
    max_bytes: int = Field(64 * 2**20, gt=0)
    """Largest image file that is read, bytes; a larger one is quarantined."""
    allow_truncated_shards: bool = False
    """Go on with a shard whose end is missing: what can be read is used, the rest is one quarantined row."""


class ModelSettings(Settings):
    """The backbone beyond its name and image size."""

    weights: str = "none"
    """none (from scratch), public (torchvision's weights for this backbone) or a path that every node reaches: the
    `model/` folder of an earlier run, or a safetensors file of this project's."""
    cifar_stem: bool | None = None
    """ResNets: 3x3 stem without pooling, for small images; by default on below 64 px."""
    mirror: bool = False
    """Embeddings and predictions are the mean of an image's and its mirror image's, where views are mirrored (`flip`)
    too: a little better, at twice the time of an embedding. Wrong for digits and text."""


class TrainSettings(Settings):
    """One training: optimiser, length, views."""

    epochs: int = Field(12, ge=1)
    """Passes over the images."""
    batch_size: int = Field(128, ge=2)
    """Images a step, over all workers together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd (Nesterov momentum 0.9) or adamw."""
    learning_rate: float = Field(0.1, gt=0)
    """Largest learning rate, reached after the warm-up, then down by half a cosine to 0."""
    weight_decay: float = Field(5e-4, ge=0)
    """On weights of two and more dimensions; biases and norms are left alone."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises linearly."""
    crop: bool = True
    """Views: random crop from the padded (small) or larger (big) image."""
    flip: bool = True
    """Views: mirrored left to right, half of the time. Wrong for digits and text."""
    randaugment: int = Field(0, ge=0, le=30)
    """Views: magnitude of RandAugment (two operations an image), 0 = off."""
    mixup: float = Field(0.0, ge=0)
    """Views: Mixup's Beta parameter, 0 = off. The paper's 0.4 is for large pre-trained backbones."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread over all classes."""
    keep_best: bool = False
    """Keep the epoch with the lowest loss on the held-out references, at the temperature that fits them, not the last
    one."""
    freeze_backbone: bool = False
    """Train the head alone."""


class PretrainSettings(TrainSettings):
    """What the first embeddings come from.

    Without labels (contrastive, none) the model has no head until it is fine-tuned: it predicts nothing, and there is
    no cross-entropy baseline. The contrastive objective ignores keep_best (no label chooses an epoch: the last one is
    kept), mixup and label_smoothing; none ignores all of this group.
    """

    objective: Literal["supervised", "contrastive", "none"] = "supervised"
    """On the noisy labels; on pairs of views of all images, no label read (SimCLR); or model.weights as they are.
    5,000 CIFAR-10 images, three seeds, noise_auroc: with 40 % of the labels wrong supervised 0.91, contrastive 0.85;
    with 80 % 0.71 and 0.76 (benchmarks/results/pretraining.md)."""
    contrastive_temperature: float = Field(0.5, gt=0)
    """Of the contrastive loss; lower = the nearest other images weigh more."""
    contrastive_area: float = Field(0.2, gt=0, le=1)
    """Contrastive views: smallest share of an image in a crop, which is then enlarged; 1 = crops as of `crop` alone."""
    contrastive_jitter: float = Field(0.5, ge=0, le=1)
    """Contrastive views: strength of the colour changes, SimCLR's 0.5 for CIFAR-10 and 1 for ImageNet; 0 = off."""
    projection_width: int = Field(128, ge=2)
    """Outputs of the projection behind the features, which is thrown away after a contrastive pre-training."""

    @property
    def reads_labels(self) -> bool:
        """Whether the pre-training has a head that is trained on the given labels."""
        return self.objective == "supervised"


class FinetuneSettings(TrainSettings):
    """Fine-tuning on the curated set."""

    reset: bool = False
    """Start from fresh weights, not from the model that the curation used."""
    targets: Literal["soft", "hard"] = "soft"
    """Train on the label distributions, or on their largest class."""


class ProbeSettings(Settings):
    """The linear head whose gradients are compared."""

    epochs: int = Field(10, ge=1)
    """Passes over the embeddings."""
    batch_size: int = Field(512, ge=1)
    """Embeddings a step."""
    learning_rate: float = Field(0.01, gt=0)
    """Adam's, constant. At 0.05 the head memorises noisy labels (digits: relabel_accuracy 0.96 to 0.94)."""
    weight_decay: float = Field(1e-4, ge=0)
    """Adam's L2 penalty."""
    scale: float = Field(16.0, gt=0)
    """Unit-norm embeddings are multiplied by this before the head, which would learn too slowly otherwise."""
    checkpoints: int = Field(3, ge=1)
    """Heads whose influence is averaged, the last of this many equal pieces of the training."""
    bias: bool = True
    """Whether the head has a bias, and with it the gradient's last column."""


class AugmentSettings(Settings):
    """Phase II: which samples join the reference set."""

    delta: float = Field(0.8, ge=-1, le=1)
    """Least normalised evidence of the given label, as a share of what C classes allow."""
    per_class: int = Field(200, ge=0)
    """Most samples that join a class; 0 = none, the given references alone."""
    min_norm: float = Field(0.25, ge=0)
    """Least length of the evidence before it is normalised, as a share of the median over all samples."""


class VoteSettings(Settings):
    """Phase III: supporters, their vote, and how the three sources of evidence make one distribution."""

    k: int = Field(20, ge=1)
    """Supporters of a sample; on CIFAR-10, 10, 20 and 50 measured within 0.001 of each other."""
    near_duplicate: float = Field(0.999, gt=0, le=1)
    """A member with a cosine above this is a copy and does not support the sample. Nearest different CIFAR-10 images
    reach 0.98 (99 %) to 0.995 (largest)."""
    diversity: bool = False
    """Take the k from the nearest 4k (at most a quarter of the members), each one unlike those taken."""
    balance: float = Field(1.0, ge=0, le=1)
    """1 = votes are divided by the class's share of the members, 0 = not, between = a power of it."""
    temperature: float = Field(0.5, gt=0)
    """Sharpening of the distribution: q to the power 1/temperature."""
    given_weight: float = Field(1.0, ge=0)
    """How much the given label weighs, by how often each class bears it: 0 = not at all, 1 = Bayes' rule. CIFAR-10 with
    40 % human noise: relabel_accuracy 0.69 at 0, 0.72 at 1."""
    fit_given_weight: Literal["drawn", "always", "never"] = "drawn"
    """Move given_weight as far as it takes to bring the mean label quality of the samples that are not flagged as out
    of distribution within a standard error of the share of references whose given label is right. That holds for
    references drawn at random, and so for those of reference_per_class (drawn); those of a file may be chosen, such as
    typical images, of which more are right: say always if they were not."""
    vote_weight: float = Field(1.0, ge=0)
    """Weight of the supporters' vote in the curated distribution."""
    influence_weight: float = Field(1.0, ge=0)
    """Weight of the influence of the given references."""
    model_weight: float = Field(1.0, ge=0)
    """Weight of the model's own probabilities."""
    calibrate_model: bool = True
    """Divide the model's logits by the temperature that fits the held-out references best, as its predictions on new
    images are; 1 where there are none."""
    model_source: Literal["head", "probe"] = "head"
    """Whose probabilities these are: of the head that the embedding model was trained with, which knows the curated
    labels from round 2 on (after a label-free pre-training there is none, and the probe takes its place), or of the
    probe. CIFAR-10, 40 % human noise: average precision of wrong labels 0.005 higher with the head."""


class OodSettings(Settings):
    """Out-of-distribution scores and their cut."""

    score: Literal["mahalanobis", "mahalanobis_class", "knn"] = "mahalanobis_class"
    """Distance under one Gaussian, under one a class with shared covariance, or mean cosine distance to supporters."""
    shrinkage: float = Field(0.1, ge=0, le=1)
    """Share of the identity (times the mean variance) in the covariance."""
    quantile: float = Field(0.95, gt=0, lt=1)
    """Share of in-distribution samples below the cut."""
    calibration_samples: int = Field(2000, ge=20)
    """Most samples that the cut is set on: drawn at random from those that pass the evidence bar."""
    fit_samples: int = Field(50_000, ge=20)
    """Most samples that the Gaussian is fitted to: others that pass, drawn at random. 50,000 of 2,048 components are
    400 MB."""


class DecideSettings(Settings):
    """From distribution to decision."""

    keep_at: float = Field(0.5, ge=0, le=1)
    """Least probability of the given label to keep it."""
    relabel_entropy: float = Field(0.8, ge=0)
    """Largest entropy, bits, at which another leading class replaces the label."""
    keep_as: Literal["soft", "hard"] = "soft"
    """Write the distribution of a kept sample, or its label alone."""
    relabel_as: Literal["soft", "hard"] = "soft"
    """Write the distribution of a relabelled sample, or its leading class alone, as the paper does. CIFAR-10 with 40 %
    human noise: 95 % of the 4,173 leading classes are right; the true label has a mean −ln q of 0.23, and of 0.82 where
    the class stands alone (probabilities of at least 1e-7)."""


class CalibrateSettings(Settings):
    """Temperature scaling."""

    per_class: int = Field(5, ge=0)
    """References a class, at most, that no training sees: they choose the epoch and the temperature. Where they are at
    most half of the class's references, the curation is without them too."""
    samples: int = Field(1000, ge=0)
    """Curated samples, at most and at most one in 32, that a fine-tuning does not see: its temperature is fitted to
    their label distributions as well."""


class EvaluateSettings(Settings):
    """Figures that need truth or test data."""

    bootstrap: int = Field(1000, ge=0)
    """Resamples for the 95 % intervals; 0 = none."""
    fewer_references: tuple[PositiveInt, ...] = ()
    """The first round once more with so many references a class, on the same embeddings, for the table."""


class ReportSettings(Settings):
    """The HTML report."""

    gallery: int = Field(24, ge=0, le=500)
    """Images in each gallery."""
    random_ood: int = Field(100, ge=0, le=1000)
    """Images on the page of those called out of distribution, drawn at random; 0 = no such page."""


class ResourceSettings(Settings):
    """Where and how wide things run. Changes no result, so it is in no fingerprint."""

    address: str | None = None
    """Ray's address; by default the running cluster of this job, else a local Ray."""
    train_workers: int = Field(1, ge=1)
    """Processes of Ray Train. One on a small machine: each takes seconds to start, and a group five more processes."""
    embed_workers: int | None = Field(None, ge=1)
    """Actors that embed; by default one a GPU, else one for two CPUs."""
    embed_batch: int | None = Field(None, ge=1)
    """Images at once through the backbone; by default 256 on a CPU, on a GPU the fastest, found by a short probe."""
    index_shards: int = Field(2, ge=1)
    """Pieces of the supporter index, an actor each."""
    index_replicas: int = Field(1, ge=1)
    """Copies of each piece."""
    gpu: bool | None = None
    """Use GPUs; by default when the cluster has one."""
    bf16: bool | None = None
    """Autocast to bfloat16; by default on GPUs and on processors with such instructions."""
    cache_bytes: int = Field(4 * 2**30, ge=0)
    """Images are held in memory as uint8 by a training worker if they fit in this; else streamed each epoch."""
    timeout: float = Field(600.0, gt=0)
    """Seconds to wait for resources or an answer before giving up with a message."""


class TrackingSettings(Settings):
    """MLflow."""

    enabled: bool = True
    """Whether to log at all."""
    uri: str | None = None
    """Tracking URI; by default MLFLOW_TRACKING_URI, else sqlite in the run folder; with neither, where that is in an
    object store, nothing is logged."""
    experiment: str = "trainref"
    """Experiment's name."""


class Config(Settings):
    """All settings of a curation."""

    data: tuple[str, ...] = ()
    """Shards: brace pattern, glob, list, directory or object-store URL; `sample:digits` is the embedded sample."""
    test_data: tuple[str, ...] = ()
    """Shards of a clean test set, for figures only."""
    reference: str | None = None
    """The trusted set: a csv file with the columns key,label."""
    reference_per_class: int | None = Field(None, ge=1)
    """Draw so many references a class from the trusted field instead."""
    out: str = "runs/run"
    """The run folder: a path or an object-store URL."""
    seed: int = Field(0, ge=0)
    """Of every random choice."""
    limit: int | None = Field(None, ge=1)
    """Use the first so many samples alone."""
    backbone: str = "cnn_small"
    """cnn_small, resnet18, resnet50 or any torchvision classification model that ends in a linear layer."""
    image_size: int = Field(32, ge=8, le=1024)
    """Side of the images given to the backbone, pixels."""
    label_field: str = "label"
    """Field of KEY.json with the given label; KEY.cls works too."""
    truth_field: str = "true_label"
    """Field with the true label, -1 = of no class; read by the choice of references, by noise and by evaluation
    alone."""
    classes: str | None = None
    """JSON list of class names; by default classes.json beside the shards."""
    noise: str = "none"
    """For experiments on clean labels: the share R of the training labels is replaced, by sym:R with a class drawn from
    all C (so R(C-1)/C become wrong), by symflip:R with another one, by asym:R with the one it is confused with. The
    trusted field is taken as clean where there is one, else the given label."""
    resume: bool = True
    """Go on with what the run folder holds; --no-resume removes its results first."""
    allow_missing_classes: bool = False
    """Go on when a class has no reference."""
    retry_quarantined: bool = False
    """Read shards with quarantined samples again."""
    rounds: int = Field(2, ge=1, le=10)
    """Curate and fine-tune so many times."""
    finetune_model: bool = True
    """Whether to fine-tune a model; without, one round of curation is the result."""
    final_curation: bool = True
    """Curate once more after the last fine-tuning, by the released model; without, the decisions are those that it was
    trained on."""

    read: ReadSettings = ReadSettings()
    model: ModelSettings = ModelSettings()
    pretrain: PretrainSettings = PretrainSettings(keep_best=True)
    probe: ProbeSettings = ProbeSettings()
    augment: AugmentSettings = AugmentSettings()
    vote: VoteSettings = VoteSettings()
    ood: OodSettings = OodSettings()
    decide: DecideSettings = DecideSettings()
    finetune: FinetuneSettings = FinetuneSettings(epochs=8, learning_rate=0.02)
    calibrate: CalibrateSettings = CalibrateSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    report: ReportSettings = ReportSettings()
    resources: ResourceSettings = ResourceSettings()
    tracking: TrackingSettings = TrackingSettings()

    @property
    def curations(self) -> int:
        """How often every sample is judged: in each round, and by the released model."""
        return self.rounds + int(self.finetune_model and self.final_curation)

    @property
    def fits_given_weight(self) -> bool:
        """Whether the references tell how much the given label weighs (`vote.fit_given_weight`)."""
        fit = self.vote.fit_given_weight
        return fit == "always" or (fit == "drawn" and self.reference_per_class is not None)


class SweepSettings(Settings):
    """What a sweep tries, and how."""

    space: str
    """YAML file that maps settings to values: `vote.k: {grid: [5, 10]}`; also choice, uniform, loguniform."""
    search: Literal["grid", "random", "optuna"] | None = None
    """grid tries all values; random draws; optuna (TPE) draws near what did well. By default grid if the space has
    lists alone, else random."""
    scheduler: Literal["fifo", "asha"] = "fifo"
    """asha stops, after each round, trials that are worse than half of those before; needs --finetune and 2 rounds."""
    samples: int = Field(20, ge=1)
    """Draws of a random or optuna search."""
    max_concurrent: int | None = Field(None, ge=1)
    """Trials at once; by default one for two CPUs, at most 4."""
    finetune: bool = False
    """Fine-tune a model in every trial, and do all rounds; else a trial is one round of curation."""
    folds: int = Field(3, ge=2)
    """Trials are ranked by references that are left out of them, in so many parts."""


MODEL_SETTINGS = ("backbone", "image_size", "model.cifar_stem", "model.mirror")
"""What a model is, but for the weights that it starts from: those are known by what is in their file."""
STAGE_SETTINGS: dict[str, tuple[str, ...]] = {
    "inventory": ("label_field", "truth_field", "limit", "read"),
    "noisy": ("seed", "noise"),
    "pretrain": ("seed", *MODEL_SETTINGS, "pretrain", "calibrate.per_class"),
    "pretrain_label_free": ("seed", *MODEL_SETTINGS, "pretrain"),
    "embeddings": MODEL_SETTINGS,
    "probe": ("seed", "probe"),
    "evidence": (),
    "references": ("augment",),
    "supporters": ("vote.k", "vote.near_duplicate", "vote.diversity"),
    "distributions": (
        "vote.vote_weight",
        "vote.influence_weight",
        "vote.model_weight",
        "vote.model_source",
        "vote.calibrate_model",
        "vote.balance",
    ),
    "transition": ("vote.temperature", "vote.given_weight"),
    "ood": ("seed", "ood"),
    "decisions": ("decide",),
    "finetune": ("seed", *MODEL_SETTINGS, "finetune", "calibrate"),
    "predictions": MODEL_SETTINGS,
}
"""The settings that change the result of each stage, besides what the stages before it hand on. Paths are not among
them: class names and weights are known by what is in their files."""


def setting(config: Config, name: str) -> Any:
    """The value of a dotted setting such as `vote.k`, as plain JSON data."""
    value: Any = config.model_dump(mode="json")
    for part in name.split("."):
        value = value[part]
    return value


def fingerprint(config: Config, stage: str, *upstream: str) -> str:
    """Eight hexadecimal digits that change when the result of `stage` may change.

    Args:
        config: all settings.
        stage: a key of `STAGE_SETTINGS`.
        upstream: fingerprints of the stages and hashes of the data that this stage reads, in a fixed order.
    """
    content = {
        "stage": stage,
        "settings": {name: setting(config, name) for name in STAGE_SETTINGS[stage]},
        "upstream": upstream,
        "schema": SCHEMA_VERSION,
        "method": METHOD_VERSION,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def preset_names() -> list[str]:
    """The presets that ship with the package."""
    folder = resources.files("trainref_ray") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_preset(name: str) -> dict[str, Any]:
    """The settings of a preset, by name or as a path to a YAML file, as nested dictionaries.

    Raises:
        ConfigError: there is no such preset, or the file is not a YAML mapping.
    """
    if name in preset_names():
        text = (resources.files("trainref_ray") / "presets" / f"{name}.yaml").read_text()
    elif name.endswith((".yaml", ".yml")) and Path(name).is_file():
        text = Path(name).read_text()
    else:
        raise ConfigError(f"preset {name!r} does not exist; allowed: {', '.join(preset_names())}, or a .yaml file")
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"preset {name!r} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"preset {name!r} must map settings to values, not be a {type(content).__name__}")
    return content


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, group by group."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _default_groups() -> dict[str, Any]:
    """Defaults that differ from their group's own, e.g. the learning rate of the fine-tuning."""
    return Config().model_dump()


def make_config(*layers: Mapping[str, Any]) -> Config:
    """Settings from nested dictionaries, later ones first in force, over the defaults.

    Raises:
        ConfigError: an unknown key or a bad value; names the key, the value and what is allowed.
    """
    content = _default_groups()
    for layer in layers:
        content = merge(content, layer)
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    _check_together(config)
    return config


def _check_together(config: Config) -> None:
    """What no setting can say alone. Not a validator of the model, so that the command line too says it in one line."""
    if config.reference is not None and config.reference_per_class is not None:
        raise ConfigError("give reference (a file) or reference_per_class, not both")
    if config.vote.vote_weight + config.vote.influence_weight + config.vote.model_weight <= 0:
        raise ConfigError("one of vote.vote_weight, vote.influence_weight, vote.model_weight must be above 0")
    if config.pretrain.objective == "none" and config.model.weights == "none":
        raise ConfigError(
            "pretrain.objective none uses model.weights as they are, and model.weights is none; "
            "give public or a path, or allowed objectives: supervised, contrastive"
        )
    if config.pretrain.objective == "contrastive" and config.pretrain.freeze_backbone:
        raise ConfigError(
            "pretrain.objective contrastive trains the backbone alone; leave pretrain.freeze_backbone out"
        )
    if config.model.mirror:
        for name, trains in (("pretrain", config.pretrain.objective != "none"), ("finetune", config.finetune_model)):
            if trains and not setting(config, f"{name}.flip"):
                raise ConfigError(
                    f"model.mirror is on, but {name}.flip is off: the model has not learned from mirror images; "
                    "allowed: both, or --model.no-mirror"
                )


def _explain(error: ValidationError) -> str:
    """One line for the first problem: key, value, what is allowed."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        group: Any = Config
        for part in problem["loc"][:-1]:
            group = group.model_fields[str(part)].annotation
        return f"unknown setting {key!r}; allowed: {', '.join(group.model_fields)}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"setting {key!r} is {problem['input']!r}: {message}" if key else f"settings: {message}"
