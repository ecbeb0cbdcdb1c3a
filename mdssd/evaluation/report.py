"""Writes an evaluation report as one HTML file, which needs no network and no scripts."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from mdssd.data import DetectionDataset
from mdssd.evaluation import charts
from mdssd.evaluation.examples import Subject, false_ones, misses, show
from mdssd.evaluation.result import EvalData, EvalResult
from mdssd.metrics.errors import KINDS
from mdssd.metrics.sizes import SIZES
from mdssd.system.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    title = f"Evaluation on {escape(result.dataset)}"
    with atomic_write(path) as file:
        file.write(
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
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
    line = (
        f"{result.images:,} images, {voc.objects.sum():,} objects, "
        f"{voc.detections.sum():,} detections"
    )
    if voc.difficult.any():
        line += f"; {voc.difficult.sum():,} difficult objects and crowds are not counted"
    body = "".join(
        f'<div class="tile"><b>{_digits(value)}</b><span>{name}</span></div>'
        for name, value in tiles
    )
    return f'<p>{line}</p>\n<div class="tiles">{body}</div>'


def _by_class(result: EvalResult) -> str:
    voc, coco = result.voc07, result.coco
    heads = ["class", "objects", "detections", "VOC07 AP", "VOC12 AP"]
    heads += ["COCO AP", "COCO AP50"] if coco else []
    columns = [voc.ap, result.voc12.ap, *((coco.ap, coco.ap50) if coco else ())]
    means = [voc.mean_ap, result.voc12.mean_ap]
    means += [coco.figures["AP"], coco.figures["AP50"]] if coco else []
    rows = [
        [name, f"{voc.objects[k]:,}", f"{voc.detections[k]:,}", *(_digits(c[k]) for c in columns)]
        for k, name in enumerate(result.classes)
    ]
    total = ["mean", f"{voc.objects.sum():,}", f"{voc.detections.sum():,}", *map(_digits, means)]
    note = (
        "<p>VOC07 AP is the mean of the precision at 11 recalls. VOC12 AP is the area under the "
        "whole precision-recall curve. Both match at IoU 0.5 and compute a width as x2 - x1 + 1. "
        "COCO AP is the mean over ten IoU thresholds, and COCO AP50 is the AP at IoU 0.5. A class "
        "without objects has no AP (–) and is left out of the mean.</p>"
    )
    return "<h2>Average precision</h2>" + note + _table(heads, rows, total)


def _coco(result: EvalResult) -> str:
    if result.coco is None:
        return "<h2>COCO</h2><p>These figures need pycocotools, which is not installed.</p>"
    figures = result.coco.figures
    rows = [[text, _digits(figures[name])] for text, name in _COCO_ROWS]
    return "<h2>COCO’s twelve figures</h2>" + _table(["", ""], rows)


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
    chart = _chart(
        lambda theme: charts.size_chart(sizes, result.classes, theme),
        "normalised average precision by class and size of the objects",
    )
    normal = [
        [
            name,
            *(f"{_digits(v)} ({n:,})" for v, n in zip(values, objects, strict=True)),
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
        [name, *map(_digits, values)]
        for name, values in zip(result.classes, sizes.ap.tolist(), strict=True)
    ]
    means = [["mean", *map(_digits, m.tolist())] for m in (sizes.mean_normalized_ap, sizes.mean_ap)]
    return (
        "<h2>Size of the objects</h2>"
        + text
        + chart
        + "<p>This table shows the normalised AP, with the number of objects in brackets. The last "
        "column is the greatest area of an XS, S, M and L object in square pixels.</p>"
        + _table(["class", *SIZES, "area up to"], normal, [*means[0], ""])
        + "<p>This table shows the AP without normalisation.</p>"
        + _table(["class", *SIZES], plain, means[1])
    )


def _curves(result: EvalResult) -> str:
    chart = _chart(
        lambda theme: charts.curve_chart(result.voc12, result.classes, theme),
        "precision over recall for each class",
    )
    note = "<p>A title shows the VOC12 AP: the area under the thick line at IoU 0.5.</p>"
    return "<h2>Precision and recall</h2>" + note + chart


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
            f'<tr><th>{escape(name)}</th><td class="wide"><div class="bar">{bars}</div></td>'
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
    matrix = result.confusion
    most = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    heads = "".join(f"<th>{escape(name)}</th>" for name in ("no detection", *result.classes))
    rows = []
    for k, name in enumerate(("no object", *result.classes)):
        cells = "".join(
            f'<td style="--share:{n / int(most[k, 0]):.3f}" class="cell">{n or ""}</td>'
            for n in matrix[k].tolist()
        )
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    text = (
        f"<p>Detections with a score of at least {result.score_threshold:g} are matched at IoU "
        "0.5. A row is the class of an object, and a column is the class of its detection. The "
        "colour shows the cell's share of its row.</p>"
    )
    return (
        f'<h2>Confusion</h2>{text}<div class="scroll"><table class="confusion"><thead><tr>'
        f"<th></th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


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
            f'<figure><img src="{_data_uri("image/jpeg", jpeg)}" alt="{escape(subject.caption)}">'
            f"<figcaption><b>{escape(subject.caption)}</b><br>{escape(subject.details)}<br>"
            f"<small>{escape(dataset.image_ids[subject.image])}</small></figcaption></figure>"
        )
    return f'<h2>{title}</h2><p>{text}</p><div class="gallery">{"".join(cards)}</div>'


def _speed(result: EvalResult) -> str:
    if not result.seconds:
        return ""
    rows = [
        [stage.replace("_", " "), f"{1000 * seconds / result.images:.1f} ms"]
        for stage, seconds in result.seconds.items()
    ]
    speed = f"The evaluation processed {result.images_per_second:.1f} images per second."
    return f"<h2>Time per image</h2><p>{speed}</p>" + _table(["stage", "time"], rows)


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str] | None = None
) -> str:
    """Return an HTML table of escaped text. The first column holds the row headings."""

    def line(cells: Sequence[str]) -> str:
        rest = "".join(f"<td>{escape(cell)}</td>" for cell in cells[1:])
        return f"<tr><th>{escape(cells[0])}</th>{rest}</tr>"

    head = "".join(f"<th>{escape(name)}</th>" for name in heads) if any(heads) else ""
    foot = f"<tfoot>{line(total)}</tfoot>" if total else ""
    body = "".join(line(row) for row in rows)
    return (
        f'<div class="scroll"><table>{f"<thead><tr>{head}</tr></thead>" if head else ""}'
        f"<tbody>{body}</tbody>{foot}</table></div>"
    )


def _chart(draw: Callable[[charts.Theme], Figure], text: str) -> str:
    """Return a chart for light and for dark pages. The browser shows the one that fits."""
    light, dark = (
        _data_uri("image/svg+xml", charts.svg(draw(theme))) for theme in (charts.LIGHT, charts.DARK)
    )
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img class="chart" src="{light}" alt="{text}"></picture>'
    )


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _digits(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


_CSS = """
:root { --paper: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d5d9de; --box: #f4f6f8;
  --accent: 11, 98, 184; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16191d; --ink: #e4e7ea; --soft: #9aa4af; --line: #3a4048; --box: #1f2429;
    --accent: 47, 127, 208; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .4rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
p { margin: .3rem 0 .8rem; max-width: 78ch; color: var(--soft); }
.tiles { display: flex; flex-wrap: wrap; gap: .7rem; }
.tile { background: var(--box); border-radius: 8px; padding: .6rem 1rem; min-width: 8.5rem; }
.tile b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; }
table { margin-bottom: .8rem; border-collapse: collapse; font-variant-numeric: tabular-nums;
  font-size: .9rem; }
th, td { padding: .28rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child { text-align: left; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 500; }
tfoot th, tfoot td { font-weight: 700; border-bottom: 0; }
.chart { max-width: 100%; height: auto; display: block; margin: .4rem 0 1rem; }
.wide { min-width: 22rem; }
.bar { display: flex; height: 1.1rem; border-radius: 3px; overflow: hidden;
  background: var(--box); }
.bar i { display: block; height: 100%; }
.k0 { background: #2e9e6b; } .k1 { background: #e8a33d; } .k2 { background: #c2410c; }
.k3 { background: #8250c4; } .k4 { background: #7d8894; }
.key { display: inline-block; color: #fff; border-radius: 4px; padding: .1rem .6rem;
  margin-right: .4rem; font-size: .85rem; }
.key.k1 { color: #1f2328; }
.confusion td { min-width: 3.2rem; text-align: center; }
.cell { background: rgba(var(--accent), calc(var(--share) * .75)); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr));
  gap: 1rem; }
figure { margin: 0; background: var(--box); border-radius: 8px; overflow: hidden; }
figure img { display: block; width: 100%; height: auto; }
figcaption { padding: .5rem .8rem .7rem; font-size: .88rem; overflow-wrap: anywhere; }
small { color: var(--soft); }
"""
