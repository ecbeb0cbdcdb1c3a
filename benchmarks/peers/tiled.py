"""SAHI's way from an image file to boxes through tiles, with this project's network in each tile.

What a tile costs is the same for both: SAHI's model calls a `Detector` with a batch of tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import need
from mdssd import Detector

OVERLAP = 0.2
Find = Callable[[Path], dict[str, Tensor]]  # boxes [K, 4] xyxy in pixels, scores [K], labels [K]

# Postprocessing, metric and threshold; greedy_nmm are SAHI's defaults.
_MERGES = {"greedy_nmm": ("GREEDYNMM", "IOS", 0.5), "nms": ("NMS", "IOU", 0.45)}


def sahi(detector: Detector, merge: str) -> Find:
    """Use `get_sliced_prediction`, in batches of the detector's size.

    Args:
        detector: finds objects in a tile. It makes no tiles itself.
        merge: "greedy_nmm" or "nmm".
    """
    predict = need("sahi.predict").get_sliced_prediction
    model = _model(detector)
    width, height = _sides(detector)
    kind, metric, threshold = _MERGES[merge]

    def find(path: Path) -> dict[str, Tensor]:
        result = predict(
            str(path),
            model,
            slice_height=height,
            slice_width=width,
            overlap_height_ratio=OVERLAP,
            overlap_width_ratio=OVERLAP,
            perform_standard_pred=False,
            postprocess_type=kind,
            postprocess_match_metric=metric,
            postprocess_match_threshold=threshold,
            verbose=0,
            batch_size=detector.batch_size,
            force_postprocess_type=True,
        )
        found = sorted(result.object_prediction_list, key=lambda each: -each.score.value)
        boxes = np.array([each.bbox.to_xyxy() for each in found], np.float32).reshape(-1, 4)
        return {
            "boxes": torch.from_numpy(boxes),
            "scores": torch.tensor([each.score.value for each in found]),
            "labels": torch.tensor([each.category.id for each in found], dtype=torch.int64),
        }

    return find


def mdssd(detector: Detector) -> Find:
    """Use a detector that makes tiles, in the process that calls."""

    def find(path: Path) -> dict[str, Tensor]:
        (streamed,) = detector.stream([path], workers=0)
        assert streamed.error is None
        return streamed.found

    return find


def _sides(detector: Detector) -> tuple[int, int]:
    size = detector.input_size
    return (size, size) if isinstance(size, int) else size


def _model(detector: Detector) -> Any:
    """Return a SAHI model that takes whole batches."""
    prediction = need("sahi.prediction").ObjectPrediction

    class Model(need("sahi.models.base").DetectionModel):  # type: ignore[misc]
        def set_model(self, model: Detector, **kwargs: Any) -> None:
            self.model = model

        def perform_inference(self, image: np.ndarray) -> None:
            self.perform_batch_inference([image])

        def perform_batch_inference(self, images: list[np.ndarray]) -> None:
            self._original_predictions = self.model(images, batch_size=len(images))

        def _create_object_prediction_list_from_original_predictions(
            self, shift_amount_list: Any = None, full_shape_list: Any = None
        ) -> None:
            self._object_prediction_list_per_image = [
                [
                    prediction(
                        bbox=box,
                        score=score,
                        category_id=label,
                        category_name=self.model.classes[label - 1],
                        shift_amount=shift,
                        full_shape=shape,
                    )
                    for box, score, label in zip(
                        *(found[key].tolist() for key in ("boxes", "scores", "labels")), strict=True
                    )
                ]
                for found, shift, shape in zip(
                    self._original_predictions, shift_amount_list, full_shape_list, strict=True
                )
            ]

    return Model(model=detector, device="cpu", confidence_threshold=detector.score_threshold)
