"""`mdssd data check`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from mdssd.cli.commands.shared import (
    open_data,
    open_whole_data,
    recognised,
    show,
    tiling_of,
)
from mdssd.data import CocoDataset, DataError, DetectionDataset
from mdssd.data.dataset import DataPart
from mdssd.data.faults import left_out, nothing_to_learn
from mdssd.data.splits import default_split
from mdssd.data.tiles import Tiling
from mdssd.inspection.check import check_data
from mdssd.inspection.plots import write_check
from mdssd.models import SingleShotDetector, build
from mdssd.models.build import input_size, with_input_size
from mdssd.models.options import PRIOR_OPTIONS
from mdssd.names import AUTO_PRIORS, PRIOR_SCALES
from mdssd.priors import PriorLayer, scales_name
from mdssd.system.files import writable_folder
from mdssd.training.prior_choice import choose_priors


def run(arguments: argparse.Namespace) -> int:
    if arguments.out:
        writable_folder(arguments.out)  # now, not after the work
    name = with_input_size(arguments.model, arguments.input_size)
    size = input_size(name)
    tiling = tiling_of(vars(arguments), size)
    faults: list[str] = []
    how: dict[str, Any] = {"input_size": size, "by_windows": tiling is not None}
    dataset = open_whole_data(vars(arguments), **how, faults=faults)
    trained = _to_train_on(dataset)
    model, others, fitted = _models_priors(
        name, arguments, dataset if trained is None else trained, tiling
    )
    check = check_data(
        dataset,
        model.priors,
        size,
        model=f"{model.name} ({scales_name(model.options.prior_scales)})",
        others_cxcywh=others,
        fitted=fitted,
        tiling=tiling,
        faults=faults,
        tiny=arguments.tiny,
        workers=arguments.workers,
    )
    refusal = _refusal(vars(arguments), dataset, trained, how)
    check.refused = check.refused or refusal
    verdict, *rest = check.text(_folder(arguments.data, dataset)).split("\n")
    known = [recognised(dataset)] if dataset.format else []
    show(verdict, *known, *rest)
    if arguments.out:
        show(f"written: {', '.join(map(str, write_check(check, arguments.out)))}")
    if "allow_faults" in arguments:
        return 1 if check.leaks or refusal else 0
    return 1 if check.broken else 0


def _folder(data: str | None, dataset: DetectionDataset) -> Path | None:
    """The folder of the data, from which the text counts paths."""
    if isinstance(dataset, CocoDataset):
        folders = [dataset.json_path.parent, dataset.image_dir]
        return Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))
    if data is None:
        return None
    return Path(data) if os.path.isdir(data) else Path(data).parent


def _to_train_on(dataset: DetectionDataset) -> DetectionDataset | None:
    """The images of all splits that `mdssd train` would take, in its order: the priors fit those.

    All images, if the data set has no splits. None: there are splits, but none to train on.
    """
    indices: list[int] = []
    start = 0
    splits = dataset.split_lists([])  # the check reports their faults
    for lists in splits:
        place = {image_id: start + index for index, image_id in enumerate(lists.image_ids)}
        with suppress(DataError):
            listed = lists.listed[default_split(lists.folder, lists.listed, train=True)]
            indices += [place[image_id] for image_id in listed if image_id in place]
        start += len(lists.image_ids)
    if splits and not indices:
        return None
    return DataPart(dataset, indices) if splits else dataset


def _refusal(
    given: Mapping[str, Any],
    dataset: DetectionDataset,
    trained: DetectionDataset | None,
    how: Mapping[str, Any],
) -> str:
    """Return why `mdssd train` or `eval` would refuse the data; "" if neither would.

    trained: what `_to_train_on` returned.
    how: further arguments of `open_data`.
    """
    if given.get("data") is None or given.get("split") is not None:
        return nothing_to_learn(dataset)
    # As if everything that was left out were of this split. Only then is it opened by itself.
    if trained is None or nothing_to_learn(trained) or left_out(trained):
        try:
            alone = open_data(given, train=True, classes=None, faults=[], **how)
        except DataError as error:
            return f"`mdssd train` would refuse the data: {error}"
        reason = nothing_to_learn(alone) or ("" if "allow_faults" in given else left_out(alone))
        if reason:
            return reason
    if "allow_faults" in given or len(dataset.dropped) <= 1:
        return ""
    for split in dict.fromkeys(name for lists in dataset.split_lists([]) for name in lists.listed):
        with suppress(DataError):  # the check reports it
            options = {**given, "split": split}
            alone = open_data(options, train=False, classes=None, faults=[], **how)
            if reason := left_out(alone):
                return f"`mdssd eval` would refuse the split {split}: {reason}"
    return ""


def _models_priors(
    name: str,
    arguments: argparse.Namespace,
    dataset: DetectionDataset,
    tiling: Tiling | None,
) -> tuple[SingleShotDetector, dict[str, Tensor], Sequence[PriorLayer]]:
    """A model with the priors to compare with, the priors of its other scales, and fitted ones."""
    # The width does not change the priors.
    config: dict[str, Any] = {"model": name, "num_classes": 2, "width": 0.01}
    for option in PRIOR_OPTIONS:
        if value := getattr(arguments, option):
            config[option] = value
    fitted: Sequence[PriorLayer] = ()
    auto = config.get("prior_scales", AUTO_PRIORS) == AUTO_PRIORS
    if auto or arguments.fit_priors:
        choice = choose_priors(dataset, config, tiling=tiling).scales
        if arguments.fit_priors and not isinstance(choice, str):
            model = build({**config, "prior_scales": choice})
            fitted = type(model).prior_layers(model.input_size, choice)
        if auto:
            config["prior_scales"] = choice
    model = build(config)
    others = {}
    for scales in PRIOR_SCALES:
        # "paper" has only larger boxes than the others. A table of all has the model's own as well.
        if scales != "paper" and (fitted or scales != model.options.prior_scales):
            with suppress(ValueError):  # this model does not have them
                others[scales] = build({**config, "prior_scales": scales}).priors
    return model, others, fitted
