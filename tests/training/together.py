"""The cases of test_distributed.py, which run in one process and in several.

`python -m tests.training.together OUT STEPS`, with the environment variables that torchrun sets,
writes the results of this process to OUT/<rank>.pt: of every case, or with STEPS of a long run.
"""

import errno
import math
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from mdssd import mdssd300, ssd300
from mdssd.data import SyntheticScenes
from mdssd.detection.detector import Detector
from mdssd.detection.reading import Streamed
from mdssd.evaluation.evaluate import evaluate
from mdssd.system import distributed
from mdssd.system.memory import keep_memory
from mdssd.training import folder as folder_module
from mdssd.training.loop import train
from mdssd.training.run import TrainingError
from mdssd.training.settings import Recipe
from mdssd.training.step import TrainingStep, parameter_groups

# Images of each batch. The batch of one leaves a process without images.
SIZES = (3, 2, 1, 3)


def batch(number, size):
    """Return images [size, 3, 300, 300], boxes and labels.

    Every third image and every image of each fourth batch has no box. The others have one to
    twelve, so that the processes have different numbers of positive priors.
    """
    rng = np.random.default_rng([number, size])
    images = torch.from_numpy(rng.normal(0, 40, (size, 3, 300, 300)))
    boxes, labels = [], []
    for i in range(size):
        count = 0 if i % 3 == 1 or number % 4 == 3 else 1 + (5 * i + number) % 12
        corner, side = rng.uniform(0, 0.7, (count, 2)), rng.uniform(0.05, 0.3, (count, 2))
        boxes.append(torch.from_numpy(np.hstack([corner, corner + side])))
        labels.append(torch.from_numpy(rng.integers(1, 3, count)))
    return images, boxes, labels


def steps(sizes=SIZES, *, dtype=torch.float64, device="cpu", batch_norm=False, **settings):
    """Train on batches of these sizes, each process on its share.

    Returns the gradients of the first batch, the final weights and their average, and the losses of
    each batch. In float64, any difference between one process and two shows.
    """
    recipe = Recipe(**{"epochs": 1, "clip_gradient": 200.0, "ema": 0.9, **settings})
    torch.manual_seed(0)
    make = ssd300 if batch_norm else mdssd300
    model, average = (make(3, width=0.0625, batch_norm=batch_norm) for _ in range(2))
    average.load_state_dict(model.state_dict())
    for each in (model, average):
        each.to(device, dtype).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(parameter_groups(model, recipe), momentum=0.9)
    step = TrainingStep(model, optimizer, recipe, average)
    losses, gradients = [], {}
    for number, size in enumerate(sizes):
        images, boxes, labels = (distributed.part(values) for values in batch(number, size))
        losses.append(step.backward(images.to(dtype), list(boxes), list(labels)))
        if not gradients:
            gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        step.update(1e-5, number)
    return {
        "losses": torch.tensor(losses, dtype=torch.float64),
        **{f"gradient {name}": tensor for name, tensor in gradients.items()},
        **{f"weight {name}": tensor for name, tensor in model.state_dict().items()},
        **{f"average {name}": tensor for name, tensor in average.state_dict().items()},
    }


class Guesser(Detector):
    """Imitates a detector: returns the true boxes of the scenes, moved, and each of them twice."""

    def __init__(self, scenes):
        super().__init__(ssd300(6, width=0.0625), classes=scenes.classes)
        self.known = {scenes[i].image.tobytes(): (i, scenes[i]) for i in range(len(scenes))}
        self.seen = []

    def stream(self, images, *, batch_size, workers):
        for image in images:
            found = self._guess(*self.known[image.tobytes()])
            yield Streamed(image, image.shape[:2], found)

    def separate_stages(self):
        return nullcontext()

    def _guess(self, number, sample):
        self.seen.append(number)
        rng = np.random.default_rng(number)
        boxes = sample.boxes_xyxy.repeat(2, axis=0)
        boxes = boxes + rng.normal(0, 2, boxes.shape).astype(np.float32)
        found = {
            "boxes": boxes,
            "scores": rng.uniform(0, 1, len(boxes)).astype(np.float32),
            "labels": sample.labels.repeat(2),
        }
        return {name: torch.from_numpy(value) for name, value in found.items()}


def evaluation():
    """Evaluate seven scenes in batches of two; return the figures and the scenes seen here."""
    scenes = SyntheticScenes(7, seed=3)
    guesser = Guesser(scenes)
    result = evaluate(guesser, scenes, batch_size=2, progress=False).to_dict()
    figures = {k: v for k, v in result.items() if "second" not in k and k != "about"}
    return {"figures": figures, "seen": guesser.seen}


def run(out_dir):
    """Train for two epochs of two batches of three images, and evaluate."""
    torch.manual_seed(1)
    model = ssd300(6, width=0.0625)
    scenes = SyntheticScenes(6, seed=1)
    state = train(
        model,
        scenes,
        out_dir,
        epochs=2,
        batch_size=3,
        lr=1e-5,
        log_every=1,
        workers=0,
        eval_dataset=SyntheticScenes(2, seed=2),
        progress=False,
    )
    return {"step": state.step, "best": state.best, **model.state_dict()}


def faults(out_dir):
    """Return the errors of a loss that is not finite and of a last checkpoint on a full disk."""

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said = []
    for name, save in (("kept", None), ("full", full)):
        torch.manual_seed(1)
        model = ssd300(6, width=0.0625)
        if save is None:
            with torch.no_grad():
                next(model.parameters()).fill_(math.nan)
        else:
            folder_module.save_checkpoint = save
        try:
            options = dict(iterations=2, batch_size=3, lr=1e-5, workers=0, progress=False)
            train(model, SyntheticScenes(6, seed=1), out_dir / name, **options)
        except TrainingError as error:
            said.append(str(error))
    return said


def long_run(count):
    """Train on batches of 16 images; every fifth batch has 13 images or one."""
    sizes = [16 if k % 5 else (13, 1)[k // 5 % 2] for k in range(1, count + 1)]
    return {str(dtype): steps(sizes, dtype=dtype) for dtype in (torch.float64, torch.float32)}


def everything(out_dir):
    return {
        "global": steps(),
        "accumulate": steps((3,), accumulate=2),
        "local": steps((3,), normalizer="local"),
        "norm": steps((4,), batch_norm=True),
        "evaluation": evaluation(),
        "run": run(out_dir / "run"),
        "faults": faults(out_dir),  # the last case, because it replaces save_checkpoint
    }


if __name__ == "__main__":
    out_dir, what = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    keep_memory()
    with distributed.process_group("cpu"):
        results = long_run(int(what)) if int(what) else everything(out_dir)
        torch.save(results, out_dir / f"{distributed.rank()}.pt")
