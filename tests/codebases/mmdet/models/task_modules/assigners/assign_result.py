"""What an assigner returns."""

import dataclasses
from typing import Any


@dataclasses.dataclass
class AssignResult:
    num_gts: int
    gt_inds: Any
    max_overlaps: Any
    labels: Any
