"""Models by their names: their networks, their input sizes, and a model from a config."""

from collections.abc import Mapping
from dataclasses import fields
from itertools import permutations
from typing import Any

from mdssd.models.base import SingleShotDetector
from mdssd.models.dssd import DSSD, ResNetSSD
from mdssd.models.mdssd import MDSSD
from mdssd.models.options import ModelOptions
from mdssd.models.ssd import SSD
from mdssd.names import INPUT_SIZES, MODELS
from mdssd.priors.maps import InputSize, check_input_size

_NETWORKS: tuple[type[SingleShotDetector], ...] = (MDSSD, SSD, DSSD, ResNetSSD)
_BY_NAME: dict[str, tuple[type[SingleShotDetector], InputSize]] = {
    network.model_name(size): (network, size)
    for network in _NETWORKS
    for size in (*network.paper_sizes, *INPUT_SIZES, *permutations(INPUT_SIZES, 2))
}


def network_of(
    model: Any, where: str = "model: expected"
) -> tuple[type[SingleShotDetector], InputSize]:
    """Return the class and the input size of the model of this name.

    Args:
        model: the name.
        where: what the message about a wrong name begins with, up to what is expected.

    Raises:
        ValueError: there is no such model.

    Example:
        >>> from mdssd.models.build import network_of
        >>> network_of("ssd640")
        (<class 'mdssd.models.ssd.SSD'>, 640)
    """
    if not isinstance(model, str) or model not in _BY_NAME:
        got = repr(model)
        got = got if len(got) <= 60 else f"{got[:57]}..."
        raise ValueError(
            f"{where} one of {', '.join(MODELS)}, or such a name with another input size, "
            f"as in mdssd640 or mdssd640x384 ({INPUT_SIZES[0]} to {INPUT_SIZES[-1]} in steps of "
            f"{INPUT_SIZES.step}); got {got}"
        )
    return _BY_NAME[model]


def input_size(model: str) -> InputSize:
    """Return the side, or (width, height), of the images of the model of this name, in pixels.

    Raises:
        ValueError: there is no such model.

    Example:
        >>> from mdssd.models.build import input_size
        >>> input_size("mdssd640"), input_size("mdssd640x384")
        (640, (640, 384))
    """
    return network_of(model)[1]


def with_input_size(model: str, size: InputSize | None) -> str:
    """Return the name of the model with another input size; None leaves it as it is.

    Raises:
        ValueError: there is no such model, or it cannot have this size.

    Example:
        >>> from mdssd.models.build import with_input_size
        >>> with_input_size("mdssd300", 640), with_input_size("ssd321", 640)
        ('mdssd640', 'resnetssd640')
    """
    network, own = network_of(model)
    if size is None or size == own:
        return model
    check_input_size("--input-size: expected", size, network.paper_sizes)
    return network.model_name(size)


def default_options(model: Any) -> ModelOptions:
    """The options that the model of this name has if none are given."""
    network, size = network_of(model)
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
    network, size = network_of(config.get("model"), "build: config['model'] must be")
    options = {key: value for key, value in config.items() if key != "model"}
    known = tuple(field.name for field in fields(ModelOptions))
    unknown = sorted(set(options) - set(known), key=str)
    if unknown:
        raise ValueError(f"build: config keys must be 'model' and {known}, got {unknown}")
    return network.create(size, **options)
