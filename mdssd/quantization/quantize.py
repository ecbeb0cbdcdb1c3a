"""Post-training quantisation of a detector's network to int8, by NNCF."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mdssd.data import DetectionDataset
from mdssd.data.dataset import DataPart
from mdssd.detection.detector import Detector
from mdssd.detection.export import quiet_exporters
from mdssd.detection.onnx import network_proto
from mdssd.detection.quantized import QuantizedNetwork
from mdssd.evaluation.about import describe_run
from mdssd.evaluation.evaluate import find_all
from mdssd.evaluation.result import EvalData, EvalResult, measure
from mdssd.metrics import coco_ap, voc_ap
from mdssd.models import SingleShotDetector
from mdssd.models.folding import fold_batch_norm
from mdssd.quantization.calibration import Inputs, sources
from mdssd.quantization.result import NetworkFacts, QuantizeResult
from mdssd.system.files import writable_folder
from mdssd.system.progress import progress_bar
from mdssd.system.text import first_line
from mdssd.weights.checkpoint import load_checkpoint, save_checkpoint
from mdssd.weights.convert import json_path

# Images on which the accuracy control compares layers; it measures the drop on all of them.
_RANKING_IMAGES = 48
_LAYERS = ("Conv", "ConvTranspose")
# OpenVINO runs these in the type of their input; a Slice it runs in float32.
_MOVES = ("MaxPool", "Reshape", "Resize", "Transpose")
_ROUNDS = 15  # of the measured latency


def quantize(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    calibration: DetectionDataset,
    validation: DetectionDataset,
    max_drop: float = 0.005,
    images: int = 300,
    batch_size: int = 8,
    workers: int | None = None,
    allow_faults: bool = False,
    report: Callable[[str], object] | None = None,
    **options: Any,
) -> QuantizeResult:
    """Write an int8 form of a checkpoint's network, which OpenVINO runs on a CPU.

    NNCF chooses the ranges of the int8 numbers from the inputs of `calibration` and converts all
    layers. While COCO AP on `validation` drops by more than `max_drop`, it puts the layer that
    costs most accuracy back to float32. The result is a checkpoint, which `Detector`, `mdssd
    detect`, `eval` and `export --format onnx` take like any other.

    Args:
        checkpoint: the checkpoint of a float network.
        out: the .json to write, with or without its suffix; the network goes to the same folder,
            as ONNX with QuantizeLinear and DequantizeLinear.
        calibration: images like those that will be detected in; their boxes are not used.
        validation: annotated images, on which AP is measured.
        max_drop: the most COCO AP that may be lost, from 0.
        images: the most inputs of the network to calibrate with.
        batch_size: how many validation images go through the network at once.
        workers: processes that read images, as in `Detector.stream`.
        allow_faults: leave out images of `validation` that cannot be read and its objects of
            classes that the checkpoint lacks, as `evaluate` does.
        report: is called with a line about each step; it also switches progress bars on.
        options: keywords of `Detector` that say what the network sees: `tile` and its relatives.

    Returns:
        A `QuantizeResult`; `print(result.table())` shows it.

    Raises:
        ImportError: a package of the extra int8 is not installed.
        CheckpointError: there is no checkpoint, or it is of an int8 network already.
        TypeError: `calibration` or `validation` is no `DetectionDataset`, or there is no such
            option.
        ValueError: an argument is out of range, a data set is empty, `validation` has no objects
            of the checkpoint's classes, or other ones and `allow_faults` is not set, or no layer
            can be in int8 within `max_drop`. Nothing is written then.
        OSError: `out` exists or cannot be written.

    Example:
        >>> from mdssd.quantization.quantize import quantize
        >>> quantize("runs/mine", "mine-int8", calibration=..., validation=..., max_drop=-1)
        Traceback (most recent call last):
            ...
        ValueError: quantize: max_drop: expected a number from 0 to 1, got -1
    """
    if (
        isinstance(max_drop, bool)
        or not isinstance(max_drop, int | float)
        or not 0 <= max_drop <= 1
    ):
        raise ValueError(f"quantize: max_drop: expected a number from 0 to 1, got {max_drop!r}")
    if isinstance(images, bool) or not isinstance(images, int) or images < 1:
        raise ValueError(f"quantize: images: expected an int of 1 or more, got {images!r}")
    given: dict[str, Any] = {"calibration": calibration, "validation": validation}
    for name, dataset in given.items():
        if not isinstance(dataset, DetectionDataset):
            kind = type(dataset).__name__
            raise TypeError(f"quantize: {name}: expected a DetectionDataset, got {kind}")
        if not len(dataset):
            raise ValueError(f"quantize: {name}: expected images, {dataset.name} has none")
    path = new_checkpoint(out)
    check_packages()
    model, meta = load_checkpoint(checkpoint)
    fold_batch_norm(model)
    how = {"workers": workers, "allow_faults": allow_faults}
    job = _Job(model, meta, validation, max_drop, batch_size, how, report, options)
    with quiet_exporters():
        return job.run(path, calibration, images)


def new_checkpoint(out: str | os.PathLike[str]) -> Path:
    """Return the JSON to write, which must not exist, in a folder that can be written.

    Raises:
        OSError: there is one already, or the folder cannot be written.
    """
    path = json_path(out)
    if path.exists() or path.is_symlink():
        raise FileExistsError(17, "exists already; name another --out, or remove it", str(path))
    writable_folder(path.parent)
    return path


def check_packages() -> None:
    """Import the packages of the extra int8.

    Raises:
        ImportError: one is missing.
    """
    try:
        import nncf  # noqa: F401
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
        import openvino  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"quantize: needs the packages of the extra int8, of which {error.name} is missing: "
            "pip install nncf onnx onnxruntime onnxscript openvino"
        ) from None


class _Job:
    """One call of `quantize`."""

    def __init__(
        self,
        model: SingleShotDetector,
        meta: dict[str, Any],
        validation: DetectionDataset,
        max_drop: float,
        batch_size: int,
        how: dict[str, Any],
        report: Callable[[str], object] | None,
        options: dict[str, Any],
    ) -> None:
        self.model, self.meta, self.validation = model, meta, validation
        self.how, self.progress = how, report is not None  # how: workers and allow_faults
        self.report = report or (lambda line: None)
        facts = {"classes": meta["classes"], "mean": tuple(meta["mean"])}
        self.options = {**options, **facts, "device": "cpu", "runtime": "openvino"}
        self.batch_size, self.max_drop = batch_size, max_drop
        self.known: dict[bytes, EvalData] = {}  # what was found, by the SHA-256 of the network
        self.ap = math.nan  # of the float32 network
        self.stdout = sys.stdout
        self.ranking: Any = None  # the bar of the comparison of layers

    def run(self, path: Path, calibration: DetectionDataset, images: int) -> QuantizeResult:
        proto = self.proto()
        layers = _layer_names(proto)
        detector = self.detector(self.model)
        found = self.known[_digest(proto)] = self.find(detector, self.validation)
        before = self.measure(detector, found)
        self.ap = _ap(found, len(self.meta["classes"]))
        if math.isnan(self.ap):
            raise ValueError(
                f"quantize: validation: expected objects to measure AP on, "
                f"{self.validation.name} has none of the checkpoint's classes"
            )
        self.report(f"float32: COCO AP {self.ap:.4f}")
        options = {k: v for k, v in self.options.items() if k != "runtime"}
        inputs = Inputs(self.model, calibration, images, workers=self.how["workers"], **options)
        quantized = self.quantized(proto, inputs)
        network = quantized.SerializeToString()
        in_int8 = _int8_nodes(quantized)
        int8_layers = [name for node, name in layers.items() if node in in_int8]
        if not int8_layers:
            raise ValueError(
                f"quantize: no layer can be in int8 within a drop of {self.max_drop:g}"
            )
        other = self.detector(QuantizedNetwork(self.model, network))
        after = self.measure(other, self.find(other, self.validation))
        seconds = self.latencies(detector, other)
        result = QuantizeResult(
            path,
            NetworkFacts(before, self.meta["bytes"], seconds[0]),
            NetworkFacts(after, len(network), seconds[1]),
            int8_layers,
            [name for node, name in layers.items() if node not in in_int8],
            self.max_drop,
            len(inputs),
        )
        save_checkpoint(
            path,
            self.model,
            classes=self.meta["classes"],
            mean=self.meta["mean"],
            extra={**self.meta["training"], "quantized": result.to_dict()},
            network=network,
        )
        return result

    def proto(self) -> Any:
        """Return the float32 network as ONNX."""
        try:
            return network_proto(self.model)
        except ImportError:
            raise
        except Exception as error:  # PyTorch raises many kinds, with many lines
            raise ValueError(
                f"quantize: {self.model.name} with trunk {self.model.options.trunk} cannot be "
                f"written as ONNX: {first_line(error)}"
            ) from error

    def detector(self, model: SingleShotDetector | QuantizedNetwork) -> Detector:
        return Detector(model, **self.options, batch_size=self.batch_size)

    def find(self, detector: Detector, dataset: DetectionDataset, visible: bool = True) -> EvalData:
        return find_all(
            detector,
            dataset,
            batch_size=self.batch_size,
            progress=self.progress and visible,
            **self.how,
        )

    def measure(self, detector: Detector, found: EvalData) -> EvalResult:
        about = describe_run(detector, self.validation)
        return measure(found, self.validation, detector.classes, about=about)

    def quantized(self, proto: Any, inputs: Inputs) -> Any:
        """Return the int8 network, in which layers are float32 as the accuracy control decides."""
        import nncf

        how = nncf.AdvancedAccuracyRestorerParameters(
            ranking_subset_size=min(_RANKING_IMAGES, len(self.validation)), num_ranking_workers=1
        )
        data = nncf.Dataset(_Shown(inputs, self.progress))
        places = nncf.Dataset(range(len(self.validation)))
        try:
            with _quiet():
                return nncf.quantize_with_accuracy_control(
                    proto,
                    data,
                    places,
                    self.validate,
                    max_drop=self.max_drop,
                    drop_type=nncf.DropType.ABSOLUTE,
                    subset_size=len(inputs),
                    advanced_accuracy_restorer_parameters=how,
                )
        finally:
            if self.ranking is not None:
                self.ranking.close()

    def validate(self, proto: Any, places: Iterable[int]) -> tuple[float, list[float]]:
        """Return COCO AP of a network on these validation images, and a figure for each image."""
        chosen, digest = list(places), _digest(proto)
        classes = len(self.meta["classes"])
        whole = len(chosen) == len(self.validation)
        if whole and digest in self.known:
            found = self.known[digest]
            return _ap(found, classes), list(_each_image(found, classes))
        detector = self.detector(QuantizedNetwork(self.model, proto.SerializeToString()))
        found = self.find(detector, DataPart(self.validation, chosen), visible=whole)
        ap = _ap(found, classes)
        if whole:
            self.known[digest] = found
            more = "" if self.ap - ap <= self.max_drop else "; one more layer becomes float32"
            with contextlib.redirect_stdout(self.stdout):  # which `_quiet` hides from NNCF
                self.report(f"int8, before the weights are stored: COCO AP {ap:.4f}{more}")
        else:
            bar = self.ranking or progress_bar(desc="compare layers", visible=self.progress)
            bar.update()
            self.ranking = bar
        # Images without objects have no AP. NNCF orders layers by the figures.
        return (0.0 if math.isnan(ap) else ap), list(_each_image(found, classes))

    def latencies(self, *detectors: Detector) -> list[float]:
        """Return the median seconds from an image in memory to its boxes; the sides take turns."""
        (source,) = sources(self.validation, [0])
        photo = detectors[0].read(source)
        calls = [partial(detector, photo) for detector in detectors]
        times: list[list[float]] = [[] for _ in calls]
        for round_ in range(-1, _ROUNDS):  # the first, which compiles, is not counted
            for call, own in zip(calls, times, strict=True):
                start = time.perf_counter()
                call()
                if round_ >= 0:
                    own.append(time.perf_counter() - start)
        return [statistics.median(own) for own in times]


class _Shown:
    """Calibration inputs with a progress bar around each iteration."""

    def __init__(self, inputs: Inputs, visible: bool) -> None:
        self.inputs, self.visible = inputs, visible

    def __iter__(self) -> Iterator[Any]:
        return iter(
            progress_bar(
                self.inputs,
                desc="calibrate",
                total=len(self.inputs),
                unit="image",
                visible=self.visible,
            )
        )

    def __len__(self) -> int:
        return len(self.inputs)


def _digest(proto: Any) -> bytes:
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).digest()


def _ap(found: EvalData, classes: int) -> float:
    return float(coco_ap(found.detections, found.truth, classes + 1).figures["AP"])


def _each_image(found: EvalData, classes: int) -> Iterator[float]:
    """Yield the VOC mAP of each image; 0 without objects. It tells which images suffer most."""
    for one, truth in zip(found.detections, found.truth, strict=True):
        value = voc_ap([one], [truth], classes + 1, metric="voc12").mean_ap
        yield 0.0 if math.isnan(value) else float(value)


def _layer_names(proto: Any) -> dict[str, str]:
    """Return the nodes of layers with weights, by name, and the names of the model's modules."""
    return {
        node.name: node.input[1].removesuffix(".weight")
        for node in proto.graph.node
        if node.op_type in _LAYERS
    }


def _int8_nodes(proto: Any) -> set[str]:
    """Return the names of layers whose input and weights are int8 numbers."""
    int8: set[str] = set()  # the values that are, or were moved from where they are
    found = set()
    for node in proto.graph.node:  # in the order of computation
        if node.op_type == "DequantizeLinear" or (
            node.op_type in _MOVES and int8.issuperset(node.input[:1])
        ):
            int8.update(node.output)
        elif node.op_type in _LAYERS and int8.issuperset(node.input[:2]):
            found.add(node.name)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress NNCF's own lines and bars: this package shows the progress."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
