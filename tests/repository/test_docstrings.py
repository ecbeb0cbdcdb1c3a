"""Every public docstring has an example, and every example runs."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import mdssd

# Modules whose public names are functions and classes that users call, besides those in __all__
# of the packages.
PUBLIC = {
    "mdssd": mdssd.__all__,
    **{
        name: importlib.import_module(name).__all__
        for name in ("mdssd.ops", "mdssd.data", "mdssd.metrics", "mdssd.models")
    },
    "mdssd.bulk": ["Pool", "detect"],
    "mdssd.priors": ["make_priors"],
    "mdssd.drawing": ["draw_detections"],
    "mdssd.weights.checkpoint": ["load_checkpoint", "save_checkpoint"],
    "mdssd.weights.convert": ["convert"],
    "mdssd.detection.export": ["export"],
    "mdssd.detection.files": ["detect"],
    "mdssd.evaluation.evaluate": ["evaluate"],
    "mdssd.evaluation.submission": ["write_submission"],
    "mdssd.inspection.check": ["check_data"],
    "mdssd.quantization.quantize": ["quantize"],
    "mdssd.training.loop": ["train"],
    "mdssd.training.settings": ["Recipe"],
}
METHODS = {"Detector": ["__call__", "from_checkpoint", "stream"]}


def modules():
    found = pkgutil.walk_packages(mdssd.__path__, "mdssd.")
    # Triton's modules are kernels; the native modules and __main__ have no docstrings to run.
    skipped = (".triton", "._C", "._simt", ".__main__")
    return ["mdssd", *(m.name for m in found if not any(part in m.name for part in skipped))]


def public_objects():
    for module, names in PUBLIC.items():
        for name in names:
            thing = getattr(importlib.import_module(module), name)
            if callable(thing):
                yield f"{module}.{name}", thing
                for method in METHODS.get(name, []):
                    yield f"{module}.{name}.{method}", getattr(thing, method)


@pytest.mark.parametrize("name", modules())
def test_the_examples_of_a_module_run(name):
    module = importlib.import_module(name)
    # Without the names of the module, so that an example can be copied as it stands.
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(module, globs={"__name__": name}, optionflags=flags)
    assert result.failed == 0


@pytest.mark.parametrize("name, thing", public_objects())
def test_a_public_docstring_has_an_example(name, thing):
    text = inspect.getdoc(thing) or ""
    assert ">>>" in text, f"{name}: the docstring has no example"
    if inspect.isfunction(thing) and inspect.signature(thing).parameters:
        assert "Args:" in text or "arguments are those of" in text, f"{name}: no section Args"
