"""Writes an evaluation as one HTML file, for any browser, without a network or scripts."""

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
    ("AP, IoU 0.50 to 0.95", "AP"),
    ("AP at IoU 0.50", "AP50"),
    ("AP at IoU 0.75", "AP75"),
    ("AP, small: area below 32² pixels", "AP_small"),
    ("AP, medium: below 96²", "AP_medium"),
    ("AP, large", "AP_large"),
    ("AR with 1 detection per image and class", "AR1"),
    ("AR with 10", "AR10"),
    ("AR with 100", "AR100"),
    ("AR, small", "AR_small"),
    ("AR, medium", "AR_medium"),
    ("AR, large", "AR_large"),
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

    Charts and pictures are inside the file, and names from the data are escaped. `path` is
    replaced at once or not at all.

    Args:
        path: the file to write.
        result: the figures.
        data, dataset: the detections and the data set that the figures were computed from.
        pictures: the number of worst misses, and of worst false positives, to show. Their images
            are read from the data set again.

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
            "Objects that no detection of their class found at IoU 0.5, the largest first; then "
            "objects that were found with a low score only, the lowest first. The classes take "
            "turns, and each image is shown once. " + _HOW_DRAWN.format(result.score_threshold),
            missed,
            data,
            dataset,
            result,
        ),
        _gallery(
            "Worst false positives",
            "The false detections with the highest scores. Each image is shown once. "
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
        "<p>VOC07 AP is the mean precision at 11 recalls, VOC12 AP the area under the whole curve, "
        "both at IoU 0.5 and with both edge pixels counted in a width. COCO AP is COCO's own. A "
        "class without objects (–) is left out of the mean.</p>"
    )
    return "<h2>Average precision</h2>" + note + _table(heads, rows, total)


def _coco(result: EvalResult) -> str:
    if result.coco is None:
        return "<h2>COCO</h2><p>COCO's figures are left out: pycocotools is not installed.</p>"
    figures = result.coco.figures
    rows = [[text, _digits(figures[name])] for text, name in _COCO_ROWS]
    return "<h2>COCO’s twelve figures</h2>" + _table(["", ""], rows)


def _sizes(result: EvalResult) -> str:
    sizes = result.sizes
    text = (
        "<p>The objects of each class are ranked by the area of their boxes: XS are the smallest "
        "10%, S the next 20%, M 40%, L 20%, XL the largest 10% (Hoiem et al.). For each size, true "
        "detections of other sizes are left out, and every false detection counts. Precision is "
        f"normalised to {sizes.normal_objects:g} objects, so that sizes and classes can be "
        "compared. The dashed line is the AP of all sizes.</p>"
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
        + "<p>Normalised AP with the number of objects, and the greatest area of XS, S, M and L in "
        "square pixels:</p>"
        + _table(["class", *SIZES, "area up to"], normal, [*means[0], ""])
        + "<p>AP without normalisation:</p>"
        + _table(["class", *SIZES], plain, means[1])
    )


def _curves(result: EvalResult) -> str:
    chart = _chart(
        lambda theme: charts.curve_chart(result.voc12, result.classes, theme),
        "precision over recall for each class",
    )
    note = "<p>At IoU 0.5. VOC12 AP, in each title, is the area under the thick line.</p>"
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
        "<p>Each class has N objects; these are its N best-scored detections. Localisation: the "
        "IoU with an object of the class is 0.1 to 0.5, or the object was found already. Similar "
        "and other: the IoU with an object of another class, similar or not, is at least 0.1. "
        "Background: all others.</p>"
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
        f"<p>Detections with a score of at least {result.score_threshold:g}, matched at IoU 0.5. A "
        "row is the class of an object, a column the class of its detection. The colour shows the "
        "share of the row.</p>"
    )
    return (
        f'<h2>Confusion</h2>{text}<div class="scroll"><table class="confusion"><thead><tr>'
        f"<th></th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


_HOW_DRAWN = (
    "Solid boxes are detections with a score of at least {0:g}, dashed boxes the ground truth. "
    "The surroundings are darkened."
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
    heading = f"<h2>Time per image</h2><p>{result.images_per_second:.1f} images/s</p>"
    return heading + _table(["stage", "time"], rows)


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str] | None = None
) -> str:
    """Return a table of escaped text. The first column holds the heads of the rows."""

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
    """Return a chart in a light and a dark form, of which the browser shows one."""
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
