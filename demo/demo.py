"""Detect small shapes in generated scenes with the checkpoint beside this file (`make demo`).

Prints the detections next to the ground truth, and the time of each stage with the reference and
the C++ operators. Writes a picture of each scene. The checkpoint was trained by `make
demo-checkpoint` on other scenes of the same generator.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from mdssd import Detector, ops
from mdssd.data import Sample, open_dataset
from mdssd.drawing import draw_detections, encode_image, write_image
from mdssd.system.memory import keep_memory

CHECKPOINT = Path(__file__).with_name("mdssd300-shapes.json")
BACKENDS = ("reference", "cpp")
ROUNDS = 5


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Detect small shapes in generated scenes.")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="picture folder")
    parser.add_argument("--scenes", type=int, default=4, help="number of scenes (default 4)")
    parser.add_argument("--score-threshold", type=float, default=0.5)
    options = parser.parse_args(arguments)
    keep_memory()
    options.out.mkdir(parents=True, exist_ok=True)
    detector = Detector.from_checkpoint(CHECKPOINT, score_threshold=0.01, batch_size=1)
    scenes = open_dataset(None, "test", count=options.scenes)

    found_objects = objects = false_alarms = 0
    pictures = []
    for index in range(len(scenes)):
        sample = scenes[index]
        found = above(detector(sample.image)[0], options.score_threshold)
        matches = match(sample, found)
        print_scene(sample, found, matches, detector.classes)
        found_objects += sum(match is not None for match in matches)
        objects += len(matches)
        false_alarms += len(found["scores"]) - sum(match is not None for match in matches)
        picture = options.out / f"{sample.image_id}.png"
        write_picture(picture, sample, found, detector.classes)
        pictures.append(picture)
    print(
        f"\n{found_objects} of {objects} objects found, {false_alarms} false alarms "
        f"(score of {options.score_threshold} or more, IoU of 0.5 or more)\n"
    )
    print_times(detector, [scenes[i] for i in range(len(scenes))])
    print("\nPictures (dashed white boxes are the ground truth):")
    for picture in pictures:
        print(f"  {picture.resolve()}")
    return 0


def above(found: dict[str, Any], threshold: float) -> dict[str, Any]:
    """Return the detections whose score is at least the threshold."""
    kept = found["scores"] >= threshold
    return {name: values[kept] for name, values in found.items()}


def match(sample: Sample, found: dict[str, Any]) -> list[int | None]:
    """Return for each object the best detection of its class with an IoU of 0.5 or more."""
    iou = ops.box_iou(torch.from_numpy(sample.boxes_xyxy), found["boxes"])
    same_class = torch.from_numpy(sample.labels)[:, None] == found["labels"]
    taken: set[int] = set()
    matches: list[int | None] = []
    for row in (iou >= 0.5) & same_class:
        # Detections are sorted by falling score.
        hits = [k for k in row.nonzero()[:, 0].tolist() if k not in taken]
        matches.append(hits[0] if hits else None)
        taken.update(hits[:1])
    return matches


def print_scene(
    sample: Sample, found: dict[str, Any], matches: list[int | None], classes: list[str]
) -> None:
    print(f"\n{sample.image_id}")
    print(f"  {'object':10} {'ground truth':>24}   {'detected':>24}  score")
    for box, label, k in zip(sample.boxes_xyxy, sample.labels, matches, strict=True):
        detected, score = (
            ("missed", "")
            if k is None
            else (corners(found["boxes"][k]), f"{found['scores'][k]:.2f}")
        )
        print(f"  {classes[label - 1]:10} {corners(box):>24}   {detected:>24}  {score}")
    for k in sorted(set(range(len(found["scores"]))) - set(matches)):
        name = classes[found["labels"][k] - 1]
        score = f"{found['scores'][k]:.2f}"
        print(f"  {name:10} {'none':>24}   {corners(found['boxes'][k]):>24}  {score}")


def corners(box: Any) -> str:
    return " ".join(f"{value:5.1f}" for value in box)


def write_picture(path: Path, sample: Sample, found: dict[str, Any], classes: list[str]) -> None:
    picture = draw_detections(
        sample.image, found["boxes"], found["labels"], found["scores"], classes, sample.boxes_xyxy
    )
    write_image(picture, path)


def print_times(detector: Detector, samples: list[Sample]) -> None:
    """Print the time per image and stage, starting from the encoded bytes of each scene."""
    files = [encode_image(sample.image) for sample in samples]
    print(f"Time per image in ms, {torch.get_num_threads()} threads, batch 1")
    for number, backend in enumerate(BACKENDS):
        with ops.backend(backend):
            detector(files[:1])  # the first call does work that later calls reuse
            detector.reset_timings()
            for _ in range(ROUNDS):
                detector(files)
        if number == 0:
            print(f"  {'':10}" + "".join(f"{stage:>18}" for stage in detector.timings))
        per_image = [1000 * s / (ROUNDS * len(files)) for s in detector.timings.values()]
        print(f"  {backend:10}" + "".join(f"{value:18.2f}" for value in per_image))


if __name__ == "__main__":
    sys.exit(main())
