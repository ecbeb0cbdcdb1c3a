"""Boxes that training takes for neither objects nor background."""

import numpy as np
import pytest
import torch

from mdssd import ops, ssd300
from mdssd.cli import main
from mdssd.data import Augmentation, DetectionDataset, Sample, collate
from mdssd.data.ignored import parts_in_window
from mdssd.data.windows import TrainingWindows, WindowDraws, cut_sample
from mdssd.names import IGNORABLE
from mdssd.training.bad_batch import save_batch
from mdssd.training.checks import check_run
from mdssd.training.loading import Batch
from mdssd.training.loop import train
from mdssd.training.recipe_files import format_recipe, read_recipe
from mdssd.training.settings import Recipe
from mdssd.training.step import TrainingStep
from mdssd.weights.checkpoint_json import read_meta

PLAIN = {"expand": 1, "photometric": False, "crop": False, "mirror": False}
BOXES = [[10, 10, 30, 30], [40, 10, 60, 30], [10, 40, 30, 60], [95, 40, 115, 60]]


def sample(crowd=(1,), difficult=(2,), width=200):
    """Return an object, a crowd, a difficult object, and an object further to the right."""
    numbers = np.arange(4)
    return Sample(
        np.zeros((100, width, 3), np.uint8),
        np.array(BOXES, np.float32),
        np.array([1, 1, 2, 3]),
        np.isin(numbers, difficult),
        "a",
        np.isin(numbers, crowd),
    )


class One(DetectionDataset):
    name = "one"
    classes = ["a", "b", "c"]
    image_ids = ["a"]

    def __init__(self, **options):
        self.options = options

    def __getitem__(self, index):
        return sample(**self.options)


def seen(augmentation, of, size):
    """Return {(x1, y1, x2, y2): label} in pixels of the sample."""
    _, boxes, labels = augmentation(of, np.random.default_rng(0))
    pixels = (boxes.numpy() * (*size, *size)).round().astype(int)
    return {tuple(box): label for box, label in zip(pixels.tolist(), labels.tolist(), strict=True)}


@pytest.mark.parametrize(
    ("ignore", "labels"),
    [
        ((), [1, None, 2, 3]),
        (("crowd",), [1, -1, 2, 3]),
        (("difficult",), [1, None, -1, 3]),
        (("difficult", "crowd", "cut"), [1, -1, -1, 3]),
    ],
)
def test_kinds_of_a_whole_image(ignore, labels):
    want = {tuple(b): k for b, k in zip(BOXES, labels, strict=True) if k is not None}
    assert seen(Augmentation(50, ignore=ignore, **PLAIN), sample(), (200, 100)) == want


def test_boxes_of_which_a_window_shows_too_little():
    """The last box lies from 95 to 115, of which the window to 100 shows a quarter."""
    window, draws = np.array([0, 0, 100, 100]), WindowDraws(100, 100)
    for ignore, labels in {
        (): [1, None, 2, None],
        ("cut",): [1, None, 2, -1],
        ("crowd", "cut"): [1, -1, 2, -1],
    }.items():
        augmentation = Augmentation(50, ignore=ignore, **PLAIN)
        part = cut_sample(sample(), sample().image, window, draws, augmentation)
        boxes = [*BOXES[:3], [95, 40, 100, 60]]
        want = {tuple(b): k for b, k in zip(boxes, labels, strict=True) if k is not None}
        assert seen(augmentation, part, (100, 100)) == want


def test_boxes_of_which_a_crop_shows_too_little():
    """What is seen of a box whose centre is outside has the label -1, and nothing else changes."""
    plain, both = (Augmentation(100, raw=True, expand=2, ignore=i) for i in ((), ("cut",)))
    cut = 0
    for seed in range(200):
        image, boxes, labels = plain(sample(), np.random.default_rng(seed))
        again, others, other_labels = both(sample(), np.random.default_rng(seed))
        count = len(boxes)
        assert torch.equal(image, again) and torch.equal(boxes, others[:count])
        assert torch.equal(labels, other_labels[:count]) and (other_labels[count:] == -1).all()
        parts = others[count:]
        assert (parts[:, 2:] > parts[:, :2]).all() and ((parts >= 0) & (parts <= 1)).all()
        assert ((parts == 0) | (parts == 1)).any(1).all()  # the edge of the crop cuts each
        cut += len(parts)
    assert cut > 20


def test_what_a_window_shows_of_boxes():
    boxes = np.array([[50, 10, 120, 20], [200, 0, 300, 50], [-10, -10, 0, 0], [0, 0, 300, 300]])
    assert parts_in_window(boxes, np.array([0, 0, 100, 200])).tolist() == [
        [0.5, 0.05, 1, 0.1],
        [0, 0, 1, 1],
    ]
    assert parts_in_window(np.zeros((0, 4)), np.array([0, 0, 1, 1])).shape == (0, 4)


def test_windows_are_drawn_around_objects_to_learn():
    draws = WindowDraws(50, 50, background=0, min_visible=0.1)
    augmentation = Augmentation(50, ignore=["difficult"], **PLAIN)
    windows = TrainingWindows(One(), augmentation, draws)
    assert set(windows.plan().objects.tolist()) <= {0, 1}  # of the object and the last one
    for index in range(len(windows)):
        assert (windows[index][2] > 0).any()


def step_of(ignore, seed=0):
    torch.manual_seed(seed)
    model = ssd300(4, width=0.0625)
    settings = Recipe(epochs=1, ignore=ignore)
    return TrainingStep.create(model, settings, torch.device("cpu"), {})


def gradients(step):
    return torch.cat([p.grad.flatten() for p in step.model.parameters()])


def test_the_loss_leaves_out_what_is_on_a_box_to_be_ignored():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 300, 300)
    boxes = [torch.tensor([[0.1, 0.1, 0.3, 0.3], [0.5, 0.5, 0.9, 0.9]]), torch.zeros(0, 4)]
    labels = [torch.tensor([2, -1]), torch.zeros(0, dtype=torch.int64)]
    step = step_of(["cut"])
    step.backward(images, boxes, labels)
    step.model.zero_grad()
    got = step.backward(images, boxes, labels)
    priors = step.model.priors
    targets = ops.encode_targets(
        [boxes[0][:1], boxes[1]],
        [labels[0][:1], labels[1]],
        priors,
        ignored_xyxy=[boxes[0][1:], boxes[1]],
    )
    assert (targets.labels[0] == -1).sum() > 100 and (targets.labels[1] == 0).all()
    loc, logits = step.model(images)
    want = ops.multibox_loss(loc, logits, targets.loc, targets.labels)
    assert (got.loc, got.conf) == pytest.approx([value.item() for value in want], rel=1e-5)

    # Without boxes to be ignored the option changes nothing.
    results = []
    for ignore in ((), IGNORABLE):
        step = step_of(ignore)
        losses = step.backward(images, [boxes[0][:1], boxes[1]], [labels[0][:1], labels[1]])
        results.append((losses, gradients(step)))
    assert results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])


def test_runs_keep_the_option_and_resume(tmp_path):
    torch.manual_seed(0)
    options = {"batch_size": 2, "workers": 0, "progress": False, "lr": 1e-4, "ignore": ("crowd",)}
    train(ssd300(4, width=0.0625), One(), tmp_path, iterations=1, tile=100, **options)
    recipe = read_meta(tmp_path / "last.json")["training"]["recipe"]
    assert recipe["ignore"] == ["crowd"] and Recipe(**recipe).ignore == ["crowd"]
    state = train(
        ssd300(4, width=0.0625), One(), tmp_path, resume=True, iterations=2, tile=100, **options
    )
    assert state.step == 2
    with pytest.raises(ValueError, match="ignore"):
        options["ignore"] = ()
        train(
            ssd300(4, width=0.0625), One(), tmp_path, resume=True, iterations=3, tile=100, **options
        )


def test_nothing_but_boxes_to_be_ignored():
    dataset = One(difficult=(0, 1, 2, 3), crowd=())
    check_run(*arguments_of(dataset, ()))
    with pytest.raises(ValueError, match="one has no box to learn from"):
        check_run(*arguments_of(dataset, ["difficult"]))


def arguments_of(dataset, ignore):
    settings = Recipe(epochs=1, ignore=ignore)
    return ssd300(4, width=0.0625), dataset, None, settings, torch.device("cpu"), False, False


def test_a_kept_batch_names_them(tmp_path):
    batch = Batch(
        *collate([Augmentation(50, ignore=["crowd"], **PLAIN)(sample(), np.random.default_rng(0))])
    )
    save_batch(tmp_path / "b", batch, ["a"], One.classes, {})
    assert '"ignored"' in (tmp_path / "b" / "batch.json").read_text()


def test_wrong_values(tmp_path, capsys):
    expected = "expected a list of boxes among cut, crowd, difficult; got"
    for value in ("cut", ["dog"], [5], 3):
        with pytest.raises(ValueError, match=f"^Recipe: ignore: {expected}"):
            Recipe(epochs=1, ignore=value)
    with pytest.raises(ValueError, match="^Augmentation: ignore: expected a list of some of cut"):
        Augmentation(300, ignore="cut")
    assert main(["train", "--scenes", "1", "--out", str(tmp_path / "r"), "--ignore", "dog"]) == 2
    error = capsys.readouterr().err
    assert "--ignore: expected one of cut, crowd, difficult; got 'dog'" in error


def test_recipes(tmp_path, capsys):
    text = format_recipe({"model": "ssd300"}, Recipe(epochs=1, ignore=["cut", "crowd"]))
    assert '\nignore = ["cut", "crowd"]\n' in text
    assert "ignore" not in format_recipe({"model": "ssd300"}, Recipe(epochs=1))
    (tmp_path / "a.toml").write_text(text)
    assert read_recipe(str(tmp_path / "a.toml"))["ignore"] == ["cut", "crowd"]
    words = ["train", "--recipe", str(tmp_path / "a.toml"), "--print-recipe"]
    assert main(words) == 0 and 'ignore = ["cut", "crowd"]' in capsys.readouterr().out
    assert main([*words, "--ignore", "none"]) == 0 and "ignore" not in capsys.readouterr().out
