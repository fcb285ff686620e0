"""Configurations of runs: read, override, check. A class is imported only if it is allowed."""

import difflib
import inspect
import re
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from moeapps.cli.overrides import TOP_KEYS
from moeapps.errors import ConfigError
from moeapps.training.classes import check_class_path, import_class

SCHEMA = 1

_SPECIALISTS = "moeapps.vision.specialists.modules"

# Short names a configuration may use for ``class_path``.
CLASSES = {
    "AdversarialClassifier": "moeapps.vision.robust.modules.AdversarialClassifier",
    "CountingData": "moeapps.vision.counting.datamodules.CountingData",
    "CrowdCounter": "moeapps.vision.counting.modules.CrowdCounter",
    "ImageRestorer": "moeapps.vision.restoration.modules.ImageRestorer",
    "KnowledgeConcentrationModule": f"{_SPECIALISTS}.KnowledgeConcentrationModule",
    "LongTailClassifier": "moeapps.vision.longtail.modules.LongTailClassifier",
    "LongTailData": "moeapps.vision.longtail.datamodules.LongTailData",
    "MowstClassifier": "moeapps.graphs.modules.MowstClassifier",
    "MultiTaskRanker": "moeapps.recsys.modules.MultiTaskRanker",
    "NodeClassifier": "moeapps.graphs.modules.NodeClassifier",
    "NodeData": "moeapps.graphs.datamodules.NodeData",
    "PixelData": "moeapps.vision.robust.datamodules.PixelData",
    "RankingData": "moeapps.recsys.datamodules.RankingData",
    "RankingFiles": "moeapps.recsys.datamodules.RankingFiles",
    "RestorationData": "moeapps.vision.restoration.datamodules.RestorationData",
}

# Trainer arguments whose text values Lightning may read as the path of a class.
_CLASS_VALUED = ("callbacks", "logger", "plugins", "profiler", "strategy", "accelerator")


class _Loader(yaml.SafeLoader):
    """YAML with numbers as people write them (1e-3 is a number) and no key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"line {line}: the key {key!r} is given twice. Keep one.")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, *, source: str) -> Any:
    """Values in ``text``.

    Raises:
        ConfigError: Names the source and the line that is not YAML.

    Example:
        >>> parse_yaml("{lr: 1e-3}", source="example")
        {'lr': 0.001}
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{source}, {error}") from None


def read_config(path: str | Path) -> dict[str, Any]:
    """The configuration in a file, with its schema checked.

    Raises:
        ConfigError: The file is missing, is not a YAML mapping, or has another schema.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration {path}. {_nearby(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error}") from error
    config = parse_yaml(text, source=str(path))
    if not isinstance(config, dict):
        raise ConfigError(f"{path} holds {type(config).__name__}, expected 'key: value' lines.")
    check_schema(config, source=str(path))
    return config


def _nearby(path: Path) -> str:
    folder = path.parent
    names = sorted(str(p) for p in folder.glob("*.y*ml")) if folder.is_dir() else []
    close = difflib.get_close_matches(str(path), names, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else f"Nothing like it in {folder}/."


def check_schema(config: dict[str, Any], *, source: str) -> None:
    """Raise unless ``config`` is of this version's schema; the message says what to edit."""
    schema = config.get("schema")
    if schema is None:
        raise ConfigError(f"{source} has no schema. Add the line 'schema: {SCHEMA}' at its top.")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise ConfigError(
            f"{source} says 'schema: {schema}', expected a whole number from 1 to {SCHEMA}. "
            f"Change the line to 'schema: {SCHEMA}'."
        )
    if schema > SCHEMA:
        raise ConfigError(
            f"{source} says 'schema: {schema}', written for a newer moeapps; this one reads "
            f"schema {SCHEMA}. Run: pip install --upgrade moeapps"
        )


def check_config(config: dict[str, Any], *, source: str) -> None:
    """Replace short class names by full ones, and refuse unknown keys and foreign classes.

    Args:
        config: Changed in place.
        source: Name of the file, for messages.

    Raises:
        ConfigError: Names the key, with close matches.
    """
    _check_names(config, TOP_KEYS, "", source)
    for key in ("model", "data"):
        part = config.get(key)
        if isinstance(part, str):
            part = config[key] = {"class_path": part}
        if not isinstance(part, dict) or "class_path" not in part:
            raise ConfigError(
                f"{source}: {key!r} needs a class_path. Known short names: {', '.join(CLASSES)}."
            )
        _check_names(part, ("class_path", "init_args"), f"{key}.", source)
        part["class_path"] = _full_name(part["class_path"], f"{source}: {key}.class_path")
        arguments = part.setdefault("init_args", {})
        if arguments is None:
            arguments = part["init_args"] = {}
        if not isinstance(arguments, dict):
            raise ConfigError(f"{source}: {key}.init_args must be 'name: value' lines.")
        found = import_class(part["class_path"], where=f"{source}: {key}.class_path")
        _check_names(arguments, _argument_names(found), f"{key}.init_args.", source)
    _check_nested(config, "", source)
    trainer = config.setdefault("trainer", {})
    if trainer is None:
        trainer = config["trainer"] = {}
    from lightning.pytorch import Trainer

    _check_names(trainer, _argument_names(Trainer), "trainer.", source)


def _full_name(class_path: Any, where: str) -> Any:
    if isinstance(class_path, str) and "." not in class_path:
        if class_path not in CLASSES:
            close = difflib.get_close_matches(class_path, CLASSES, n=3, cutoff=0.5)
            advice = (
                f"Did you mean {' or '.join(close)}?" if close else "Known: " + ", ".join(CLASSES)
            )
            raise ConfigError(f"{where}: unknown class {class_path!r}. {advice}")
        return CLASSES[class_path]
    return class_path


def _argument_names(found: type[Any]) -> list[str]:
    """Names the constructor takes, through ``**kwargs`` up to its parents."""
    names: list[str] = []
    for parent in found.__mro__:
        if "__init__" not in vars(parent):
            continue
        parameters = list(inspect.signature(vars(parent)["__init__"]).parameters.values())[1:]
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names += [p.name for p in parameters if p.kind in named]
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return names


def _check_names(given: Any, known: Iterable[str], prefix: str, source: str) -> None:
    if not isinstance(given, dict):
        raise ConfigError(f"{source}: {prefix.rstrip('.')} must be 'key: value' lines.")
    known = list(known)
    for key in given:
        if key not in known:
            raise unknown_key(f"{prefix}{key}", [f"{prefix}{name}" for name in known], source)


def unknown_key(key: str, known: Sequence[str], source: str = "") -> ConfigError:
    """The error for a key that is not known, with the closest ones."""
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.7)
    last = [name.rpartition(".")[2] for name in known]
    advice = f"Did you mean {' or '.join(close)}?" if close else "Known: " + ", ".join(last) + "."
    where = f"{source}: unknown" if source else "Unknown"
    return ConfigError(f"{where} key {key!r}. {advice}")


def _check_nested(value: Any, where: str, source: str) -> None:
    """Walk the configuration: every class it names must be allowed, wherever it stands."""
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{where}.{key}" if where else str(key)
            if key == "class_path" and "." in str(inner):  # Lightning finds its own short names
                check_class_path(inner, where=f"{source}: {here}")
            elif where == "trainer" and key in _CLASS_VALUED:
                for text in inner if isinstance(inner, list) else [inner]:
                    if isinstance(text, str) and "." in text:
                        check_class_path(text, where=f"{source}: {here}")
            _check_nested(inner, here, source)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_nested(inner, f"{where}[{index}]", source)
