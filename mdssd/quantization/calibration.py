"""The inputs of the network for images of a data set, as a detector makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mdssd.data import DetectionDataset
from mdssd.detection.detector import Detector
from mdssd.detection.reading import Image, ImageFile
from mdssd.models import SingleShotDetector


class Inputs:
    """The inputs of a network for images of a data set, made anew for each iteration.

    They come from a `Detector`, so that reading, turning, resizing, tiles and the mean are those
    of detection.

    Args:
        model: the model whose inputs they are.
        dataset: the data set.
        count: the most inputs. The images are taken from the whole data set at equal distances.
        options: keywords of `Detector`, such as `mean` and `tile`.
        workers: processes that read images, as in `Detector.stream`.

    Iterating yields {"images": float32 [1, 3, H, W]}.

    Raises:
        DataError: while iterating: an image cannot be read.

    Example:
        >>> import mdssd
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.quantization.calibration import Inputs
        >>> inputs = Inputs(mdssd.ssd300(2, width=0.0625), SyntheticScenes(5), 2, workers=0)
        >>> [one["images"].shape for one in inputs]
        [(1, 3, 300, 300), (1, 3, 300, 300)]
    """

    def __init__(
        self,
        model: SingleShotDetector,
        dataset: DetectionDataset,
        count: int,
        *,
        workers: int | None = None,
        **options: Any,
    ) -> None:
        self._recorder = _Recorder(model)
        # Without detections, as each score is below 1.
        options = {**options, "batch_size": 1, "score_threshold": 1.0, "device": "cpu"}
        self._detector = Detector(self._recorder, **options)
        images = min(count, len(dataset))
        self._indices = [len(dataset) * k // images for k in range(images)]
        self._dataset, self._count, self._workers = dataset, count, workers

    def __len__(self) -> int:
        """Return the most inputs that there are; with tiles an image has several."""
        return self._count if self._detector.tiling is not None else len(self._indices)

    def __iter__(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        left, taken = self._count, self._recorder.taken
        taken.clear()
        images = sources(self._dataset, self._indices)
        with closing(self._detector.stream(images, workers=self._workers)) as results:
            for result in results:
                if result.error is not None:
                    raise result.error
                for one in taken[:left]:
                    yield {"images": one}
                left -= len(taken)
                taken.clear()
                if left <= 0:
                    return


def sources(dataset: DetectionDataset, indices: Sequence[int]) -> Iterator[Image]:
    """Yield images of a data set as a detector takes them: as files where there are any."""
    for index in indices:
        path = dataset.image_path(index)
        if path is None:
            yield dataset[index].image
        else:
            yield ImageFile(path, dataset.upright(index), dataset.limits)


class _Recorder(nn.Module):
    """Keeps its inputs in place of computing."""

    priors: Tensor

    def __init__(self, model: SingleShotDetector) -> None:
        super().__init__()
        self.input_size, self.num_classes = model.input_size, model.num_classes
        self.register_buffer("priors", model.priors, persistent=False)
        self.taken: list[NDArray[np.float32]] = []

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.taken += [image[None].contiguous().numpy().copy() for image in images]
        shape = (len(images), len(self.priors))
        return images.new_zeros(*shape, 4), images.new_zeros(*shape, self.num_classes)
