"""What is wrong with a data set: its lines grouped, said in one line, or refused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from mdssd.data.dataset import DataPart, DetectionDataset
from mdssd.data.opened import check_file
from mdssd.data.raster_files import NEEDS
from mdssd.data.reasons import grouped
from mdssd.data.sample import DataError
from mdssd.system.progress import progress_bar
from mdssd.system.text import plural

# A greater share of unusable boxes is an error: the annotations then belong to other images, or are
# in another format.
MOST_LEFT_OUT = 0.05
_REASONS = 4  # of a message
_KINDS = 2  # reasons in a line


def faults_line(
    dataset: DetectionDataset, faults: Sequence[str] = (), *, notes: bool = True
) -> str:
    """Return one line about what was left out, repaired or guessed; empty if nothing was.

    Args:
        dataset: the data set.
        faults: a line for each image that opening it left out; see `open_dataset`.
        notes: whether to add what was repaired or guessed, which a report has as well.

    Example:
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.data.faults import faults_line
        >>> faults_line(SyntheticScenes(2))
        ''
        >>> faults_line(SyntheticScenes(2), ["a.jpg: no such image"]).partition(";")[0]
        'synthetic scenes (seed 0): 1 file left out (a.jpg: no such image)'
    """
    boxes, sizes = len(dataset.dropped), len(dataset.size_faults)
    parts = []
    if faults:
        parts.append(f"{plural(len(faults), 'file')} left out ({_reasons(faults)})")
    if boxes:
        total = boxes + _boxes(dataset)
        parts.append(f"{boxes} of {total:,} boxes left out ({_reasons(dataset.dropped)})")
    if sizes:
        parts.append(f"{plural(sizes, 'annotation')} with another size than the image's")
    if notes:
        parts += grouped(dataset.notes)
    return f"{dataset.name}: {'; '.join(parts)}; `mdssd data check` lists them" if parts else ""


def check_faults(dataset: DetectionDataset, faults: Sequence[str]) -> None:
    """Refuse a data set of which a file, or more than 5% of the boxes, cannot be used.

    Args:
        dataset: the data set.
        faults: a line for each image that opening it left out; see `open_dataset`.

    Raises:
        DataError: the data set should not be used. The message has the share, the reasons with
            examples, and the option that allows it.

    Example:
        >>> from mdssd.data import DataError, SyntheticScenes
        >>> from mdssd.data.faults import check_faults
        >>> check_faults(SyntheticScenes(2), [])
        >>> try:
        ...     check_faults(SyntheticScenes(2), ["a.jpg: no such image"])
        ... except DataError as error:
        ...     print(error)
        a.jpg: no such image; --allow-faults leaves such files out
    """
    if share_fault := left_out(dataset):
        raise DataError(f"{share_fault}; --allow-faults goes on with the others")
    if faults:
        count = f"{dataset.name}: {len(faults)} files cannot be used; " if len(faults) > 1 else ""
        reasons = "; ".join(grouped(faults)[:_REASONS])
        remedy = "; --allow-faults leaves such files out"
        if all(fault.endswith(NEEDS) for fault in faults):
            remedy = ""  # the faults say what to install
        raise DataError(f"{count}{reasons}{remedy}")


def left_out(dataset: DetectionDataset) -> str:
    """Return a line that says which share of the boxes was left out, if that is more than 5%.

    A single box is never too many, so that a handful of images can be tried.

    Example:
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.data.faults import left_out
        >>> left_out(SyntheticScenes(2))
        ''
    """
    dropped = len(dataset.dropped)
    total = dropped + _boxes(dataset) if dropped else 0
    if dropped <= max(1, MOST_LEFT_OUT * total):
        return ""
    return (
        f"{dataset.name}: {dropped} of {total:,} boxes ({dropped / total:.0%}) cannot be used, "
        f"expected at most {MOST_LEFT_OUT:.0%}; {grouped(dataset.dropped)[0]}"
    )


def nothing_to_learn(dataset: DetectionDataset) -> str:
    """Return a line that says why a data set has no box to train on; empty if it has one.

    Example:
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.data.faults import nothing_to_learn
        >>> nothing_to_learn(SyntheticScenes(2))
        ''
    """
    crowds = 0
    for index in range(len(dataset)):
        crowd = dataset.annotation(index).crowd
        if not crowd.all():
            return ""
        crowds += len(crowd)
    if crowds:
        return (
            f"{dataset.name}: has no box to learn from, because all {crowds} boxes are crowds "
            "(iscrowd is 1, as some tools write it for every mask in run-length encoding); "
            "set iscrowd to 0 where a box holds one object"
        )
    return f"{dataset.name}: has no box to learn from"


def without_damaged(dataset: DetectionDataset, faults: list[str]) -> DetectionDataset:
    """Decode every stored image and leave out those that cannot be; each adds a line to `faults`.

    Example:
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.data.faults import without_damaged
        >>> len(without_damaged(SyntheticScenes(2), []))
        2
    """

    def fault(index: int) -> str:
        try:
            check_file(dataset, index)
            if dataset.image_path(index) is None and dataset.image_bytes(index) is not None:
                dataset[index]
        except DataError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        lines = pool.map(fault, range(len(dataset)))
        bar = progress_bar(lines, desc="check images", total=len(dataset), delay=2, leave=False)
        found = list(bar)
    faults += filter(None, found)
    good = [index for index, line in enumerate(found) if not line]
    return dataset if len(good) == len(dataset) else DataPart(dataset, good)


def _boxes(dataset: DetectionDataset) -> int:
    """Return the number of usable boxes."""
    return sum(len(dataset.annotation(index).labels) for index in range(len(dataset)))


def _reasons(lines: Sequence[str]) -> str:
    """Return the first line of each of the two most frequent reasons."""
    reasons = grouped(lines)
    return "; ".join(reasons[:_KINDS]) + ("; ..." if len(reasons) > _KINDS else "")
