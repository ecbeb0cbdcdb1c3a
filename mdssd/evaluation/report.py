"""Writes an evaluation report as one HTML file, which needs no network and no scripts."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mdssd.data import DetectionDataset
from mdssd.evaluation import charts
from mdssd.evaluation.about import about_rows
from mdssd.evaluation.examples import Subject, false_ones, misses, show
from mdssd.evaluation.page import CSS, chart, data_uri, digits, escaped, facts, table
from mdssd.evaluation.result import EvalData, EvalResult
from mdssd.metrics.errors import KINDS
from mdssd.metrics.sizes import SIZES
from mdssd.system.files import atomic_write

_COCO_ROWS = (
    ("AP, mean over IoU 0.50 to 0.95", "AP"),
    ("AP at IoU 0.50", "AP50"),
    ("AP at IoU 0.75", "AP75"),
    ("AP, small objects: area below 32² pixels", "AP_small"),
    ("AP, medium objects: 32² to 96² pixels", "AP_medium"),
    ("AP, large objects: above 96² pixels", "AP_large"),
    ("AR with 1 detection per image and class", "AR1"),
    ("AR with 10 detections", "AR10"),
    ("AR with 100 detections", "AR100"),
    ("AR, small objects", "AR_small"),
    ("AR, medium objects", "AR_medium"),
    ("AR, large objects", "AR_large"),
)
# Charts draw this many classes; a chart of a thousand would take minutes and tens of megabytes.
_MOST_CHARTS = 20
# The confusion matrix has this many classes; its size grows with the square of their number.
_MOST_CONFUSED = 30


def write_report(
    path: str | os.PathLike[str],
    result: EvalResult,
    data: EvalData,
    dataset: DetectionDataset,
    *,
    pictures: int = 12,
) -> None:
    """Write the figures, charts and pictures of an evaluation as one HTML file.

    Charts and pictures are embedded in the file, and names from the data are escaped. An existing
    file is replaced only when the new one is complete.

    Args:
        path: the file to write.
        result: the figures.
        data: the detections and the ground truth from which `result` was computed.
        dataset: the data set of `data`. The images of the pictures are read from it again.
        pictures: the largest number of missed objects to show, and of false positives.

    Raises:
        ValueError: `pictures` is negative.
        DataError: an image cannot be read.
        OSError: the file cannot be written.
    """
    if pictures < 0:
        raise ValueError(f"write_report: pictures: expected 0 or more, got {pictures}")
    missed = misses(data, result.classes, pictures, result.score_threshold)
    false = false_ones(data, result, pictures)
    sections = [
        _summary(result),
        _about(result),
        _by_class(result),
        _coco(result),
        _sizes(result),
        _curves(result),
        _errors(result),
        _confusion(result),
        _gallery(
            "Worst misses",
            "The first objects are those that no detection of their class matches at IoU 0.5, from "
            "the largest to the smallest. The others were found only with a score below "
            f"{result.score_threshold:g}, and the lowest score comes first. The classes take "
            "turns, and each image is shown at most once. "
            + _HOW_DRAWN.format(result.score_threshold),
            missed,
            data,
            dataset,
            result,
        ),
        _gallery(
            "Worst false positives",
            "These are the false detections with the highest scores. Each image is shown at most "
            "once. A captioned detection is drawn even if its score is lower. "
            + _HOW_DRAWN.format(result.score_threshold),
            false,
            data,
            dataset,
            result,
        ),
        _speed(result),
    ]
    title = f"Evaluation on {escaped(result.dataset)}"
    with atomic_write(path) as file:
        file.write(
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{title}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
            f"<h1>{title}</h1>\n"
        )
        for section in sections:
            file.write(section + "\n")
        file.write("</main>\n</body>\n</html>\n")


def _summary(result: EvalResult) -> str:
    voc = result.voc07
    tiles = [("VOC07 mAP", voc.mean_ap), ("VOC12 mAP", result.voc12.mean_ap)]
    if result.coco:
        figures = result.coco.figures
        tiles += [
            ("COCO AP", figures["AP"]),
            ("COCO AP50", figures["AP50"]),
            ("COCO AP small", figures["AP_small"]),
        ]
    tiles.append(("normalised AP, XS", float(result.sizes.mean_normalized_ap[0])))
    body = "".join(
        f'<div class="tile"><b>{digits(value)}</b><span>{name}</span></div>'
        for name, value in tiles
    )
    lines = "<br>".join(escaped(line) for line in result.summary())
    return f'<p>{lines}</p>\n<div class="tiles">{body}</div>'


def _about(result: EvalResult) -> str:
    rows = about_rows(result.about)
    if not rows:
        return ""
    return "<h2>What was measured</h2>" + facts(rows)


def _drawn(result: EvalResult, most: int) -> tuple[list[int], str]:
    """Return the positions of the classes with most objects, in order, and a note on the others."""
    objects = result.voc07.objects
    ranked = np.argsort(-objects, kind="stable")[:most]
    shown = sorted(int(k) for k in ranked if objects[k])
    others = int((objects > 0).sum()) - len(shown)
    if not others:
        return shown, ""
    return shown, (
        f"<p>These are the {len(shown)} classes with most objects. The other {others:,} classes "
        "that have objects are not drawn. The tables and evaluation.json have all classes.</p>"
    )


def _by_class(result: EvalResult) -> str:
    voc, coco = result.voc07, result.coco
    heads = ["class", "objects", "detections", "VOC07 AP", "VOC12 AP"]
    heads += ["COCO AP", "COCO AP50"] if coco else []
    columns = [voc.ap, result.voc12.ap, *((coco.ap, coco.ap50) if coco else ())]
    means = [voc.mean_ap, result.voc12.mean_ap]
    means += [coco.figures["AP"], coco.figures["AP50"]] if coco else []
    rows = [
        [name, f"{voc.objects[k]:,}", f"{voc.detections[k]:,}", *(digits(c[k]) for c in columns)]
        for k, name in enumerate(result.classes)
    ]
    total = ["mean", f"{voc.objects.sum():,}", f"{voc.detections.sum():,}", *map(digits, means)]
    note = (
        "<p>VOC07 AP is the mean of the precision at 11 recalls. VOC12 AP is the area under the "
        "whole precision-recall curve. Both match at IoU 0.5 and compute a width as x2 - x1 + 1. "
        "COCO AP is the mean over ten IoU thresholds, and COCO AP50 is the AP at IoU 0.5. A class "
        "without objects has no AP (–) and is left out of the mean.</p>"
    )
    return "<h2>Average precision</h2>" + note + table(heads, rows, total)


def _coco(result: EvalResult) -> str:
    if result.coco is None:
        return "<h2>COCO</h2><p>These figures need pycocotools, which is not installed.</p>"
    figures = result.coco.figures
    rows = [[text, digits(figures[name])] for text, name in _COCO_ROWS]
    return "<h2>COCO’s twelve figures</h2>" + table(["", ""], rows)


def _sizes(result: EvalResult) -> str:
    sizes = result.sizes
    text = (
        "<p>The objects of each class are ranked by the area of their boxes. XS are the smallest "
        "10%, S the next 20%, M the next 40%, L the next 20%, and XL the largest 10% (Hoiem et "
        "al.). The AP of a size ignores true detections of other sizes, and counts every false "
        "detection. The normalised AP computes the precision as if every class and size had "
        f"{sizes.normal_objects:g} objects, so that they can be compared. The dashed line is the "
        "normalised AP of all sizes together.</p>"
    )
    shown, note = _drawn(result, _MOST_CHARTS)
    drawing = note + chart(
        lambda theme: charts.size_chart(sizes, result.classes, theme, shown),
        "normalised average precision by class and size of the objects",
    )
    normal = [
        [
            name,
            *(f"{digits(v)} ({n:,})" for v, n in zip(values, objects, strict=True)),
            ", ".join(f"{a:,.0f}" if math.isfinite(a) else "–" for a in limits),
        ]
        for name, values, objects, limits in zip(
            result.classes,
            sizes.normalized_ap.tolist(),
            sizes.objects.tolist(),
            sizes.limits.tolist(),
            strict=True,
        )
    ]
    plain = [
        [name, *map(digits, values)]
        for name, values in zip(result.classes, sizes.ap.tolist(), strict=True)
    ]
    means = [["mean", *map(digits, m.tolist())] for m in (sizes.mean_normalized_ap, sizes.mean_ap)]
    return (
        "<h2>Size of the objects</h2>"
        + text
        + drawing
        + "<p>This table shows the normalised AP, with the number of objects in brackets. The last "
        "column is the greatest area of an XS, S, M and L object in square pixels.</p>"
        + table(["class", *SIZES, "area up to"], normal, [*means[0], ""])
        + "<p>This table shows the AP without normalisation.</p>"
        + table(["class", *SIZES], plain, means[1])
    )


def _curves(result: EvalResult) -> str:
    shown, others = _drawn(result, _MOST_CHARTS)
    drawing = others + chart(
        lambda theme: charts.curve_chart(result.voc12, result.classes, theme, shown),
        "precision over recall for each class",
    )
    note = "<p>A title shows the VOC12 AP: the area under the thick line at IoU 0.5.</p>"
    return "<h2>Precision and recall</h2>" + note + drawing


def _errors(result: EvalResult) -> str:
    counts = result.errors.counts()
    names = ("true", *KINDS)
    legend = "".join(f'<span class="key k{i}">{name}</span>' for i, name in enumerate(names))
    rows = []
    for name, row in zip(result.classes, counts.tolist(), strict=True):
        total = sum(row)
        bars = "".join(
            f'<i class="k{i}" style="width:{100 * n / total:.2f}%"></i>'
            for i, n in enumerate(row)
            if n
        )
        cells = "".join(f"<td>{n:,}</td>" for n in row)
        rows.append(
            f'<tr><th>{escaped(name)}</th><td class="wide"><div class="bar">{bars}</div></td>'
            f"{cells}</tr>"
        )
    heads = "".join(f"<th>{name}</th>" for name in ("class", "", *names))
    text = (
        "<p>For a class with N objects, the N detections with the highest scores are counted. A "
        "localisation error has an IoU of 0.1 to 0.5 with an object of its class, or repeats an "
        "object that was already found. If a false detection has an IoU of at least 0.1 with an "
        "object of another class only, its kind is similar or other, depending on whether that "
        "class is similar to its own. All others are background.</p>"
    )
    return (
        f"<h2>Kinds of false positives</h2>{text}<p>{legend}</p>"
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _confusion(result: EvalResult) -> str:
    matrix, names, note = _largest_classes(result)
    most = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    heads = "".join(f"<th>{escaped(name)}</th>" for name in ("no detection", *names))
    rows = []
    for k, name in enumerate(("no object", *names)):
        cells = "".join(
            f'<td style="--share:{n / int(most[k, 0]):.3f}" class="cell">{n or ""}</td>'
            for n in matrix[k].tolist()
        )
        rows.append(f"<tr><th>{escaped(name)}</th>{cells}</tr>")
    text = (
        f"<p>Detections with a score of at least {result.score_threshold:g} are matched at IoU "
        "0.5. A row is the class of an object, and a column is the class of its detection. The "
        f"colour shows the cell's share of its row.{note}</p>"
    )
    return (
        f'<h2>Confusion</h2>{text}<div class="scroll"><table class="confusion"><thead><tr>'
        f"<th></th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _largest_classes(result: EvalResult) -> tuple[NDArray[np.int64], list[str], str]:
    """Return the confusion matrix with at most `_MOST_CONFUSED` classes; the last joins the others.

    Also returns the names of its classes, and a note if some are joined.
    """
    matrix, classes = result.confusion, list(result.classes)
    if len(classes) <= _MOST_CONFUSED:
        return matrix, classes, ""
    chosen = np.sort(np.argsort(-result.voc07.objects, kind="stable")[: _MOST_CONFUSED - 1]) + 1
    place = np.full(len(matrix), _MOST_CONFUSED)  # the row and the column of the other classes
    place[0], place[chosen] = 0, np.arange(1, _MOST_CONFUSED)
    joined = np.zeros((_MOST_CONFUSED + 1, _MOST_CONFUSED + 1), np.int64)
    np.add.at(joined, (place[:, None], place[None, :]), matrix)
    others = len(classes) - len(chosen)
    note = (
        f" The {others:,} classes with fewest objects are joined in the last row and column. Their "
        "common cell also counts those that are detected as another of these classes."
    )
    return joined, [*(classes[k - 1] for k in chosen), f"{others:,} other classes"], note


_HOW_DRAWN = (
    "Solid boxes are detections with a score of at least {0:g}. Dashed boxes are the ground truth. "
    "The surroundings of the captioned box are darkened."
)


def _gallery(
    title: str,
    text: str,
    subjects: Sequence[Subject],
    data: EvalData,
    dataset: DetectionDataset,
    result: EvalResult,
) -> str:
    if not subjects:
        return f"<h2>{title}</h2><p>None.</p>"
    cards = []
    for subject in subjects:
        jpeg = show(subject, data, dataset, result.classes, result.score_threshold)
        cards.append(
            f'<figure><img src="{data_uri("image/jpeg", jpeg)}" alt="{escaped(subject.caption)}">'
            f"<figcaption><b>{escaped(subject.caption)}</b><br>{escaped(subject.details)}<br>"
            f"<small>{escaped(dataset.image_ids[subject.image])}</small></figcaption></figure>"
        )
    return f'<h2>{title}</h2><p>{text}</p><div class="gallery">{"".join(cards)}</div>'


def _speed(result: EvalResult) -> str:
    if not result.seconds:
        return ""
    rows = [
        [stage.replace("_", " "), f"{1000 * seconds / max(result.images, 1):.1f} ms"]
        for stage, seconds in result.seconds.items()
    ]
    speed = f"The evaluation processed {result.images_per_second:.1f} images per second."
    return f"<h2>Time per image</h2><p>{speed}</p>" + table(["stage", "time"], rows)
