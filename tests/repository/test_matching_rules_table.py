"""benchmarks/matching_rules.py: which runs it trains, its figures, its table and its sentences."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import matching_rules
from mdssd.evaluation.result import EvalData


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with a page, in place of docs/. Runs are short, and their network is small."""
    for name in ("RESULTS", "PAGE"):
        monkeypatch.setattr(matching_rules, name, tmp_path / name)
    start, end = matching_rules.MARKS
    (tmp_path / "PAGE").write_text(f"before\n\n{start}\nold\n{end}\n\nafter {end}\n")
    monkeypatch.setattr(matching_rules, "ITERATIONS", 1)
    monkeypatch.setattr(matching_rules, "TEST_SCENES", 2)
    monkeypatch.setitem(matching_rules.MODEL, "width", 0.0625)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def figures(ap50, minutes=2.0, **more):
    values = {name: ap50 + k / 8 for k, name in enumerate(matching_rules.FIGURES)}
    return {**values, "priors": 2.5, "iterations": 1, "cpu_minutes": minutes, **more}


def test_a_run_is_trained_once_and_evaluated_again_if_its_figures_are_lost(
    home, monkeypatch, capsys
):
    arguments = ["--runs", str(home / "runs"), "--only", "nwd-1"]
    matching_rules.main(arguments)
    stored = home / "runs/nwd-1/figures.json"
    first = json.loads(stored.read_text())
    assert first["iterations"] == 1 and first["cpu_minutes"] > 0
    settings = json.loads((home / "runs/nwd-1/last.json").read_text())["training"]["recipe"]
    assert (settings["match_metric"], settings["nwd_constant"], settings["seed"]) == ("nwd", 8, 1)
    assert json.loads((home / "RESULTS").read_text()) == {"nwd-1": first}
    assert "| `--match-metric nwd --nwd-constant 8` | 1 |" in (home / "PAGE").read_text()

    weights = {path.name: path.stat().st_mtime_ns for path in stored.parent.glob("last*")}
    stored.write_text(stored.read_text()[:40])
    matching_rules.main(arguments)
    assert "not used: expected the figures of nwd-1 after 1 iterations" in capsys.readouterr().out
    assert json.loads(stored.read_text()) == {**first, "cpu_minutes": None}
    assert weights == {path.name: path.stat().st_mtime_ns for path in stored.parent.glob("last*")}

    def unexpected(*_):
        raise AssertionError("a finished run is trained or evaluated again")

    monkeypatch.setattr(matching_rules, "train_run", unexpected)
    monkeypatch.setattr(matching_rules, "evaluate", unexpected)
    matching_rules.main(arguments)
    stored.unlink()  # docs/matching-rules.json still has them
    matching_rules.main(arguments)
    assert json.loads((home / "RESULTS").read_text())["nwd-1"]["ap50"] == first["ap50"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps(figures(0.5, iterations=2)),
        json.dumps(figures(0.5, coco=None)),
        json.dumps(figures(0.5, cpu_minutes="2")),
    ],
    ids=["empty", "a list", "no figures", "other length", "no number", "time as text"],
)
def test_figures_that_are_not_those_of_the_run_are_left_out(home, capsys, text):
    (home / "runs/ssd-0").mkdir(parents=True)
    (home / "runs/ssd-0/figures.json").write_text(text)
    (home / "RESULTS").write_text(json.dumps({"ssd-1": figures(0.25), "old-0": figures(0.5)}))
    assert matching_rules.results(home / "runs") == {"ssd-1": figures(0.25)}
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{home / 'runs/ssd-0/figures.json'}: not used: expected the figures of")


def test_the_figures_of_a_run_come_before_those_of_the_page(home):
    (home / "runs/ssd-0").mkdir(parents=True)
    (home / "runs/ssd-0/figures.json").write_text(json.dumps(figures(0.5)))
    (home / "RESULTS").write_text(json.dumps({"ssd-0": figures(0.25)}))
    assert matching_rules.results(home / "runs") == {"ssd-0": figures(0.5)}


def test_wrong_input_is_one_line(home, capsys):
    (home / "RESULTS").write_text("{")
    with pytest.raises(SystemExit, match="RESULTS: expected JSON, got .*; restore or delete it"):
        matching_rules.results(home / "runs")
    with pytest.raises(SystemExit):
        matching_rules.main(["--only", "nwd-7"])
    assert "argument --only: invalid choice: 'nwd-7'" in capsys.readouterr().err


def test_the_table_stands_between_the_marks(home):
    runs = {"ssd-0": figures(0.25), "ssd-1": figures(0.5, 3.0)}
    runs |= {"nwd-0": figures(0.5, None), "nwd-1": figures(0.625)}
    matching_rules.write(runs)
    text = (home / "PAGE").read_text()
    matching_rules.write(runs)
    assert (home / "PAGE").read_text() == text
    start, end = matching_rules.MARKS
    assert text.startswith(f"before\n\n{start}\n| rule | seeds | priors per object | AP at 0.5 |")
    assert text.endswith(f".\n{end}\n\nafter {end}\n") and "old" not in text
    ssd, nwd = [line.split(" | ") for line in text.splitlines() if line.endswith((" 2.5 |", "- |"))]
    spread = [0.25 / 2**0.5, 0.125 / 2**0.5]
    assert ssd[:5] == [
        "| SSD's",
        "2",
        "2.5",
        f"0.375 ± {spread[0]:.3f}",
        f"0.500 ± {spread[0]:.3f}",
    ]
    assert nwd[1:4] == ["2", "2.5", f"0.562 ± {spread[1]:.3f}"]
    assert (ssd[-1], nwd[-1]) == ("2.5 |", "- |")
    assert json.loads((home / "RESULTS").read_text()) == runs


@pytest.mark.parametrize(
    ("ssd", "nwd", "told"),
    [
        # The lowest seed of the one is above the highest of the other.
        ([0.25, 0.5], [0.625, 0.75], "raises the AP at 0.5 by 0.312 on average (+0.250 to +0.375"),
        ([0.625, 0.75], [0.25, 0.5], "lowers the AP at 0.5 by 0.312 on average (-0.375 to -0.250"),
        # Each seed gains, and yet the seeds differ more.
        ([0.25, 0.5], [0.375, 0.75], "raises the AP at 0.5 by 0.188 on average (+0.125 to +0.250"),
        ([0.25, 0.5], [0.5, 0.75], "raises the AP at 0.5 by 0.250 on average (+0.250 to +0.250"),
    ],
)
def test_a_sentence_says_whether_the_seeds_show_a_difference(ssd, nwd, told):
    runs = {f"ssd-{k}": figures(value) for k, value in enumerate(ssd)}
    runs |= {f"nwd-{k}": figures(value) for k, value in enumerate(nwd)}
    apart = min(nwd) > max(ssd) or max(nwd) < min(ssd)
    end = f"for the same seed), which is {'beyond' if apart else 'within'} the spread of the seeds"
    assert matching_rules.change(runs, "nwd", "ap50") == f"{told} {end}"
    assert matching_rules.change(runs, "top-k", "ap50") == ""
    small = "AP at 0.5 of 4-8 px"
    assert matching_rules.change(runs, "nwd", "ap50_smaller") == (
        f"{told} {end}".replace("AP at 0.5", small)
    )
    sentences = " ".join(matching_rules.table(runs)).partition("|  - ")[2]
    assert sentences.startswith("`--match-metric nwd --nwd-constant 8` ")
    assert " ".join(sentences.split()).endswith(
        f"{told} {end}.".replace("AP at 0.5", "AP at 0.5 of 8-16 px")
    )


def test_objects_of_another_size_are_ignored():
    boxes = np.array([[0, 0, 6, 5], [20, 20, 28, 24], [60, 60, 72, 72]], np.float64)
    truth = {"boxes": boxes, "labels": np.ones(3, np.int64)}
    found = {**truth, "scores": np.array([0.9, 0.8, 0.7])}
    missed = {name: values[[0, 2]] for name, values in found.items()}
    for detections, smaller, larger in ((found, 1.0, 1.0), (missed, 1.0, 0.5)):
        data = EvalData([detections], [truth], {})
        assert matching_rules._ap50(data, 2, 4, 8) == pytest.approx(smaller)
        # Two objects of 8 to 16 pixels: the longer side of the second box is exactly 8.
        assert matching_rules._ap50(data, 2, 8, np.inf) == pytest.approx(larger, abs=0.01)


def test_priors_of_an_object_are_counted_by_each_rule():
    # Squares of 8 pixels, 2 apart along one line, of which the fifth is the object.
    x = torch.arange(10, dtype=torch.float64) * 2 + 20
    priors = torch.stack([x, x * 0 + 50, x * 0 + 8, x * 0 + 8], 1) / 100
    detector = SimpleNamespace(input_size=100, model=SimpleNamespace(priors=priors))
    box = priors[4] * 100
    truth = [{"boxes": torch.cat([box[:2] - box[2:] / 2, box[:2] + box[2:] / 2])[None].numpy()}]
    # The IoU of the neighbours is 6 / 10, then 4 / 12; the NWD is exp(-distance / 8).
    want = {"ssd": 3, "threshold": 3, "top-k": 4, "nwd": 5}
    for rule, count in want.items():
        assert matching_rules.priors_per_object(detector, truth, rule) == count
