"""The record of a bulk job: which shards and images have ended a process."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import NamedTuple

# An image is given up if so many processes have ended while they worked on it alone.
TRIES = 2


class Begun(NamedTuple):
    """What `Record.begin` returns.

    Attributes:
        ending: whether the job is to end, so that no shard may begin.
        careful: whether a process has ended while it worked on the shard.
        given_up: the images that no process may try any more; -1 stands for all at once.
    """

    ending: bool
    careful: bool
    given_up: list[int]


class Record:
    """Counts in one process of the cluster which shards and images ended the others."""

    def __init__(self) -> None:
        self._begun: set[int] = set()
        self._tries: dict[int, Counter[int]] = defaultdict(Counter)
        self._joining: dict[int, int] = {}
        self._ending = False

    def begin(self, shard: int) -> Begun:
        careful = shard in self._begun
        if not self._ending:
            self._begun.add(shard)
        tries = self._tries.get(shard, Counter())
        given_up = [image for image, count in tries.items() if count >= TRIES]
        return Begun(self._ending, careful, given_up)

    def trying(self, shard: int, image: int) -> None:
        """Note that a process begins with an image alone."""
        self._tries[shard][image] += 1

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
