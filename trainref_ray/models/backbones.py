"""From a backbone's name to a classifier: construction, files on disk, and the one function that predicts.

A classifier is a body, which turns an image into features, and one linear head. The features before the head are the
embedding of METHOD 1, so every backbone here ends in exactly one linear layer. After a pre-training without labels
there is no head yet: such a model is saved with 0 classes, and a head is added where it is fine-tuned.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from trainref_ray.data.images import stored_size as stored_side
from trainref_ray.files import written_aside
from trainref_ray.models.bodies import Body, backbone_names, build_body, check_backbone

__all__ = [
    "Classifier",
    "ModelSpec",
    "backbone_names",
    "build",
    "check_backbone",
    "load_model",
    "predict",
    "save_model",
    "stored_side",
    "weights_path",
]

NONE, PUBLIC = "none", "public"
"""Values of `ModelSpec.weights` that are not a path."""


@dataclass(frozen=True)
class ModelSpec:
    """What to build.

    Attributes:
        backbone: one of `backbone_names()`.
        classes: outputs of the head; 0 = no head.
        image_size: side of the square images that the model is given, pixels.
        cifar_stem: ResNets: 3x3 stem of stride 1 without pooling; None = below 64 px, unless the weights are public.
        weights: `none` (fresh), `public` (torchvision's for ImageNet) or the path of a `model.safetensors` or of a
            folder with one.
        mirror: predictions are of an image and its mirror image together, see `predict`.
    """

    backbone: str
    classes: int
    image_size: int
    cifar_stem: bool | None = None
    weights: str = NONE
    mirror: bool = False


class Classifier(nn.Module):
    """A backbone without its head, a linear head, and how images are shown to it.

    `head` is a linear layer; the identity where there are no classes. A contrastive training puts a projection there.
    """

    head: Any
    mean: Tensor
    std: Tensor

    def __init__(self, body: Body, classes: int, image_size: int) -> None:
        super().__init__()
        self.body = body.module
        self.head = nn.Linear(body.width, classes) if classes else nn.Identity()
        self.width = body.width
        self.image_size = image_size
        self.mirror = False
        self.frozen = False
        self.register_buffer("mean", torch.tensor(body.mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(body.std, dtype=torch.float32))

    def prepare(self, pixels: Tensor) -> Tensor:
        """Centre crop to `image_size` and normalise.

        Args:
            pixels: uint8 [B, S', S', 3] with S' >= image_size, on the model's device.

        Returns:
            float32 [B, 3, S, S], channels last in memory.

        Raises:
            ValueError: another shape or type, or images that are too small.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise ValueError(f"pixels are {pixels.dtype} {list(pixels.shape)}, not uint8 [B, S, S, 3]")
        height, width, size = pixels.shape[1], pixels.shape[2], self.image_size
        if min(height, width) < size:
            raise ValueError(f"images of {width}x{height} pixels are smaller than the model's {size}x{size}")
        top, left = (height - size) // 2, (width - size) // 2
        cropped = pixels[:, top : top + size, left : left + size].permute(0, 3, 1, 2)
        images = cropped.to(torch.float32, memory_format=torch.channels_last)
        return images.sub_(self.mean.view(1, 3, 1, 1) * 255).div_(self.std.view(1, 3, 1, 1) * 255)

    def features(self, images: Tensor) -> Tensor:
        """Normalised float [B, 3, S, S] -> float [B, width], what the head sees."""
        return self.body(images)

    def predicted_features(self, images: Tensor) -> Tensor:
        """As `features`; with `mirror` the mean of each image's and of its mirror image's (left to right)."""
        features = self.features(images)
        return (features.float() + self.features(images.flip(3)).float()) / 2 if self.mirror else features

    def forward(self, images: Tensor) -> Tensor:
        """Normalised float [B, 3, S, S] -> logits float [B, classes], or what the head is."""
        return self.head(self.features(images))

    def set_classes(self, classes: int) -> None:
        """A fresh head of so many classes, from torch's global generator; 0 = none."""
        self.head = nn.Linear(self.width, classes) if classes else nn.Identity()

    def freeze_backbone(self) -> None:
        """From now on only the head learns: no gradients, and batch norm keeps its statistics."""
        self.frozen = True
        self.body.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Classifier:
        """Training or evaluation mode; a frozen body stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self


def weights_path(weights: str) -> Path | None:
    """The file that `ModelSpec.weights` means, None if it is no path; a folder stands for its `model.safetensors`."""
    if weights in (NONE, PUBLIC):
        return None
    path = Path(weights)
    return path / "model.safetensors" if path.is_dir() else path


def build(spec: ModelSpec) -> Classifier:
    """A classifier, its weights channels last in memory.

    Fresh weights come from torch's global generator: seed it before. From a weights file the backbone is taken whole;
    the head is taken if it has as many classes, and is fresh otherwise (or if the file has none).

    Raises:
        ValueError: unknown backbone, an image size or stem that it or its weights cannot have, or a weights file whose
            names or shapes are not this backbone's.
        FileNotFoundError: there is no such weights file.
    """
    body = build_body(spec.backbone, spec.image_size, cifar_stem=spec.cifar_stem, public=spec.weights == PUBLIC)
    model = Classifier(body, spec.classes, spec.image_size)
    model.mirror = spec.mirror
    path = weights_path(spec.weights)
    if path is not None:
        _load_file_into(model, path, any_head=True)
    return model.to(memory_format=torch.channels_last)


def save_model(model: Classifier, spec: ModelSpec, folder: str | Path) -> None:
    """Write `model.safetensors` and `model.json` (spec and width); the folder is made if it does not exist.

    Each is written aside and renamed, model.json last: where it is, the model is whole.
    """
    folder = Path(folder)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with written_aside(folder / "model.safetensors") as aside:
        save_file(state, aside)
    content = {"spec": asdict(spec), "width": model.width}
    with written_aside(folder / "model.json") as aside:
        aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_model(folder: str | Path) -> tuple[Classifier, ModelSpec]:
    """Read what `save_model` wrote; nothing else is read or downloaded, whatever the spec's weights were.

    Raises:
        ValueError: model.json is not a spec of a known backbone, or the tensors are not this model's.
        FileNotFoundError: one of the two files is missing.
    """
    path = Path(folder) / "model.json"
    try:
        content = json.loads(path.read_text())
        spec = ModelSpec(**content["spec"])
        width = content["width"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} does not describe a model: {error!r}") from error
    # Public weights keep the usual stem; that choice must survive leaving them out.
    stem = False if spec.weights == PUBLIC else spec.cifar_stem
    model = build(replace(spec, cifar_stem=stem, weights=NONE))
    if model.width != width:
        raise ValueError(f"{path}: width {width}, but {spec.backbone} has {model.width}")
    _load_file_into(model, Path(folder) / "model.safetensors", any_head=False)
    return model.eval(), spec


def _load_file_into(model: Classifier, path: Path, *, any_head: bool) -> None:
    state = load_file(path)
    own = model.state_dict()
    head = {name: value for name, value in own.items() if name.startswith("head.")}
    if any_head and any(name not in state or state[name].shape != value.shape for name, value in head.items()):
        state |= head
    if any_head and not head:
        state = {name: value for name, value in state.items() if not name.startswith("head.")}
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise ValueError(f"{path} is of another model: missing tensors {missing[:3]}, unknown tensors {unknown[:3]}")
    shapes = [name for name in own if own[name].shape != state[name].shape]
    if shapes:
        name = shapes[0]
        raise ValueError(f"{path}: tensor {name!r} is {list(state[name].shape)}, not {list(own[name].shape)}")
    model.load_state_dict(state)


def predict(
    model: Classifier, pixels: np.ndarray, *, device: str = "cpu", bf16: bool = False, batch: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and logits of images; the model is moved to `device` and left in evaluation mode.

    Features are `Classifier.predicted_features`: where `model.mirror` is set they are means of two, and so are the
    logits, since the head is linear. It takes twice the time.

    Args:
        model: a classifier.
        pixels: uint8 [B, S', S', 3], S' >= the model's image size; B may be 0.
        device: where to compute.
        bf16: run the backbone under autocast to bfloat16; normalisation and head stay float32.
        batch: images at once.

    Returns:
        (embeddings float16 [B, D], unit norm before they were rounded; logits float32 [B, C]). Features that are all
        zero give a zero embedding, a model without a head logits of shape [B, 0].

    Raises:
        ValueError: see `Classifier.prepare`.
    """
    model.to(device).eval()
    embeddings = np.zeros((len(pixels), model.width), np.float16)
    has_head = isinstance(model.head, nn.Linear)
    logits = np.zeros((len(pixels), model.head.out_features if has_head else 0), np.float32)
    with torch.inference_mode():
        for start in range(0, len(pixels), batch):
            chunk = torch.from_numpy(np.ascontiguousarray(pixels[start : start + batch])).to(device)
            images = model.prepare(chunk)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                features = model.predicted_features(images)
            features = features.float()
            rows = slice(start, start + len(chunk))
            embeddings[rows] = functional.normalize(features).half().cpu().numpy()
            if has_head:
                logits[rows] = model.head(features).cpu().numpy()
    return embeddings, logits
