"""Where data lives: an argument, then ``MOEAPPS_DATA``, then the user's cache."""

import os
from pathlib import Path


def data_home(root: str | Path | None = None) -> Path:
    """Folder under which every data set has its own folder. It need not exist yet.

    Args:
        root: Used when given. Otherwise the environment variable ``MOEAPPS_DATA``, otherwise
            ``moeapps`` in the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``).

    Example:
        >>> data_home("somewhere").name
        'somewhere'
    """
    if root is not None:
        return Path(root).expanduser()
    if named := os.environ.get("MOEAPPS_DATA"):
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG rules say that a relative path must be ignored.
    base = Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache"
    return base / "moeapps"
