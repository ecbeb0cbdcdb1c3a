"""The files that `detect` writes for each image: YOLO labels and GeoJSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mdssd.system.files import AtomicFiles, atomic_write


class ImageFiles:
    """A folder with a file for each image.

    Args:
        folder: the folder, which is created for the first image.
        suffix: the end of the files' names.
        stems: the names of the files without it, by the images'.
        compose: returns the text of a file, from the entry of its image.
        before: the text of files that are written before the first image's.
        files: writes the files. Its `flush` must be called at last.
        written: receives the folder once there is a file of an image.
    """

    def __init__(
        self,
        folder: Path,
        suffix: str,
        stems: Mapping[str, str],
        compose: Callable[[dict[str, Any]], str],
        before: Mapping[Path, str],
        files: AtomicFiles,
        written: list[Path],
    ) -> None:
        self.folder = folder
        self._suffix = suffix
        self._stems = stems
        self._compose = compose
        self._before = before
        self._writer = files
        self._written = written
        self._files = 0
        self._last = folder

    def add(self, image: dict[str, Any]) -> None:
        """Write the file of an image."""
        if not self._files:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path, text in self._before.items():
                with atomic_write(path) as file:
                    file.write(text)
        self._last = self.folder / (self._stems[image["file"]] + self._suffix)
        self._last.parent.mkdir(parents=True, exist_ok=True)
        self._writer.write(self._last, self._compose(image).encode())
        self._files += 1
        if self._files == 1:
            self._written.append(self.folder)

    def undo(self) -> None:
        """Remove the file of the last image that was added."""
        self._writer.remove(self._last)
        self._files -= 1
        if not self._files:
            self._written.remove(self.folder)


def yolo_description(classes: Sequence[str]) -> str:
    """Return a data.yaml for YOLO labels of the images in the folder images beside it.

    Example:
        >>> from mdssd.detection.image_files import yolo_description
        >>> print(yolo_description(["car", "bus"]), end="")
        # Ultralytics trains with this file once it names a split val, too.
        train: images
        names:
          0: car
          1: bus
    """
    content = {"train": "images", "names": dict(enumerate(classes))}
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=10**6)
    return f"# Ultralytics trains with this file once it names a split val, too.\n{text}"


def yolo_text(image: dict[str, Any], *, scores: bool) -> str:
    """Return the YOLO labels of an image, with a line for each detection.

    Args:
        image: the entry of the image.
        scores: whether a line ends with the score.

    Returns:
        Lines "class cx cy w h" or "class cx cy w h score": the class from 0, the centre and the
        size of the box as fractions of the image's.

    Example:
        >>> from mdssd.detection.image_files import yolo_text
        >>> found = {"label": 3, "score": 0.5, "box_xyxy": [10, 20, 30, 60]}
        >>> yolo_text({"width": 100, "height": 200, "detections": [found]}, scores=False)
        '2 0.20000000 0.20000000 0.20000000 0.20000000\\n'
    """
    width, height = image["width"], image["height"]
    lines = []
    for found in image["detections"]:
        x1, y1, x2, y2 = found["box_xyxy"]
        box = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        numbers = [str(found["label"] - 1), *(f"{value:.8f}" for value in box)]
        lines.append(" ".join(numbers + [str(found["score"])] * scores) + "\n")
    return "".join(lines)


def geojson_text(
    image: dict[str, Any], place: Callable[[Any], list[list[float]]] | None = None
) -> str:
    """Return the detections in an image as GeoJSON: a polygon for each, in pixels, y downwards.

    Args:
        image: the entry of the image.
        place: what `map_coordinates` returns of the image. Polygons are then in longitudes and
            latitudes, counterclockwise as RFC 7946 asks, and "box_xyxy" in the properties has the
            pixels.

    Example:
        >>> import json
        >>> from mdssd.detection.image_files import geojson_text
        >>> found = {"class": "cell", "label": 1, "score": 0.5, "box_xyxy": [10, 20, 30, 60]}
        >>> image = {"file": "a.jpg", "width": 100, "height": 200, "detections": [found]}
        >>> json.loads(geojson_text(image))["features"][0]["geometry"]["coordinates"]
        [[[10, 20], [30, 20], [30, 60], [10, 60], [10, 20]]]
    """
    features = []
    boxes = [found["box_xyxy"] for found in image["detections"]]
    rings = [[[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]] for x1, y1, x2, y2 in boxes]
    if place is not None and rings:
        placed = iter(place([point for ring in rings for point in ring]))
        rings = [_counterclockwise([next(placed) for _ in ring]) for ring in rings]
    for found, ring in zip(image["detections"], rings, strict=True):
        properties = {
            "objectType": "annotation",  # QuPath reads this, the classification and measurements
            "classification": {"name": found["class"]},
            "measurements": {"score": found["score"]},
            "file": image["file"],
            "class": found["class"],
            "label": found["label"],
            "score": found["score"],
        }
        if place is not None:
            properties["box_xyxy"] = found["box_xyxy"]
        feature = {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": properties,
        }
        features.append("  " + json.dumps(feature))
    about = {name: image[name] for name in ("file", "width", "height")}
    head = json.dumps({"type": "FeatureCollection", "image": about})
    rows = "\n" + ",\n".join(features) + "\n" if features else ""
    return f'{head[:-1]}, "features": [{rows}]}}\n'


def _counterclockwise(ring: list[list[float]]) -> list[list[float]]:
    area = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, ring[1:], strict=False))
    return ring if area > 0 else ring[::-1]
