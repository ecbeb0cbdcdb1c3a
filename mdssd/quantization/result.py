"""The comparison of a network before and after quantisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdssd.evaluation.result import EvalResult, figure_text
from mdssd.metrics.sizes import SIZES
from mdssd.system.files import format_bytes
from mdssd.system.text import plural, printable

# Columns of the table, and the names of COCO's figures in them.
_COCO = {
    "AP": "AP",
    "AP50": "AP50",
    "small": "AP_small",
    "medium": "AP_medium",
    "large": "AP_large",
}


@dataclass(frozen=True)
class NetworkFacts:
    """One side of the comparison.

    Attributes:
        result: its figures on the validation images.
        size: bytes of its file.
        seconds: from an image in memory to its boxes in OpenVINO, the median of the rounds.
    """

    result: EvalResult
    size: int
    seconds: float

    @property
    def ap(self) -> float:
        """COCO AP, the mean over IoU 0.50 to 0.95 and the classes."""
        assert self.result.coco is not None
        return float(self.result.coco.figures["AP"])


@dataclass(frozen=True)
class QuantizeResult:
    """What `quantize` has made.

    Attributes:
        path: the JSON of the new checkpoint.
        before, after: the network in float32 and in int8.
        int8_layers, float_layers: the names of the layers with weights that compute in int8, and
            of those that compute in float32 to keep the accuracy.
        max_drop: the most AP that could be lost.
        calibration_images: how many inputs set the ranges of the numbers.
    """

    path: Path
    before: NetworkFacts
    after: NetworkFacts
    int8_layers: list[str]
    float_layers: list[str]
    max_drop: float
    calibration_images: int

    @property
    def drop(self) -> float:
        """COCO AP before minus after; negative if it rose."""
        return self.before.ap - self.after.ap

    def table(self) -> str:
        """Return the comparison as text."""
        result = self.after.result
        sides = {"float32": self.before, "int8": self.after}
        rows = [["", *_COCO, "file", "latency"]]
        for name, side in sides.items():
            assert side.result.coco is not None
            figures = [figure_text(side.result.coco.figures[key]) for key in _COCO.values()]
            facts = [format_bytes(side.size), f"{1000 * side.seconds:.1f} ms"]
            rows.append([name, *figures, *facts])
        sizes = [["", *SIZES]] + [
            [name, *map(figure_text, side.result.sizes.mean_ap.tolist())]
            for name, side in sides.items()
        ]
        layers = f"{plural(len(self.int8_layers), 'layer')} in int8, "
        layers += f"{len(self.float_layers)} in float32"
        if self.float_layers:
            layers += f": {', '.join(self.float_layers)}"
        lines = [
            f"{result.dataset}: {plural(result.images, 'image')}, "
            f"{plural(result.voc07.objects.sum(), 'object')}; COCO AP, by size of the object",
            *_aligned(rows),
            "",
            "AP at IoU 0.5 by size within the class, from the smallest tenth (XS) to the largest",
            *_aligned(sizes),
            "",
            layers,
            f"COCO AP {'lost' if self.drop >= 0 else 'gained'}: {abs(self.drop):.4f}, a loss of at "
            f"most {self.max_drop:g} was allowed; "
            f"{self.before.seconds / self.after.seconds:.2f} times as fast, "
            f"{self.before.size / self.after.size:.2f} times smaller",
        ]
        if self.drop > self.max_drop:
            lines.append(
                "More is lost than was allowed, because the layers were chosen before the last "
                "rounding of their weights. A smaller max_drop keeps more layers in float32."
            )
        return "\n".join(map(printable, lines))

    def to_dict(self) -> dict[str, Any]:
        """Return the facts that the checkpoint's JSON keeps, as JSON can hold them."""
        return {
            "max_drop": self.max_drop,
            "calibration_images": self.calibration_images,
            "data": self.after.result.dataset,
            "AP_before": self.before.ap,
            "AP_after": self.after.ap,
            "float_layers": self.float_layers,
        }


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
