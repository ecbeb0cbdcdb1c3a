"""`Detections` of supervision 0.31, as far as the tests use it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass
class Detections:
    """Boxes with a confidence, a class and more for each."""

    xyxy: NDArray[np.float32]
    mask: NDArray[np.bool_] | None = None
    confidence: NDArray[np.float32] | None = None
    class_id: NDArray[np.int64] | None = None
    tracker_id: NDArray[np.int64] | None = None
    data: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.xyxy.ndim == 2 and self.xyxy.shape[1] == 4
        for values in (self.confidence, self.class_id, *self.data.values()):
            assert values is None or np.asarray(values).shape == (len(self.xyxy),)

    def __len__(self) -> int:
        return len(self.xyxy)

    def __getitem__(self, index: Any) -> Detections:
        def chosen(values: Any) -> Any:
            return None if values is None else values[index]

        fields = (self.xyxy, self.mask, self.confidence, self.class_id, self.tracker_id)
        data = {name: np.asarray(values)[index] for name, values in self.data.items()}
        return Detections(*map(chosen, fields), data)  # type: ignore[arg-type]

    @classmethod
    def empty(cls) -> Detections:
        boxes, scores = np.empty((0, 4), np.float32), np.empty(0, np.float32)
        return cls(boxes, confidence=scores, class_id=np.empty(0, np.int64))
