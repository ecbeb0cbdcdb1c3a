"""Models by their names: their networks, their input sizes, and a model from a config."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from mdssd.models.base import SingleShotDetector
from mdssd.models.dssd import DSSD, ResNetSSD
from mdssd.models.mdssd import MDSSD
from mdssd.models.options import ModelOptions
from mdssd.models.ssd import SSD

_NETWORKS: dict[str, tuple[type[SingleShotDetector], int]] = {
    "mdssd300": (MDSSD, 300),
    "mdssd512": (MDSSD, 512),
    "ssd300": (SSD, 300),
    "ssd512": (SSD, 512),
    "dssd321": (DSSD, 321),
    "dssd513": (DSSD, 513),
    "ssd321": (ResNetSSD, 321),
    "ssd513": (ResNetSSD, 513),
}
# The side of each model's images, in pixels.
INPUT_SIZES = {name: size for name, (_, size) in _NETWORKS.items()}


def default_options(model: str) -> ModelOptions:
    """The options that the model of this name has if none are given."""
    network, size = _NETWORKS[model]
    return network.default_options(size)


def build(config: Mapping[str, Any]) -> SingleShotDetector:
    """Make the model that `config` describes, with fresh weights.

    Args:
        config: as `model.config()` returns it. "model" is required; the other keys default to the
            model's own options.

    Raises:
        ValueError: the model or a key is unknown, or a value is out of range.

    Example:
        >>> from mdssd.models import build
        >>> model = build({"model": "ssd300", "num_classes": 3, "width": 0.0625})
        >>> model.name, model.num_classes, model.options.prior_scales
        ('ssd300', 3, 'voc')
    """
    name = config.get("model")
    if not isinstance(name, str) or name not in _NETWORKS:
        raise ValueError(f"build: config['model'] must be one of {list(_NETWORKS)}, got {name!r}")
    options = {key: value for key, value in config.items() if key != "model"}
    known = tuple(field.name for field in fields(ModelOptions))
    unknown = sorted(set(options) - set(known), key=str)
    if unknown:
        raise ValueError(f"build: config keys must be 'model' and {known}, got {unknown}")
    network, size = _NETWORKS[name]
    return network.create(size, **options)
