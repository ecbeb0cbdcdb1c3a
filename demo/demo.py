"""Detect small shapes in generated scenes with the checkpoint beside this file (`make demo`).

Prints how many objects were found and the time per image, and writes a picture of each scene.
`--verbose` also prints every object, and the time of each stage with the reference and the C++
operators. The checkpoint was trained by `make demo-checkpoint` on other scenes of the same
generator.
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
# An object is small if the longer side of its box has at most so many pixels.
SMALL = 16


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Detect small shapes in generated scenes.")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="picture folder")
    parser.add_argument("--scenes", type=int, default=4, help="number of scenes (default 4)")
    parser.add_argument("--score-threshold", type=float, default=0.5)
    parser.add_argument(
        "--verbose", action="store_true", help="print every object and the time of each stage"
    )
    options = parser.parse_args(arguments)
    keep_memory()
    options.out.mkdir(parents=True, exist_ok=True)
    detector = Detector.from_checkpoint(
        CHECKPOINT, device="cpu", score_threshold=0.01, batch_size=1
    )
    scenes = open_dataset(None, "test", count=options.scenes)
    samples = [scenes[index] for index in range(len(scenes))]

    results = []
    for sample in samples:
        found = above(detector(sample.image)[0], options.score_threshold)
        results.append((sample, found, match(sample, found)))
        write_picture(options.out / f"{sample.image_id}.png", sample, found, detector.classes)
    print_summary(results, options.score_threshold)
    times = time_stages(detector, samples, "cpp")
    print(f"{sum(times.values()):.0f} ms per image on {torch.get_num_threads()} CPU threads")
    print(f"pictures, with the ground truth dashed: {options.out.resolve()}")
    if options.verbose:
        for sample, found, matches in results:
            print_scene(sample, found, matches, detector.classes)
        print_times(detector, samples)
    else:
        print("--verbose prints every object and the time of each stage")
    return 0


def print_summary(
    results: list[tuple[Sample, dict[str, Any], list[int | None]]], threshold: float
) -> None:
    """Print how many objects, and how many small ones, were found."""
    sides = [
        float(max(x2 - x1, y2 - y1))
        for sample, _, _ in results
        for x1, y1, x2, y2 in sample.boxes_xyxy
    ]
    hit = [k is not None for _, _, matches in results for k in matches]
    small = [was_hit for was_hit, side in zip(hit, sides, strict=True) if side <= SMALL]
    false = sum(len(found["scores"]) for _, found, _ in results) - sum(hit)
    print(
        f"found {sum(hit)} of {len(hit)} objects, {sum(small)} of the {len(small)} that have "
        f"{SMALL} pixels or less; {false} false alarms "
        f"(score of {threshold:g} or more, IoU of 0.5 or more)"
    )


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


def time_stages(detector: Detector, samples: list[Sample], backend: str) -> dict[str, float]:
    """Return the milliseconds per image of each stage, from the encoded bytes of each scene."""
    files = [encode_image(sample.image) for sample in samples]
    with ops.backend(backend):
        detector(files[:1])  # the first call does work that later calls reuse
        detector.reset_timings()
        for _ in range(ROUNDS):
            detector(files)
    return {stage: 1000 * s / (ROUNDS * len(files)) for stage, s in detector.timings.items()}


def print_times(detector: Detector, samples: list[Sample]) -> None:
    """Print the time per image of each stage, with each backend of the operators."""
    print("\nTime per image in ms, batch 1")
    for number, backend in enumerate(BACKENDS):
        times = time_stages(detector, samples, backend)
        if number == 0:
            print(f"  {'':10}" + "".join(f"{stage:>18}" for stage in times))
        print(f"  {backend:10}" + "".join(f"{value:18.2f}" for value in times.values()))


if __name__ == "__main__":
    sys.exit(main())
