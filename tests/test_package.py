"""What the package promises as a whole: a light import, an honest registry, errors that help."""

import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

import moeapps
from moeapps.errors import MissingExtraError, UnknownNameError
from moeapps.registry import MODELS, create_model, list_models, model_info

HEAVY = (
    "torch",
    "lightning",
    "torch_geometric",
    "numpy",
    "scipy",
    "matplotlib",
    "pandas",
    "numba",
    "river",
)


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize(
    "module",
    [
        *("moeapps", "moeapps.registry", "moeapps.errors", "moeapps.graphs"),
        "moeapps.recsys",
        "moeapps.streams",
    ],
)
def test_import_loads_nothing_heavy(module):
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_import_costs_under_50_ms_of_cpu():
    code = (
        "import time; start = time.process_time(); import moeapps; "
        "print(time.process_time() - start)"
    )
    assert min(float(run_python(code)) for _ in range(3)) < 0.050


@pytest.mark.parametrize("package", ["gating", "kernels"])
def test_the_core_needs_torch_only(package):
    others = tuple(m for m in HEAVY if m not in ("torch", "numpy"))
    code = f"import sys, moeapps.{package}; print([m for m in {others} if m in sys.modules])"
    assert run_python(code).strip() == "[]"


@pytest.mark.parametrize("name", MODELS)
def test_registry_names_a_callable_that_exists(name):
    module, _, attribute = MODELS[name].target.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


@pytest.mark.parametrize("name", MODELS)
def test_registry_examples_are_plain(name):
    assert json.loads(json.dumps(MODELS[name].example)) == MODELS[name].example


def test_list_models_matches_full_and_short_names():
    assert list_models("graphs/mowst") == list_models("mowst") == ["graphs/mowst"]
    assert list_models("nothing*") == []
    assert len(list_models()) == len(MODELS)


def test_unknown_model_offers_the_closest_name():
    with pytest.raises(UnknownNameError, match="Did you mean 'mowst'") as error:
        model_info("mowts")
    assert "moeapps list" in str(error.value)
    with pytest.raises(KeyError):
        create_model("vision/gcn")


@pytest.mark.parametrize("package", ["graphs", "recsys", "streams", "vision"])
def test_no_lazy_name_is_hidden_by_a_module_of_that_name(package):
    room = importlib.import_module(f"moeapps.{package}")
    modules = {module.name for module in pkgutil.iter_modules(room.__path__)}
    assert not modules & set(room.__all__)


def test_missing_extra_names_the_command(monkeypatch):
    for module in list(sys.modules):
        if module.startswith("moeapps.graphs.models"):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    with pytest.raises(MissingExtraError, match=r'pip install "moeapps\[graphs\]"'):
        create_model("gcn", **MODELS["gcn"].example)


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'grafs'"):
        _ = moeapps.grafs


def test_a_config_without_its_extra_names_the_command(monkeypatch):
    from moeapps.training.classes import import_class

    monkeypatch.delitem(sys.modules, "moeapps.graphs.datamodules", raising=False)
    monkeypatch.setitem(sys.modules, "torch_geometric.utils", None)
    with pytest.raises(MissingExtraError, match=r'pip install "moeapps\[graphs\]"'):
        import_class("moeapps.graphs.datamodules.NodeData")
