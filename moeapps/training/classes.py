"""Which classes a configuration, checkpoint or exported folder may name, and how they are found.

A configuration is data. It may come from a stranger, so naming a class must not be a way to run
other code: only moeapps, PyTorch's optimisers and Lightning can be named.
"""

from typing import Any

from moeapps.errors import ConfigError
from moeapps.lazy import import_part

ALLOWED_PREFIXES = ("moeapps.", "torch.optim.", "lightning.pytorch.")


def check_class_path(class_path: object, *, where: str = "class_path") -> str:
    """The class path, if it may be named.

    Args:
        class_path: Dotted path of a class.
        where: Key of the configuration it stands under, for the message.

    Raises:
        ConfigError: If it is not text or lies outside the allowed packages.

    Example:
        >>> check_class_path("torch.optim.AdamW")
        'torch.optim.AdamW'
    """
    if not isinstance(class_path, str) or not class_path.startswith(ALLOWED_PREFIXES):
        raise ConfigError(
            f"{where} names {class_path!r}, which a configuration may not use. Allowed are classes "
            f"of {', '.join(prefix + '*' for prefix in ALLOWED_PREFIXES)}. For other classes, "
            "write a short Python script instead of a configuration."
        )
    return class_path


def import_class(class_path: str, *, where: str = "class_path") -> type[Any]:
    """Import an allowed class.

    Args:
        class_path: Dotted path of a class.
        where: Key of the configuration it stands under, for messages.

    Raises:
        ConfigError: If the path is not allowed, does not exist or is not a class.
        MissingExtraError: If a package that its domain needs is not installed.

    Example:
        >>> import_class("torch.optim.AdamW").__name__
        'AdamW'
    """
    check_class_path(class_path, where=where)
    module_name, _, name = class_path.rpartition(".")
    try:
        found = getattr(import_part(module_name), name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise  # the class exists; a package it needs does not
        raise ConfigError(f"{where}: there is no module {module_name!r}.") from error
    except AttributeError as error:
        raise ConfigError(f"{where}: {module_name} has no class {name!r}.") from error
    if not isinstance(found, type):
        raise ConfigError(f"{where}: {class_path} is not a class.")
    return found
