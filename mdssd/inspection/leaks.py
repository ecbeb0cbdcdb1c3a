"""Images that are in a data set twice, and images that are in two of its splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

from mdssd.data.dataset import SPLITS, SplitLists

# Pairs of splits that must not share an image; trainval is train and val together.
_DISJOINT = {
    frozenset(pair)
    for pair in [
        *combinations(("train", "val", "test"), 2),
        *combinations(("train", "valid", "test"), 2),
        ("trainval", "test"),
    ]
}


def same_files(digests: Sequence[bytes]) -> list[list[int]]:
    """Return groups of the positions at which a digest occurs more than once."""
    positions = defaultdict(list)
    for position, digest in enumerate(digests):
        positions[digest].append(position)
    return [group for group in positions.values() if len(group) > 1]


def count_splits(
    split_lists: Sequence[SplitLists], indices: Sequence[int], boxes: Sequence[int]
) -> dict[str, tuple[int, int]]:
    """Return the number of images and of boxes that each split has.

    Args:
        split_lists: the lists of the data set.
        indices: the images that could be read; only they are counted.
        boxes: the number of boxes of each of them.
    """
    boxes_of = dict(zip(indices, boxes, strict=True))
    counts: dict[str, tuple[int, int]] = {}
    start = 0
    for lists in split_lists:
        for name, ids in lists.listed.items():
            listed = set(ids)
            own = [
                boxes_of[index]
                for index, image_id in enumerate(lists.image_ids, start)
                if image_id in listed and index in boxes_of
            ]
            images, found = counts.get(name, (0, 0))
            counts[name] = images + len(own), found + sum(own)
        start += len(lists.image_ids)
    return {name: count for name, count in counts.items() if count[0]}


def find_leaks(
    split_lists: Sequence[SplitLists],
    indices: Sequence[int],
    names: Sequence[str],
    groups: Sequence[Sequence[int]],
) -> list[str]:
    """Return a line for each image in two splits that must not share one.

    Args:
        split_lists: the lists of the data set.
        indices: the images that could be read.
        names: their names, for messages.
        groups: positions in `indices` of images with the same bytes.
    """
    lines: list[str] = []
    splits_of: list[set[str]] = []  # the splits that list each image of the data set
    for lists in split_lists:
        listed = {name: set(ids) for name, ids in lists.listed.items()}
        lines += _listed_twice(lists)
        splits_of += [{name for name in listed if i in listed[name]} for i in lists.image_ids]
    if splits_of:
        chosen = [splits_of[index] for index in indices]
        lines += [line for group in groups for line in _same_in_two_splits(group, chosen, names)]
    return lines


def _listed_twice(lists: SplitLists) -> Iterator[str]:
    for a, b in combinations(lists.listed, 2):
        if frozenset((a, b)) in _DISJOINT:
            in_b = set(lists.listed[b])
            for image_id in lists.listed[a]:
                if image_id in in_b:
                    yield f"{lists.folder}: {image_id} is in {a} and {b}"


def _same_in_two_splits(
    group: Sequence[int], splits_of: Sequence[set[str]], names: Sequence[str]
) -> Iterator[str]:
    """Yield lines about images of the same bytes in two splits, unless one image is in both."""
    for a, b in combinations(SPLITS, 2):
        in_a, in_b = ([k for k in group if split in splits_of[k]] for split in (a, b))
        if frozenset((a, b)) in _DISJOINT and in_a and in_b and not set(in_a) & set(in_b):
            yield f"{names[in_a[0]]} of {a} and {names[in_b[0]]} of {b} are the same file"
