"""benchmarks/light_accuracy.py and benchmarks/forms.py: the tables of stored accuracy."""

import json

from benchmarks import forms, light_accuracy
from benchmarks.light_accuracy import FORMS


def run(form, coco, iterations):
    how = FORMS[form]
    figures = {"voc07": 0.5, "coco": coco, "coco_small": 0.25, "coco_train": 0.875}
    how_trained = {"form": how.form, "amp": how.amp, "imagenet": how.imagenet}
    return {**figures, "iterations": iterations, "data": "pcb", **how_trained}


RUNS = {
    "pcb-light-0": run("light", 0.5, 1568),
    "pcb-light-1": run("light", 0.6, 1568),
    "pcb-light-0@40": run("light", 0.75, 7840),
    "pcb-light_scratch-0": run("light_scratch", 0.2, 1568),
    "pcb-float32-0": run("float32", 0.9, 1064),
}


def test_runs_of_other_lengths_have_rows_of_their_own():
    head, line, *rows = light_accuracy.table(RUNS)
    assert head.count("|") == line.count("|")
    cells = [row.strip("| ").split(" | ")[1:] for row in rows]
    order = ("light", "light_scratch", "float32", "light")
    assert [row[0] for row in cells] == [FORMS[form].title for form in order]
    assert cells[0][1:5] == ["8", "1,568", "0.500 (0.500, 0.500)", "0.550 (0.500, 0.600)"]
    assert cells[3][1:] == ["40", "7,840", "0.500", "0.750", "0.250", "0.875"]


def test_the_pages_get_the_stored_figures(tmp_path, monkeypatch, capsys):
    store, accuracy, page = (tmp_path / name for name in ("a.json", "accuracy.md", "forms.md"))
    monkeypatch.setattr(light_accuracy, "ACCURACY", store)
    monkeypatch.setattr(light_accuracy, "PAGE", accuracy)
    monkeypatch.setattr(forms, "ACCURACY", store)
    monkeypatch.setattr(forms, "PAGE", page)
    start, end = light_accuracy.MARKS
    accuracy.write_text(f"before\n{start}\nold\n{end}\nafter\n")
    page.write_text(
        "text\n| mdssd300 | efficientnet_lite0 | 0.25 | light | 1.36 | - | - | - |\n"
        "| mdssd300 | vgg16 | 0.25 | full | 5.65 | 1 | 2 | 3 |\n"
    )
    (tmp_path / "results.json").write_text(json.dumps(RUNS))
    light_accuracy.main(["--runs", str(tmp_path), "--only", "none", "--write"])
    table = "\n".join(light_accuracy.table(RUNS))
    assert accuracy.read_text() == f"before\n{start}\n{table}\n{end}\nafter\n"
    assert capsys.readouterr().out == table + "\n"
    assert page.read_text() == (  # eight minutes in bfloat16, with ImageNet's weights
        "text\n| mdssd300 | efficientnet_lite0 | 0.25 | light | 1.36 | - | - | 0.550 (2) |\n"
        "| mdssd300 | vgg16 | 0.25 | full | 5.65 | - | - | - |\n"
    )


def test_only_forms_on_imagenet_weights_need_them(tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(light_accuracy, "train", lambda run, *rest: trained.append(run.name))
    monkeypatch.setattr(light_accuracy, "evaluate", lambda *_: dict(RUNS["pcb-light_scratch-0"]))
    options = ["--pcb", str(tmp_path), "--runs", str(tmp_path), "--seeds", "0"]
    light_accuracy.main([*options, "--forms", "light", "light_scratch"])
    lines = capsys.readouterr().out.splitlines()
    assert trained == ["pcb-light_scratch-0"]
    assert "pcb-light-0: skipped, because --init is not given" in lines
    assert "cars-light_scratch-0: skipped, because --cars is not given" in lines


def test_runs_are_evaluated_on_test_and_training_images(tmp_path, monkeypatch):
    def evaluate(run, folder, only, device, split="test"):
        coco = {"test": 0.25, "trainval": 0.75}[split]
        return {"voc07": 0.5, "coco": coco, "coco_small": 0.125, "iterations": 1064}

    monkeypatch.setattr(light_accuracy, "train", lambda *_: None)
    monkeypatch.setattr(light_accuracy, "evaluate", evaluate)
    (tmp_path / "ImageSets").mkdir()
    options = ["--bccd", str(tmp_path), "--runs", str(tmp_path)]
    light_accuracy.main([*options, "--only", "bccd-vgg-0"])
    stored = json.loads((tmp_path / "results.json").read_text())["bccd-vgg-0"]
    assert stored["coco"] == 0.25
    assert stored["coco_train"] == 0.75
