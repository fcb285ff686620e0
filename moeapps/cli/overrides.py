"""Overrides on the command line: ``--model.hidden_channels 64``, ``--set.data.seed 3``."""

from collections.abc import Iterable, Sequence
from typing import Any

from moeapps.errors import ConfigError

TOP_KEYS = ("schema", "seed_everything", "model", "data", "trainer")


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Part overrides such as ``--model.hidden_channels 64`` from the command's own flags.

    Returns:
        The other arguments, and pairs of dotted key and text.

    Raises:
        ConfigError: An override has no value.

    Example:
        >>> split_overrides(["--runs", "out", "--set.data.seed", "3", "--model.dropout=0.1"])
        (['--runs', 'out'], [('data.seed', '3'), ('model.dropout', '0.1')])
    """
    rest: list[str] = []
    pairs: list[tuple[str, str]] = []
    queue = list(arguments)
    while queue:
        token = queue.pop(0)
        flag, equals, value = token.partition("=")
        key = flag.removeprefix("--").removeprefix("set.")
        dotted = "." in flag or (key in TOP_KEYS and key != "schema")
        if not flag.startswith("--") or not dotted:
            rest.append(token)
            continue
        if not equals:
            if not queue or queue[0].startswith("--"):
                raise ConfigError(f"{flag} has no value. Write {flag} VALUE; for a switch, true.")
            value = queue.pop(0)
        pairs.append((key, value))
    return rest, pairs


def apply_overrides(config: dict[str, Any], overrides: Iterable[tuple[str, str]]) -> None:
    """Set dotted keys in ``config``. ``model.x`` and ``data.x`` mean their ``init_args``.

    Raises:
        ConfigError: A key is unknown, or runs through something that is no mapping.

    Example:
        >>> config = {"model": {"class_path": "MowstClassifier"}}
        >>> apply_overrides(config, [("model.dropout", "0.1")])
        >>> config
        {'model': {'class_path': 'MowstClassifier', 'init_args': {'dropout': 0.1}}}
    """
    from moeapps.cli.configs import parse_yaml, unknown_key

    for key, text in overrides:
        value = parse_yaml(text, source=f"--{key}")
        parts = key.split(".")
        if parts[0] not in TOP_KEYS:
            raise unknown_key(key, [f"{top}.{'.'.join(parts[1:])}" for top in TOP_KEYS])
        if parts[0] in ("model", "data"):
            if len(parts) == 1:
                parts = [parts[0], "class_path"]
            elif parts[1] not in ("class_path", "init_args"):
                parts.insert(1, "init_args")
        here = config
        for part in parts[:-1]:
            if here.get(part) is None:
                here[part] = {}
            here = here[part]
            if not isinstance(here, dict):
                raise ConfigError(f"--{key}: {part!r} is a single value and has no key below it.")
        here[parts[-1]] = value
