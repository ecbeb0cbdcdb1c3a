"""Peers of `soft_nms` with the defaults of ensemble-boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks.generators import Scored
from benchmarks.peers import need
from mdssd import ops

SETTINGS: dict[str, Any] = {"iou_threshold": 0.5, "sigma": 0.5, "score_threshold": 0.001}
Call = Callable[[], tuple[Any, Any]]  # the boxes and the classes of the kept boxes


def mdssd(x: Scored, method: str) -> Call:
    def call() -> tuple[Tensor, Tensor]:
        keep, _ = ops.soft_nms(*x, method=method, **SETTINGS)
        assert x.classes is not None
        return x.boxes[keep], x.classes[keep]

    return call


def ensemble_boxes(x: Scored, method: str) -> Call:
    """Use soft_nms. It returns the scores as they were, so they are not compared."""
    module = need("ensemble_boxes")
    assert x.classes is not None
    lists = ([x.boxes.numpy()], [x.scores.numpy()], [x.classes.numpy()])
    number = {"linear": 1, "gaussian": 2}[method]

    def call() -> tuple[Any, Any]:
        boxes, _, labels = module.soft_nms(*lists, method=number, iou_thr=0.5, sigma=0.5)
        return boxes, labels

    return call


PEERS = {"ensemble-boxes": ensemble_boxes}
