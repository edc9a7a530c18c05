"""min-dalle's model files without the package's own start, which switches gradients off for all."""

import importlib
import importlib.util
import sys
import types

import pytest


def peer(module: str) -> types.ModuleType:
    """Import one file of min-dalle, or skip the test where it is not installed."""
    spec = importlib.util.find_spec("min_dalle")
    if spec is None:
        pytest.skip("needs `pip install --no-deps min-dalle emoji`")
    package = types.ModuleType("min_dalle")
    package.__path__ = list(spec.submodule_search_locations)
    before = {n: m for n, m in sys.modules.items() if n.split(".")[0] == "min_dalle"}
    for name in before:
        del sys.modules[name]
    sys.modules["min_dalle"] = package
    try:
        return importlib.import_module(f"min_dalle.{module}")
    except ImportError as error:
        pytest.skip(f"min-dalle cannot be imported: {error}")
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] == "min_dalle"]:
            del sys.modules[name]
        sys.modules.update(before)
