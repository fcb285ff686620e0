r"""From the raw columns of a log to ids and scaled numbers, fitted on the training split only."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Many
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from moeapps.errors import ArgumentError, CheckpointError, UnknownNameError
from moeapps.recsys.dense_statistics import DenseStatistics, dense_values, scale
from moeapps.recsys.schema import Dense, Embedded, Feature, FeatureSchema, as_schema
from moeapps.recsys.vocabularies import IdTable, ValueCounts, group_ids

Array = NDArray[Any]
Columns = Mapping[str, Any]

_STATE = ("vocabularies", "statistics", "indicators", "group")


class Encoder:
    r"""Turns raw columns into those that :func:`moeapps.recsys.batch.pack` takes.

    Values of a categorical feature, a bag or a sequence become ids :math:`1, 2, \ldots` in order of
    value; those seen less than ``min_count`` times in the training split, new later or missing
    (None, NaN, empty text) become 0. Features that share a table share the vocabulary. Dense
    features are transformed:

    ============ =======================================================================
    ``none``     :math:`x`
    ``log1p``    :math:`\mathrm{sign}(x) \log(1 + |x|)`
    ``standard`` :math:`(x - \mathrm{mean}) / \mathrm{std}`
    ``minmax``   :math:`(x - \min) / (\max - \min)`
    ``quantile`` share of training values that are at most :math:`x`, to a thousandth
    ============ =======================================================================

    with mean, standard deviation, range and quantiles of the training split. A missing number
    becomes 0 after the transform. Columns that are no features pass unchanged.

    Where the group key is also a feature, the groups of :meth:`transform` are in the column
    ``<name>/group``: ids fold all unknown users into one.

    Build one with :meth:`fit` or :meth:`from_dict`; its state is plain values.

    Args:
        schema: Features with their final vocabulary sizes.
        vocabularies: Kept values by name of the feature that owns the table, in order of id.
        statistics: Numbers of the transform by name of the dense feature, a list per column.
        indicators: Dense features that get a further column ``<name>/missing``.
        group: Raw column of the group key.

    Example:
        >>> from moeapps.recsys.schema import Categorical, Dense
        >>> draft = FeatureSchema([Categorical("city", 1, 4), Dense("age", transform="minmax")])
        >>> train = {"city": ["Rome", "Oslo", "Rome"], "age": [20, 30, 40]}
        >>> encoder = Encoder.fit(train, draft)
        >>> encoder.schema["city"].vocab_size
        3
        >>> new = encoder.transform({"city": ["Rome", "Lima", None], "age": [30, 60, np.nan]})
        >>> new["city"].tolist(), new["age"].tolist()
        ([2, 0, 0], [0.5, 2.0, 0.0])
    """

    def __init__(
        self,
        schema: FeatureSchema,
        vocabularies: Mapping[str, Many[Any]],
        statistics: Mapping[str, Many[Many[float]]],
        *,
        indicators: Iterable[str] = (),
        group: str | None = None,
    ) -> None:
        self.schema = schema
        self.vocabularies = {name: list(values) for name, values in vocabularies.items()}
        self.statistics = {name: [list(s) for s in one] for name, one in statistics.items()}
        self.indicators = list(indicators)
        self.group = group
        self._tables = {name: IdTable(name, kept) for name, kept in self.vocabularies.items()}

    @classmethod
    def fit(
        cls,
        columns: Columns | Iterable[Columns],
        schema: FeatureSchema | Mapping[str, Any],
        *,
        min_count: int | Mapping[str, int] = 1,
        missing_indicator: bool = False,
    ) -> Self:
        """Learn vocabularies and statistics.

        Args:
            columns: The raw training split, whole or as an iterable of blocks of it.
            schema: A draft: its vocabulary sizes are replaced by those found.
            min_count: How often a value has to occur to get an id: for all features, or by name
                of the feature that owns the table (others: 1).
            missing_indicator: Add a 0/1 column for each dense feature that has gaps.

        Raises:
            UnknownNameError: A column is missing.
            ArgumentError: A column has another type or is infinite somewhere.
        """
        draft = as_schema(schema)
        counts = {_owner(f): ValueCounts() for f in draft.embedded}
        statistics = {f.name: DenseStatistics(f) for f in draft.dense}
        for block in [columns] if isinstance(columns, Mapping) else columns:
            for feature in draft.embedded:
                values, _ = _flat(feature.name, _get(block, feature.name))
                counts[_owner(feature)].update(feature.name, values)
            for dense in draft.dense:
                statistics[dense.name].update(dense_values(dense, _get(block, dense.name)))
        kept = {
            name: found.kept(min_count if isinstance(min_count, int) else min_count.get(name, 1))
            for name, found in counts.items()
        }
        indicators = [n for n, s in statistics.items() if missing_indicator and s.has_gaps]
        group = draft.group_key
        is_feature = group in {f.name for f in draft.embedded}
        return cls(
            FeatureSchema(
                [*(_sized(f, kept) for f in draft.features), *map(_indicator, indicators)],
                f"{group}/group" if is_feature else group,
            ),
            kept,
            {name: found.finish() for name, found in statistics.items()},
            indicators=indicators,
            group=group,
        )

    def transform(self, columns: Columns) -> dict[str, Any]:
        """Encode the features; all other columns pass unchanged.

        Args:
            columns: Raw arrays by name; bags and sequences as a pair of values and offsets, as
                lists of values or as a padded array ``[B, L]``.

        Raises:
            UnknownNameError: A feature's column is missing.
            ArgumentError: A column has another type or is infinite somewhere.
        """
        encoded = dict(columns)
        for feature in self.schema.embedded:
            values, shape = _flat(feature.name, _get(columns, feature.name))
            encoded[feature.name] = shape(self._tables[_owner(feature)].ids(feature.name, values))
        for name, statistics in self.statistics.items():
            dense = self.schema[name]
            assert isinstance(dense, Dense)
            raw = dense_values(dense, _get(columns, name))
            pairs = zip(raw.T, statistics, strict=True)
            scaled = np.stack([scale(dense.transform, x, s) for x, s in pairs], axis=1)
            gaps = np.isnan(raw)
            scaled = np.where(gaps, 0, scaled).astype(np.float32)
            encoded[name] = scaled[:, 0] if dense.width == 1 else scaled
            if name in self.indicators:
                encoded[_indicator(name).name] = gaps.any(1).astype(np.float32)
        if self.group is not None and self.group in columns:
            assert self.schema.group_key is not None
            encoded[self.schema.group_key] = group_ids(self.group, columns[self.group])
        return encoded

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and checkpoints."""
        state = {name: getattr(self, name) for name in _STATE}
        return {"schema": self.schema.to_dict(), **state}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`.

        Raises:
            CheckpointError: The values are not those of an encoder.
        """
        try:
            schema = FeatureSchema.from_dict(state["schema"])
            return cls(schema, **{name: state[name] for name in _STATE})
        except (KeyError, TypeError, AttributeError, ArgumentError) as error:
            raise CheckpointError(
                f"The state of the encoder is damaged ({type(error).__name__}: {error}). Expected "
                "what Encoder.to_dict gives: use another checkpoint."
            ) from error


def _owner(feature: Embedded) -> str:
    return feature.shared_with or feature.name


def _sized(feature: Feature, kept: Mapping[str, Many[Any]]) -> Feature:
    if isinstance(feature, Dense):
        return feature
    return dataclasses.replace(feature, vocab_size=len(kept[_owner(feature)]) + 1)


def _indicator(name: str) -> Dense:
    return Dense(f"{name}/missing")


def _get(columns: Columns, name: str) -> Any:
    if name not in columns:
        raise UnknownNameError("column", name, columns, "A feature of the schema reads it.")
    return columns[name]


def _flat(name: str, column: Any) -> tuple[Array, Callable[[Array], Any]]:
    """All values of a column in one vector, and how to give ids the column's form."""
    if isinstance(column, Mapping):
        column = (column["values"], column["offsets"])
    if isinstance(column, tuple) and len(column) == 2:
        offsets = np.asarray(column[1])
        return _vector(column[0]), lambda ids: (ids, offsets)
    if _is_nested(column):
        lengths = np.array([len(row) for row in column])
        starts = np.cumsum(lengths) - lengths
        return _vector([v for row in column for v in row]), lambda ids: (ids, starts)
    values = _vector(column)
    if values.ndim not in (1, 2):
        raise ArgumentError(
            f"Column {name!r} has shape {list(values.shape)}. Expected [B], or padded [B, L] for "
            "a feature with several values per row."
        )
    return values.reshape(-1), lambda ids: ids.reshape(values.shape)


def _is_nested(column: Any) -> bool:
    """A list or an object array of lists."""
    flat = isinstance(column, np.ndarray) and (column.dtype != object or column.ndim != 1)
    return not flat and len(column) > 0 and isinstance(column[0], (list, tuple, np.ndarray))


def _vector(values: Any) -> Array:
    """A list with texts or gaps as objects, so that numpy neither pads nor converts them."""
    if isinstance(values, list) and any(v is None or isinstance(v, str) for v in values):
        return np.array(values, dtype=object)
    return np.asarray(values)
