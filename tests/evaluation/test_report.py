"""The HTML report is complete, self-contained and escaped; its pictures and charts are right."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from defusedxml import ElementTree
from PIL import Image

from mdssd.data import DetectionDataset, Sample
from mdssd.drawing import class_color
from mdssd.evaluation import charts
from mdssd.evaluation.evaluate import write_result
from mdssd.evaluation.examples import Subject, false_ones, misses, show
from mdssd.evaluation.report import write_report
from mdssd.evaluation.result import EvalData, measure
from mdssd.metrics import size_ap, voc_ap

CLASSES = ["<b>&\"'", "a$b_{^", "_red", "日本"]


class Photos(DetectionDataset):
    """Grey photographs of 200 x 120 pixels, with the detections of an imaginary detector.

    Image 0: class 1 is detected, class 2 only with score 0.2. Image 1: two objects of class 1 are
    missed; a detection has IoU 0.375 with the larger one. Image 2: a difficult object of class 3
    and one of class 1; a false detection of class 1 (0.8) on neither, and one of class 2 (0.95) on
    the object of class 1.
    """

    name = "photos </title><script>"
    classes = CLASSES
    image_ids = ["<img src=x>", "b&c", "ü"]
    boxes = [
        [[10, 10, 30, 30], [50, 50, 70, 90]],
        [[100, 20, 120, 40], [20, 20, 60, 60]],
        [[5, 5, 45, 45], [150, 80, 190, 110]],
    ]
    labels = [[1, 2], [1, 1], [3, 1]]

    def __len__(self):
        return 3

    def __getitem__(self, index):
        image = np.full((120, 200, 3), 100, np.uint8)
        boxes = np.array(self.boxes[index], np.float32)
        difficult = np.array([index == 2, False])
        return Sample(image, boxes, np.array(self.labels[index]), difficult, self.image_ids[index])

    def found(self):
        detections = [
            {
                "boxes": [[10, 10, 30, 30], [50, 50, 70, 90]],
                "labels": [1, 2],
                "scores": [0.9, 0.2],
            },
            {"boxes": [[20, 20, 60, 34.4]], "labels": [1], "scores": [0.6]},
            {
                "boxes": [[90, 20, 110, 40], [150, 80, 190, 110]],
                "labels": [1, 2],
                "scores": [0.8, 0.95],
            },
        ]
        detections = [{k: np.array(v) for k, v in one.items()} for one in detections]
        samples = [self[i] for i in range(3)]
        truth = [
            {"boxes": s.boxes_xyxy, "labels": s.labels, "difficult": s.difficult} for s in samples
        ]
        return EvalData(detections, truth, {"read": 0.01, "network": 0.2})


@pytest.fixture(scope="module")
def result():
    return measure(Photos().found(), Photos(), CLASSES)


@pytest.fixture(scope="module")
def page(tmp_path_factory, result):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, result, Photos().found(), Photos())
    return path.read_text(encoding="utf-8")


VOID = {"meta", "img", "br", "source"}


class Checker(HTMLParser):
    """Fails on tags that do not match. Collects the text, the tags and the addresses."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.fetched, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "srcset", "href", "data", "poster")]
        assert not [k for k, _ in attrs if k.startswith("on")], attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def parsed(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    return checker


def test_the_page_is_complete_and_fetches_nothing(page, parsed):
    assert page.startswith("<!DOCTYPE html>") and page.endswith("</html>\n")
    assert not {"script", "link", "iframe", "object"} & set(parsed.tags)
    assert parsed.fetched and all(uri.startswith("data:image/") for uri in parsed.fetched)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "prefers-color-scheme: dark" in style


def test_names_from_the_data_are_escaped(page, parsed):
    text = "".join(parsed.text)
    for name in [*CLASSES, *Photos.image_ids, Photos.name]:
        assert name in text
    for raw in ("<b>&\"'", "<img src=x>", "<script>"):
        assert raw not in page
    assert parsed.tags.count("title") == 1 and parsed.tags.count("h1") == 1


def test_the_tables_hold_the_figures(parsed, result):
    text = "|".join(t for t in parsed.text if t.strip())
    voc = result.voc07
    assert "VOC07 mAP" in text and f"{voc.mean_ap:.3f}" in text
    assert f"AP at IoU 0.75|{result.coco.figures['AP75']:.3f}" in text
    for heading in (
        "Average precision", "COCO’s twelve figures", "Size of the objects",
        "Precision and recall", "Kinds of false positives", "Confusion", "Worst misses",
        "Worst false positives", "Time per image",
    ):  # fmt: skip
        assert heading in text
    # In the confusion matrix, 2 objects of class 1 are missed, 1 is found, 1 is taken for class 2.
    assert "<b>&\"'|2|1|1|" in text


def test_every_embedded_picture_can_be_read(parsed):
    kinds = []
    for uri in parsed.fetched:
        kind, content = re.fullmatch(r"data:image/([a-z+]+);base64,(.*)", uri).groups()
        content = base64.b64decode(content, validate=True)
        if kind == "svg+xml":
            root = ElementTree.fromstring(content)
            assert root.tag.endswith("svg")
            hrefs = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")]
            assert all(href.startswith("#") for href in hrefs)
        else:
            assert max(Image.open(io.BytesIO(content)).size) == 420
        kinds.append(kind)
    # There are two charts, each light and dark, and five pictures: misses in all three images, and
    # false detections in images 1 and 2.
    assert kinds.count("svg+xml") == 4 and kinds.count("jpeg") == 5


def test_same_bytes_every_time(tmp_path, page, result):
    write_report(tmp_path / "again.html", result, Photos().found(), Photos())
    again = (tmp_path / "again.html").read_text(encoding="utf-8")
    assert again == page


def test_a_negative_number_of_pictures_is_named(tmp_path, result):
    with pytest.raises(ValueError, match="pictures: expected 0 or more, got -1"):
        write_report(tmp_path / "a.html", result, Photos().found(), Photos(), pictures=-1)
    write_report(tmp_path / "a.html", result, Photos().found(), Photos(), pictures=0)
    assert "image/jpeg" not in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_nothing_to_show(tmp_path):
    class Empty(Photos):
        boxes = [np.zeros((0, 4))] * 3
        labels = [np.zeros(0, np.int64)] * 3

        def __getitem__(self, index):
            raise AssertionError("no picture is to be read")

    nothing = {"boxes": np.zeros((0, 4)), "labels": [], "scores": []}
    found = EvalData([nothing] * 3, [{"boxes": np.zeros((0, 4)), "labels": []}] * 3, {})
    write_result(measure(found, Empty(), CLASSES), found, Empty(), tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert text.count("<p>None.</p>") == 2 and "–" in text
    stored = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert stored["sizes"]["normalized_mAP"]["XS"] is None
    assert stored["voc07"]["mAP"] is None


def test_json_has_the_new_parts(result):
    stored = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    name = CLASSES[0]
    assert stored["sizes"]["objects"][name] == {"XS": 0, "S": 2, "M": 1, "L": 1, "XL": 0}
    # There are four objects: 20 x 20 (twice, so both are S), 40 x 30 (M), 40 x 40 (L).
    assert stored["sizes"]["greatest_area"][name]["XS"] is None
    assert stored["sizes"]["normal_objects"] == pytest.approx(0.45)
    assert stored["sizes"]["AP"]["_red"] == dict.fromkeys(("XS", "S", "M", "L", "XL"))
    assert stored["false_positives"][name] == {
        "true": 1, "localisation": 1, "similar": 0, "other": 0, "background": 1,
    }  # fmt: skip
    assert stored["confusion"]["labels"] == ["background", *CLASSES]
    assert stored["confusion"]["matrix"][1] == [2, 1, 1, 0, 0]
    assert "normalised AP by size within the class: XS" in result.table()


def test_worst_misses():
    found = Photos().found()
    subjects = misses(found, CLASSES, 10, 0.5)
    # The largest undetected object of class 1 is first. The object with score 0.2 is second.
    assert [(s.image, s.caption) for s in subjects] == [
        (1, "missed: <b>&\"'"),
        (0, "missed: a$b_{^"),
        (2, "missed: <b>&\"'"),
    ]
    assert subjects[0].box_xyxy.tolist() == [20, 20, 60, 60]
    assert subjects[0].details == "40 x 40 pixels; best IoU 0.37, with score 0.60"
    assert subjects[1].details == "20 x 40 pixels; found only with score 0.20"
    assert subjects[2].details.endswith("no detection of its class touches it")
    assert len(misses(found, CLASSES, 1, 0.5)) == 1
    assert [s.image for s in misses(found, CLASSES, 10, 0.1)] == [1, 2]


def test_worst_false_positives(result):
    subjects = false_ones(Photos().found(), result, 10)
    assert [(s.image, s.caption, s.details, s.detection) for s in subjects] == [
        (2, "false: a$b_{^ 0.95", "other", 1),
        (1, "false: <b>&\"' 0.60", "localisation: IoU 0.37", 0),
    ]


def test_a_picture_shows_the_subject_lit_and_the_truth_dashed():
    found = Photos().found()
    subject = Subject(1, np.array([20.0, 20, 60, 60]), "", "")
    picture = np.asarray(Image.open(io.BytesIO(show(subject, found, Photos(), CLASSES, 0.99))))
    # The window is 160 x 120 pixels, limited by the image, and is enlarged 2.625 times.
    assert picture.shape == (315, 420, 3)
    assert abs(int(picture[105, 105, 0]) - 100) < 6  # inside the subject, unchanged
    assert abs(int(picture[290, 300, 0]) - 60) < 6  # around it, darkened
    edge = picture[52, 60:150].astype(int).max(axis=1)  # the subject's upper edge, y = 20
    assert edge.max() > 180 and edge.min() < 60  # white dashes with black between
    # The detection of class 1 is drawn if it reaches the threshold or is the subject itself.
    colour = np.array(class_color(1))
    for options in ({"score_threshold": 0.5}, {"score_threshold": 0.99, "own": 0}):
        own = Subject(1, subject.box_xyxy, "", "", options.pop("own", None))
        drawn = np.asarray(Image.open(io.BytesIO(show(own, found, Photos(), CLASSES, **options))))
        assert (np.abs(drawn.astype(int) - colour).max(axis=2) < 40).sum() > 100
    assert (np.abs(picture.astype(int) - colour).max(axis=2) < 40).sum() == 0


def test_charts_of_many_classes_and_detections():
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 300, (800, 2))
    boxes = np.hstack([boxes, boxes + rng.uniform(5, 60, (800, 2))])
    labels = rng.integers(1, 41, 800)
    truth = [{"boxes": boxes, "labels": labels}]
    found = [{"boxes": boxes + 1, "labels": labels, "scores": rng.random(800)}]
    names = [f"class {k}" for k in range(40)]
    curves = charts.curve_chart(voc_ap(found, truth, 41, metric="voc12"), names, charts.LIGHT)
    assert len(curves.axes) == 40
    assert all(len(line.get_xdata()) <= 202 for axes in curves.axes for line in axes.lines)
    sizes = charts.size_chart(size_ap(found, truth, 41), names, charts.DARK)
    assert len(sizes.axes) == 6  # 41 groups, 7 in a row
    assert len(charts.svg(sizes)) < 500_000


def test_a_curve_keeps_the_points_where_recall_rises():
    # Two true detections come before 5000 false ones. Even sampling would lose the second.
    boxes = np.array([[0, 0, 9, 9], [20, 0, 29, 9]] + [[500, 500, 509, 509]] * 5000, float)
    found = [{"boxes": boxes, "labels": [1] * 5002, "scores": np.linspace(1, 0, 5002)}]
    truth = [{"boxes": boxes[:2], "labels": [1, 1]}]
    figure = charts.curve_chart(voc_ap(found, truth, 2), ["a"], charts.LIGHT)
    raw, envelope = figure.axes[0].lines
    assert raw.get_xdata().tolist() == [0.5, 1.0, 1.0]
    assert envelope.get_ydata().tolist()[:3] == [1.0, 1.0, 1.0]


def test_a_class_without_detections_has_an_empty_curve():
    truth = [{"boxes": [[0, 0, 10, 10]], "labels": [1]}]
    found = [{"boxes": np.zeros((0, 4)), "scores": [], "labels": []}]
    figure = charts.curve_chart(voc_ap(found, truth, 2), ["a"], charts.LIGHT)
    assert charts.svg(figure).startswith(b"<?xml")
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [0]


def test_long_names_keep_clear_of_their_neighbours():
    names = ["a" * 40, "short"]
    truth = [{"boxes": [[0, 0, 9, 9]] * 2, "labels": [1, 2]}]
    found = [{"boxes": [], "scores": [], "labels": []}]
    curves = charts.curve_chart(voc_ap(found, truth, 3), names, charts.LIGHT)
    assert [axes.get_title() for axes in curves.axes] == [f"{'a' * 23}…  0.000", "short  0.000"]
    (axes,) = charts.size_chart(size_ap(found, truth, 3), names, charts.LIGHT).axes
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert shown == ["mean of classes", "a" * 15 + "…", "short"]
