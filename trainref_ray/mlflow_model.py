"""The released model as MLflow loads it: images uint8 [B, H, W, 3] in, class probabilities float32 [B, C] out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from PIL import Image

from trainref_ray.data.images import to_square
from trainref_ray.models.backbones import load_model, predict
from trainref_ray.training.calibrate import softmax


class TrainRefModel(PythonModel):
    """Loads safetensors and json; the temperature is the one fitted on held-out references."""

    def load_context(self, context: Any) -> None:
        """Read the model's files."""
        folder = Path(context.artifacts["model"])
        self._model, self._spec = load_model(folder)
        self._temperature = json.loads((folder / "calibration.json").read_text())["temperature"]

    # MLflow takes a hint of `model_input` for a wish that it derive the signature from it, and warns that it cannot.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Class probabilities float32 [B, C] after temperature scaling, of uint8 [B, H, W, 3] or {"images": those}."""
        images = model_input["images"] if isinstance(model_input, dict) else model_input
        squares = np.stack(
            [to_square(Image.fromarray(image), self._spec.image_size) for image in np.asarray(images, np.uint8)]
        )
        _, logits = predict(self._model, squares, device="cpu", bf16=False)
        return softmax(logits, self._temperature)


set_model(TrainRefModel())
