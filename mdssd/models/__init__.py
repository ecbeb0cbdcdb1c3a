"""The detectors: SSD and MDSSD on VGG16."""

from collections.abc import Mapping
from typing import Any

from mdssd.models.base import SingleShotDetector
from mdssd.models.mdssd import MDSSD, mdssd300, mdssd512
from mdssd.models.ssd import SSD, ssd300, ssd512
from mdssd.models.vgg import MEAN_RGB, load_vgg16

__all__ = [
    "MDSSD",
    "MEAN_RGB",
    "SSD",
    "SingleShotDetector",
    "build",
    "load_vgg16",
    "mdssd300",
    "mdssd512",
    "ssd300",
    "ssd512",
]

_MODELS = {"mdssd300": mdssd300, "mdssd512": mdssd512, "ssd300": ssd300, "ssd512": ssd512}
_OPTIONS = (
    "num_classes",
    "width",
    "batch_norm",
    "prior_scales",
    "clip_priors",
    "truncate_sizes",
)


def build(config: Mapping[str, Any]) -> SingleShotDetector:
    """The model that `config` describes, with fresh weights; `config` as `model.config()` gives it.

    "model" is needed, the other keys default as in `mdssd300`. An unknown model, an unknown key or
    a value out of range is a ValueError.
    """
    name = config.get("model")
    if not isinstance(name, str) or name not in _MODELS:
        raise ValueError(f"build: config['model'] must be one of {list(_MODELS)}, got {name!r}")
    options = {key: value for key, value in config.items() if key != "model"}
    unknown = sorted(set(options) - set(_OPTIONS), key=str)
    if unknown:
        raise ValueError(f"build: config keys must be 'model' and {_OPTIONS}, got {unknown}")
    return _MODELS[name](**options)
