"""The options of the constructors: everything follows one list."""

import inspect
from dataclasses import asdict, fields

import pytest

import mdssd
from mdssd import zoo
from mdssd.models import ModelOptions
from mdssd.models.build import default_options, input_size
from mdssd.models.options import PRIOR_OPTIONS, OptionKeywords
from mdssd.names import MODELS
from mdssd.training.recipe_files import MODEL_OPTIONS

NAMES = [field.name for field in fields(ModelOptions)]


def test_options_are_listed_once():
    assert ["num_classes", *OptionKeywords.__annotations__] == NAMES
    assert set(PRIOR_OPTIONS) < set(NAMES)
    assert set(MODEL_OPTIONS) == {"model", *NAMES} - {"num_classes"}
    assert sorted(zoo.__all__) == sorted(["create", *MODELS])


@pytest.mark.parametrize("model", MODELS)
def test_signatures_show_the_defaults_in_use(model):
    parameters = inspect.signature(getattr(mdssd, model)).parameters
    assert list(parameters) == [*NAMES, "init"]
    shown = {name: parameters[name].default for name in NAMES}
    assert shown == asdict(default_options(model))
    assert [p.kind for p in parameters.values()] == [
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        *[inspect.Parameter.KEYWORD_ONLY] * len(NAMES),
    ]
    made = getattr(mdssd, model)(width=0.0625)
    assert made.config() == {"model": model, **shown, "width": 0.0625}
    assert made.input_size == input_size(model)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        mdssd.ssd300(2, depth=3)
