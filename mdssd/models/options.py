"""The options of the models' constructors."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, TypedDict

from mdssd.models.timm_trunk import check_timm
from mdssd.names import TRUNKS
from mdssd.priors import Sizes

# Upper limits, so that a mistyped number or a hostile file cannot ask for a model that no memory
# holds. COCO has 80 classes and LVIS 1,203; the models of the papers have width 1.
MAX_CLASSES = 10_000
MAX_WIDTH = 4
# The options that decide the priors.
PRIOR_OPTIONS = ("prior_scales", "clip_priors", "truncate_sizes")


@dataclass(frozen=True)
class ModelOptions:
    """The options of a model; `mdssd.ssd300` describes each.

    A new option is a field here, its type in `OptionKeywords`, and the code that uses it. The
    constructors' signatures, `model.config()`, checkpoints and recipes follow the fields.

    Example:
        >>> from mdssd.models import ModelOptions
        >>> ModelOptions(3, width=0.5)  # doctest: +NORMALIZE_WHITESPACE
        ModelOptions(num_classes=3, width=0.5, batch_norm=False, prior_scales='voc',
                     clip_priors=False, truncate_sizes=False, trunk='vgg16', light=False)
    """

    num_classes: int = 21
    _: KW_ONLY
    width: float = 1.0
    batch_norm: bool = False
    prior_scales: str | Sizes = "voc"
    clip_priors: bool | str = False
    truncate_sizes: bool = False
    trunk: str = "vgg16"
    light: bool = False

    def __post_init__(self) -> None:
        # JSON and TOML have lists. Whether these are sizes is checked with the layers of the model.
        object.__setattr__(self, "prior_scales", _tuples(self.prior_scales, 3))

    def check(self, model: str) -> None:
        """Raise a ValueError that begins with `model` if a value is out of range.

        `prior_scales` is checked by the functions of `mdssd.priors`.
        """
        classes: Any = self.num_classes
        if type(classes) is not int or not 2 <= classes <= MAX_CLASSES:
            raise ValueError(
                f"{model}: num_classes must be an integer from 2 (background and one class) to "
                f"{MAX_CLASSES}, got {classes!r}"
            )
        width: Any = self.width
        if type(width) not in (int, float) or not 0 < width <= MAX_WIDTH:
            raise ValueError(
                f"{model}: width must be a number above 0 and at most {MAX_WIDTH}, got {width!r}"
            )
        if self.trunk not in TRUNKS:
            check_timm(model, self.trunk)
        for name in ("batch_norm", "clip_priors", "truncate_sizes", "light"):
            value = getattr(self, name)
            if (name, value) != ("clip_priors", "size") and not isinstance(value, bool):
                raise ValueError(f"{model}: {name} must be True or False, got {value!r}")


class OptionKeywords(TypedDict, total=False):
    """The keyword-only fields of `ModelOptions`, for type checkers and editors."""

    width: float
    batch_norm: bool
    prior_scales: str | Sizes
    clip_priors: bool | str
    truncate_sizes: bool
    trunk: str
    light: bool


def _tuples(value: Any, depth: int) -> Any:
    if depth and isinstance(value, list | tuple):
        return tuple(_tuples(inner, depth - 1) for inner in value)
    return value
