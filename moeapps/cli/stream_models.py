"""Stream classifiers by the names that ``moeapps stream`` takes."""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.lazy import needs_extra

_HERE = "moeapps.streams"
# Name -> class and the settings that make it what the name says.
OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "driftmoe": (f"{_HERE}.driftmoe:DriftMoE", {"variant": "data"}),
    "driftmoe_task": (f"{_HERE}.driftmoe:DriftMoE", {"variant": "task"}),
    "hoeffding_tree": (f"{_HERE}.hoeffding_tree:HoeffdingTree", {}),
    "routed_bagging": (f"{_HERE}.routed_bagging:RoutedBagging", {}),
    "routed_bagging_accurate": (
        f"{_HERE}.routed_bagging:RoutedBagging", {"preset": "accurate"},
    ),
    "routed_bagging_fast": (f"{_HERE}.routed_bagging:RoutedBagging", {"preset": "fast"}),
    "tame": (f"{_HERE}.tame:TAME", {}),
}  # fmt: skip
RIVER: dict[str, str] = {
    "adwin_bagging": "river.ensemble:ADWINBaggingClassifier",
    "adwin_boosting": "river.ensemble:ADWINBoostingClassifier",
    "amf": "river.forest:AMFClassifier",
    "arf": "river.forest:ARFClassifier",
    "bole": "river.ensemble:BOLEClassifier",
    "efdt": "river.tree:ExtremelyFastDecisionTreeClassifier",
    "hat": "river.tree:HoeffdingAdaptiveTreeClassifier",
    "leveraging_bagging": "river.ensemble:LeveragingBaggingClassifier",
    "naive_bayes": "river.naive_bayes:GaussianNB",
    "online_bagging": "river.ensemble:BaggingClassifier",
    "online_boosting": "river.ensemble:AdaBoostClassifier",
    "river_hoeffding_tree": "river.tree:HoeffdingTreeClassifier",
    "srp": "river.ensemble:SRPClassifier",
}
NAMES = (*OWN, *RIVER)
PREFIX = "river:"

# Trees inside an ensemble split earlier than one alone: the settings of the published ensembles.
_BASE_TREE = {"grace_period": 50, "delta": 0.01}


def build(
    name: str,
    *,
    seed: int,
    nominal: tuple[int, ...] = (),
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """A new classifier.

    Args:
        name: One of :data:`NAMES`, or ``river:ClassName`` for any classifier of river.
        seed: Given to classes that take one.
        nominal: Indices of the nominal columns of the arrays.
        settings: Arguments of the class that replace its defaults.

    Raises:
        UnknownNameError: With the closest names.
        ArgumentError: The class does not take a setting, or refuses its value.
        MissingExtraError: numba or river is not installed.

    Example:
        >>> type(build("river:GaussianNB", seed=0)).__name__
        'GaussianNB'
    """
    preset: dict[str, Any] = {}
    if name in OWN:
        target, preset = OWN[name]
        cls = _load(target)
    elif name.startswith(PREFIX):
        cls = _river_class(name)
    elif name in RIVER:
        cls = _load(RIVER[name])
    else:
        hint = "Any classifier of river goes as river:ClassName."
        raise UnknownNameError("stream model", name, NAMES, hint=hint)
    parameters = inspect.signature(cls).parameters
    given = dict(preset)
    if "seed" in parameters:
        given["seed"] = seed
    if "nominal_attributes" in parameters and name in OWN:
        given["nominal_attributes"] = nominal or None
    if "model" in parameters and parameters["model"].default is inspect.Parameter.empty:
        given["model"] = _load("river.tree:HoeffdingTreeClassifier")(**_BASE_TREE)
    for key, value in (settings or {}).items():
        if key not in parameters:
            raise UnknownNameError(f"setting of {name}", key, parameters)
        given[key] = value
    try:
        return cls(**given)
    except (TypeError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(
            f"{name} cannot be made: {error}. Give values that fit with --set KEY=VALUE; "
            "composed models are for Python, with moeapps.streams.Evaluation."
        ) from error


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    with needs_extra("streams"):
        return getattr(importlib.import_module(module), attribute)


def _river_class(name: str) -> Any:
    """Any classifier of river by its class name."""
    classifier = _load("river.base:Classifier")
    import river

    found: dict[str, Any] = {}
    for module in pkgutil.iter_modules(river.__path__):
        if not module.ispkg:
            continue
        try:
            package = importlib.import_module(f"river.{module.name}")
        except ImportError:  # a part of river that needs a package of its own
            continue
        for attribute in getattr(package, "__all__", ()):
            value = getattr(package, attribute, None)
            if inspect.isclass(value) and issubclass(value, classifier):
                found[attribute] = value
    wanted = name.removeprefix(PREFIX)
    if wanted not in found:
        raise UnknownNameError("classifier of river", wanted, found)
    return found[wanted]
