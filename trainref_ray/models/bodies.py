"""Backbones without their heads: the small network of this project, and torchvision's classifiers."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SMALL_IMAGE = 64
"""ResNets get the 3x3 stem without pooling below this size: the usual stem shrinks 32 px to 8 px before any block."""
IMAGENET_CLASSES = 1000
"""Outputs of torchvision's classifiers as they are built, by which their head is found."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's statistics, which also serve models trained from scratch: batch norm absorbs what differs."""
_WITHOUT_LINEAR_HEAD = re.compile("squeezenet")
_AUXILIARY = re.compile("googlenet|inception")
_SIZE_IN_WEIGHTS = re.compile("vit_|maxvit_")
_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


@dataclass(frozen=True)
class Body:
    """A module from normalised float [B, 3, S, S] to features float [B, width], and how to normalise for it."""

    module: nn.Module
    width: int
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


class CnnSmall(nn.Module):
    """Stages of 3x3 convolution, batch norm, ReLU and, in the first of them, pooling by 2; then global average pooling.

    From 16 px on four stages of 32, 64, 128 and 256 channels, the map halved down to 2 px: on CIFAR-10 (10,000 images,
    40 % human noise, 12 epochs) this reached 65.4 % test accuracy, residual and wider variants at 1.5 times the cost
    63.8 to 64.6 %. Below 16 px three stages, the map halved down to 4 px: on 8 px digits (40 % noise, 15 epochs) as
    accurate as four (95.8 and 95.7 %, five seeds of a prototype), and its 128 features find foreign images better
    (AUROC 0.999 and 0.983 by one Gaussian a class).
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.channels = (32, 64, 128, 256) if image_size >= 16 else (32, 64, 128)
        smallest = 2 if image_size >= 16 else 4
        layers: list[nn.Module] = []
        channels_in, side = 3, image_size
        for channels in self.channels:
            layers += [
                nn.Conv2d(channels_in, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
            if side // 2 >= smallest:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            channels_in = channels
        self.stages = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, S, S] -> float [B, the last stage's channels]."""
        return self.stages(images).mean((2, 3))


def backbone_names() -> list[str]:
    """All backbones: `cnn_small`, and torchvision's classifiers that end in a linear layer."""
    from torchvision import models  # here and below: the import takes 4 s, which `cnn_small` need not wait for

    names = models.list_models(module=models)
    return ["cnn_small", *(name for name in names if not _WITHOUT_LINEAR_HEAD.match(name))]


def check_backbone(name: str) -> None:
    """Raise ValueError, with the close matches, if there is no backbone of this name."""
    if name == "cnn_small":
        return
    names = backbone_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=4, cutoff=0.5) or ["cnn_small", "resnet18", "resnet50"]
        raise ValueError(
            f"unknown backbone {name!r}; did you mean {' or '.join(close)}? Allowed: cnn_small and "
            f"torchvision's {len(names) - 1} classifiers with a linear head"
        )


def build_body(name: str, image_size: int, *, cifar_stem: bool | None, public: bool) -> Body:
    """A backbone without its head.

    Args:
        name: one of `backbone_names()`.
        image_size: side of the images, pixels.
        cifar_stem: ResNets: 3x3 stem of stride 1 without pooling; None = below 64 px, unless the weights are public.
        public: load torchvision's default weights, and normalise as they were trained.

    Raises:
        ValueError: no such backbone, or an image size, stem or weights that it cannot have.
    """
    check_backbone(name)
    if name == "cnn_small":
        return _cnn_small(image_size, cifar_stem=cifar_stem, public=public)
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT if public else None
    preset = weights.transforms() if weights else None
    try:
        module = torchvision.models.get_model(name, weights=None, **_options(name, image_size, preset))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(f"{name} cannot be built for {image_size} px: {error}") from error
    if weights:
        _load_public(module, weights)
    if _takes_cifar_stem(name, module, image_size, cifar_stem, public):
        module.conv1 = nn.Conv2d(3, module.conv1.out_channels, 3, padding=1, bias=False)
        module.maxpool = nn.Identity()
    width = _remove_head(module)
    body = Body(module, width, tuple(preset.mean), tuple(preset.std)) if preset else Body(module, width)
    _try_forward(name, body, image_size)
    return body


def _cnn_small(image_size: int, *, cifar_stem: bool | None, public: bool) -> Body:
    if public:
        raise ValueError("cnn_small has no public weights; use none, a weights file, or another backbone")
    if cifar_stem:
        raise ValueError("cifar_stem is for ResNets; cnn_small has none")
    if image_size < 8:
        raise ValueError(f"cnn_small needs images of 8 pixels or more, not {image_size}")
    module = CnnSmall(image_size)
    return Body(module, module.channels[-1])


def _options(name: str, image_size: int, preset: Any) -> dict[str, Any]:
    """What torchvision's constructors must be told: sizes built into the weights, no auxiliary heads."""
    if _AUXILIARY.match(name):
        # Their public weights were trained on another normalisation, to which they convert by themselves.
        return {"aux_logits": False, "init_weights": True, "transform_input": preset is not None}
    if not _SIZE_IN_WEIGHTS.match(name):
        return {}
    if preset and image_size != preset.crop_size[0]:
        raise ValueError(f"public weights of {name} need images of {preset.crop_size[0]} px, not {image_size}")
    return {"input_size": (image_size, image_size)} if name.startswith("maxvit_") else {"image_size": image_size}


def _load_public(module: nn.Module, weights: Any) -> None:
    """torchvision's own loading, but of tensors alone: its builders would unpickle whatever the file holds."""
    state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    state = {_DENSENET_KEY.sub(r"\1\2", name): value for name, value in state.items()}
    module.load_state_dict({name: value for name, value in state.items() if not name.lower().startswith("aux")})


def _takes_cifar_stem(name: str, module: nn.Module, image_size: int, cifar_stem: bool | None, public: bool) -> bool:
    from torchvision.models import ResNet

    is_resnet = isinstance(module, ResNet)
    if cifar_stem and not is_resnet:
        raise ValueError(f"cifar_stem is for ResNets; {name} has none")
    if cifar_stem and public:
        raise ValueError("public weights come with the usual stem: leave cifar_stem out, or start from scratch")
    return is_resnet and image_size < SMALL_IMAGE and not public if cifar_stem is None else cifar_stem


def _remove_head(module: nn.Module) -> int:
    """Replace the last linear layer with as many outputs as ImageNet has classes; returns its number of inputs."""
    name, head = [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == IMAGENET_CLASSES
    ][-1]
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, nn.Identity())
    return head.in_features


def _try_forward(name: str, body: Body, image_size: int) -> None:
    """One image through the body: the only check of an image size that holds for every architecture."""
    body.module.eval()
    try:
        with torch.inference_mode():
            features = body.module(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(f"{name} cannot take images of {image_size} px: {error}") from error
    if features.shape != (1, body.width):
        raise ValueError(f"{name} gives features {list(features.shape)} at {image_size} px, not [1, {body.width}]")
    body.module.train()
