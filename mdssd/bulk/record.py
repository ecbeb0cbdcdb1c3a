"""The record of a bulk job: which shards and images have ended a process.

It is in the memory of one process. What a later run of the job has to know of it is in the folder
of the results too, where each shard has a file from the time at which it begins.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from mdssd.bulk.places import Place

# An image is given up if so many processes have ended while they worked on it alone.
TRIES = 2
BEGUN = "_begun"  # the folder of these files; readers of Parquet pass over a name like this


class Begun(NamedTuple):
    """What `Record.begin` returns.

    Attributes:
        ending: whether the job is to end, so that no shard may begin.
        careful: whether a process has ended while it worked on the shard.
        tries: how many processes have ended while they worked on an image alone, by its place in
            the shard; -1 stands for all images at once.
    """

    ending: bool
    careful: bool
    tries: dict[int, int]

    @property
    def given_up(self) -> list[int]:
        """The images that no process may try any more."""
        return [image for image, count in self.tries.items() if count >= TRIES]


class Record:
    """Counts in one process of the cluster which shards and images ended the others.

    Args:
        before: the tries of the shards that had begun when an earlier run was killed, see `Begun`.
    """

    def __init__(self, before: Mapping[int, Mapping[int, int]] | None = None) -> None:
        self._begun = set(before or ())
        self._tries: dict[int, Counter[int]] = defaultdict(Counter)
        self._tries.update({shard: Counter(tries) for shard, tries in (before or {}).items()})
        self._joining: dict[int, int] = {}
        self._ending = False

    def begin(self, shard: int) -> Begun:
        careful = shard in self._begun
        if not self._ending:
            self._begun.add(shard)
        return Begun(self._ending, careful, dict(self._tries.get(shard, {})))

    def trying(self, shard: int, image: int) -> dict[int, int]:
        """Note that a process begins with an image alone; return the tries of the shard."""
        self._tries[shard][image] += 1
        return dict(self._tries[shard])

    def tried(self, shard: int, image: int) -> None:
        """Note that the process has survived it."""
        del self._tries[shard][image]

    def may_join(self, raster: int, shard: int) -> bool:
        """Return whether the process with this shard may join the results of a raster."""
        return self._joining.setdefault(raster, shard) == shard

    def done(self, shard: int) -> None:
        self._begun.discard(shard)
        self._tries.pop(shard, None)

    def end(self) -> None:
        """Let no further shard begin."""
        self._ending = True


def write_begun(place: Place, shard: int, tries: Mapping[int, int]) -> None:
    """Write into the folder of the results that a process works on a shard."""
    text = json.dumps(list(tries.items()))
    Place(f"{place.name}/{BEGUN}").write(_file_of(shard), text.encode())


def read_begun(place: Place, shards: Iterable[int]) -> dict[int, dict[int, int]]:
    """Return the tries of those of the shards on which an earlier run has worked.

    A storage that is no object store may hold a file whose writing was cut short; it has no tries.
    """
    folder = Place(f"{place.name}/{BEGUN}")
    there = set(folder.names())
    found: dict[int, dict[int, int]] = {}
    for shard in (shard for shard in shards if _file_of(shard) in there):
        found[shard] = {}
        with suppress(ValueError):
            found[shard] = dict(json.loads(folder.read(_file_of(shard))))
    return found


def _file_of(shard: int) -> str:
    return f"{shard:08}.json"
