"""The detectors: SSD and MDSSD on VGG16, SSD and DSSD on ResNet-101."""

from collections.abc import Callable, Mapping
from typing import Any

from mdssd.models.base import SingleShotDetector
from mdssd.models.dssd import DSSD, ResNetSSD, dssd321, dssd513, ssd321, ssd513
from mdssd.models.mdssd import MDSSD, mdssd300, mdssd512
from mdssd.models.resnet import load_resnet101
from mdssd.models.ssd import SSD, ssd300, ssd512
from mdssd.models.vgg import MEAN_RGB, load_vgg16
from mdssd.weights.pretrained import load_pretrained

__all__ = [
    "DSSD",
    "MDSSD",
    "MEAN_RGB",
    "SSD",
    "ResNetSSD",
    "SingleShotDetector",
    "build",
    "dssd321",
    "dssd513",
    "load_pretrained",
    "load_resnet101",
    "load_vgg16",
    "mdssd300",
    "mdssd512",
    "ssd300",
    "ssd321",
    "ssd512",
    "ssd513",
]

_MODELS: dict[str, Callable[..., SingleShotDetector]] = {
    "mdssd300": mdssd300,
    "mdssd512": mdssd512,
    "ssd300": ssd300,
    "ssd512": ssd512,
    "dssd321": dssd321,
    "dssd513": dssd513,
    "ssd321": ssd321,
    "ssd513": ssd513,
}
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

    "model" is needed, the other keys default as in that model. An unknown model, an unknown key or
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
