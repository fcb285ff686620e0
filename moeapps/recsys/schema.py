"""What the columns of a log are and what is predicted from them: plain data, no tensors.

One schema describes the data set, the model and the exported program. Id 0 means unknown in every
vocabulary, so real ids start at 1.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

from moeapps.errors import ArgumentError, UnknownNameError

RESERVED = ("cat", "dense", "labels", "mask", "group", "weight")
TRANSFORMS = ("none", "log1p", "standard", "minmax", "quantile")


@dataclass(frozen=True)
class Dense:
    """Numbers, passed to the network as they are or through a linear map.

    Args:
        name: Column.
        width: Numbers per row.
        transform: What the encoder does to them.
        project: Width of a linear map before the network; None for none.
    """

    name: str
    width: int = 1
    transform: Literal["none", "log1p", "standard", "minmax", "quantile"] = "none"
    project: int | None = None
    kind: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        _positive(self, "width", "project")
        _one_of(self, "transform", TRANSFORMS)

    @property
    def out_width(self) -> int:
        """Width inside the flat input."""
        return self.width if self.project is None else self.project


@dataclass(frozen=True)
class Categorical:
    """One id per row.

    Args:
        name: Column.
        vocab_size: Rows of the table, the unknown id 0 included.
        dim: Width of the embedding.
        shared_with: Name of the feature whose table this one reads.
    """

    name: str
    vocab_size: int
    dim: int
    shared_with: str | None = None
    kind: ClassVar[str] = "categorical"

    def __post_init__(self) -> None:
        _positive(self, "vocab_size", "dim")


@dataclass(frozen=True)
class MultiHot:
    """Any number of ids per row, in no order.

    Args:
        name: Column.
        vocab_size: Rows of the table, the unknown id 0 included.
        dim: Width of the embedding.
        max_len: Ids kept per row, the first ones; None for all.
        pooling: How the embeddings of a row become one; a row without ids gives 0.
        shared_with: Name of the feature whose table this one reads.
    """

    name: str
    vocab_size: int
    dim: int
    max_len: int | None = None
    pooling: Literal["sum", "mean", "max"] = "sum"
    shared_with: str | None = None
    kind: ClassVar[str] = "multi_hot"

    def __post_init__(self) -> None:
        _positive(self, "vocab_size", "dim", "max_len")
        _one_of(self, "pooling", ("sum", "mean", "max"))


@dataclass(frozen=True)
class Sequence:
    """Ids of a row in order of time, the newest last.

    Args:
        name: Column.
        vocab_size: Rows of the table, the unknown id 0 included.
        dim: Width of the embedding.
        pooling: How the embeddings of a row become one; a row without ids gives 0.
        query: For ``"target_attention"``, the categorical feature that asks; of the same ``dim``.
        max_len: Ids kept per row, the newest ones; None for all.
        shared_with: Name of the feature whose table this one reads, mostly the query.
    """

    name: str
    vocab_size: int
    dim: int
    pooling: Literal["mean", "sum", "last", "target_attention"] = "mean"
    query: str | None = None
    max_len: int | None = None
    shared_with: str | None = None
    kind: ClassVar[str] = "sequence"

    def __post_init__(self) -> None:
        _positive(self, "vocab_size", "dim", "max_len")
        _one_of(self, "pooling", ("mean", "sum", "last", "target_attention"))
        if (self.pooling == "target_attention") != (self.query is not None):
            raise ArgumentError(
                f"Feature {self.name!r} has pooling={self.pooling!r} and query={self.query!r}. "
                "target_attention needs the name of a categorical feature as query, the other "
                "poolings none."
            )


@dataclass(frozen=True)
class GroupKey:
    """Whose impressions belong together in grouped metrics, mostly the user; not a model input.

    Declare the column as `Categorical` too if the network should read it.

    Args:
        name: Column.
    """

    name: str
    kind: ClassVar[str] = "group_key"


@dataclass(frozen=True)
class Task:
    r"""One thing to predict.

    Args:
        name: In logs, metrics and exported outputs.
        type: ``"binary"`` (labels 0 and 1), ``"regression"`` (any number) or ``"ordinal"`` (levels
            ``0 .. levels - 1``; the logit is a score :math:`s` and
            :math:`P(y > k) = \sigma(s - c_k)` with increasing cut points).
        weight: In the sum of the tasks' losses.
        group: Category of the task, for models with a hierarchy.
        label: Column of the label; the task's name if None. NaN is a missing label.
        sample_mask: Column that is nonzero on rows that count for this task; None for all rows.
        levels: Number of levels of an ordinal task.
        base_rate: Share of positives, from which an output bias may start.

    Raises:
        ArgumentError: The values contradict each other.
    """

    name: str
    type: Literal["binary", "regression", "ordinal"] = "binary"
    weight: float = 1.0
    group: str | None = None
    label: str | None = None
    sample_mask: str | None = None
    levels: int | None = None
    base_rate: float | None = None

    def __post_init__(self) -> None:
        if self.type not in ("binary", "regression", "ordinal"):
            raise UnknownNameError("task type", self.type, ("binary", "regression", "ordinal"))
        if (self.type == "ordinal") != (self.levels is not None):
            raise ArgumentError(
                f"Task {self.name!r} is {self.type} with levels={self.levels}. Give an ordinal "
                "task its number of levels, the others none."
            )
        if self.levels is not None and self.levels < 2:
            raise ArgumentError(f"Task {self.name!r} has levels={self.levels}. Expected 2 or more.")
        if not self.weight >= 0:
            raise ArgumentError(f"Task {self.name!r} has weight={self.weight}. Expected 0 or more.")
        if self.base_rate is not None and not 0 < self.base_rate < 1:
            raise ArgumentError(
                f"Task {self.name!r} has base_rate={self.base_rate}. Expected a share between 0 "
                "and 1, or None."
            )

    @property
    def column(self) -> str:
        """Column of the label."""
        return self.name if self.label is None else self.label

    def to_dict(self) -> dict[str, Any]:
        """Plain values; defaults are left out."""
        return _plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Task":
        """The inverse of :meth:`to_dict`."""
        return _build(cls, values)


Bag = MultiHot | Sequence
Embedded = Categorical | MultiHot | Sequence
Feature = Dense | Embedded
_FEATURES: dict[str, type[Any]] = {
    kind.kind: kind for kind in (Dense, Categorical, MultiHot, Sequence)
}


@dataclass(frozen=True)
class FeatureSchema:
    """All features of a row, in order.

    The flat input of a network is every embedded feature in this order, then every dense one.

    Args:
        features: `Dense`, `Categorical`, `MultiHot` and `Sequence`.
        group_key: A `GroupKey` or the name of its column.

    Raises:
        ArgumentError: A name occurs twice or is reserved, or a shared table or a query does not
            fit.
        UnknownNameError: A feature names another one that does not exist.

    Example:
        >>> schema = FeatureSchema([Categorical("user", 100, 8), Dense("age")], group_key="user")
        >>> schema.flat_width
        9
        >>> FeatureSchema.from_dict(schema.to_dict()) == schema
        True
    """

    features: tuple[Feature, ...]
    group_key: str | None = None

    def __init__(
        self, features: Iterable[Feature], group_key: str | GroupKey | None = None
    ) -> None:
        key = group_key.name if isinstance(group_key, GroupKey) else group_key
        object.__setattr__(self, "features", tuple(features))
        object.__setattr__(self, "group_key", key)
        self._check()

    @cached_property
    def categorical(self) -> tuple[Categorical, ...]:
        """Features with one id per row: the columns of ``cat``."""
        return tuple(f for f in self.features if isinstance(f, Categorical))

    @cached_property
    def dense(self) -> tuple[Dense, ...]:
        """Dense features: the columns of ``dense``, ``width`` each."""
        return tuple(f for f in self.features if isinstance(f, Dense))

    @cached_property
    def bags(self) -> tuple[Bag, ...]:
        """Features with several ids per row: one ``bag/<name>`` each."""
        return tuple(f for f in self.features if isinstance(f, Bag))

    @cached_property
    def embedded(self) -> tuple[Embedded, ...]:
        """Features with ids, in order."""
        return tuple(f for f in self.features if isinstance(f, Embedded))

    @property
    def dense_width(self) -> int:
        """Columns of ``dense``."""
        return sum(f.width for f in self.dense)

    @property
    def flat_width(self) -> int:
        """Width of the flat input."""
        return sum(f.dim for f in self.embedded) + sum(f.out_width for f in self.dense)

    @property
    def field_width(self) -> int:
        """The one width of all features, for models that treat them as a set.

        Raises:
            ArgumentError: The widths differ.
        """
        widths = {f.dim for f in self.embedded} | {f.out_width for f in self.dense}
        if len(widths) != 1:
            raise ArgumentError(
                f"The features have widths {sorted(widths)}; a model of feature fields needs one. "
                "Give every embedded feature the same dim, and dense ones project=dim."
            )
        return widths.pop()

    def flat_slice(self, name: str) -> slice:
        """Where a feature lies in the flat input."""
        start = 0
        for feature in (*self.embedded, *self.dense):
            width = feature.out_width if isinstance(feature, Dense) else feature.dim
            if feature.name == name:
                return slice(start, start + width)
            start += width
        raise UnknownNameError("feature", name, [f.name for f in self.features])

    def __getitem__(self, name: str) -> Feature:
        for feature in self.features:
            if feature.name == name:
                return feature
        raise UnknownNameError("feature", name, [f.name for f in self.features])

    def resized(self, name: str, vocab_size: int) -> "FeatureSchema":
        """The schema with another vocabulary size for a feature and all that share its table."""
        feature = self[name]
        if isinstance(feature, Dense):
            raise ArgumentError(f"Feature {name!r} is dense and has no vocabulary.")
        owner = feature.shared_with or feature.name
        changed = [
            dataclasses.replace(f, vocab_size=vocab_size)
            if isinstance(f, Embedded) and owner in (f.name, f.shared_with)
            else f
            for f in self.features
        ]
        return FeatureSchema(changed, self.group_key)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; defaults are left out."""
        features = [{"kind": f.kind, **_plain(f)} for f in self.features]
        return {"features": features} | ({"group_key": self.group_key} if self.group_key else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        features: list[Feature] = []
        group_key = values.get("group_key")
        for entry in values["features"]:
            arguments = dict(entry)
            kind = arguments.pop("kind", None)
            if kind not in _FEATURES:
                raise UnknownNameError("kind of feature", kind, _FEATURES)
            features.append(_build(_FEATURES[kind], arguments))
        return cls(features, group_key)

    def _check(self) -> None:
        seen: set[str] = set()
        for feature in self.features:
            if not isinstance(feature, Feature):
                raise ArgumentError(
                    f"{feature!r} is no feature. Expected Dense, Categorical, MultiHot or "
                    "Sequence; a GroupKey goes into group_key."
                )
            if feature.name in seen:
                raise ArgumentError(f"Feature {feature.name!r} occurs twice. Names are unique.")
            if feature.name in RESERVED or feature.name.startswith("bag/"):
                raise ArgumentError(
                    f"Feature name {feature.name!r} is a key of the packed batch. Rename the "
                    f"column; {', '.join(RESERVED)} and 'bag/...' are taken."
                )
            seen.add(feature.name)
        for feature in self.embedded:
            self._check_links(feature)

    def _check_links(self, feature: Embedded) -> None:
        if feature.shared_with is not None:
            owner = self[feature.shared_with]
            if isinstance(owner, Dense) or owner.shared_with is not None or owner is feature:
                raise ArgumentError(
                    f"Feature {feature.name!r} shares the table of {owner.name!r}, which has none "
                    "of its own. Name the feature that owns the table."
                )
            if (owner.vocab_size, owner.dim) != (feature.vocab_size, feature.dim):
                raise ArgumentError(
                    f"Feature {feature.name!r} has {feature.vocab_size} rows of {feature.dim}, the "
                    f"table of {owner.name!r} {owner.vocab_size} of {owner.dim}. Use the same."
                )
        if isinstance(feature, Sequence) and feature.query is not None:
            query = self[feature.query]
            if not isinstance(query, Categorical) or query.dim != feature.dim:
                raise ArgumentError(
                    f"Feature {feature.name!r} is queried by {query.name!r}. Expected a "
                    f"categorical feature of dim={feature.dim}."
                )


def as_schema(schema: FeatureSchema | Mapping[str, Any]) -> FeatureSchema:
    """A schema from itself or from its plain form."""
    return schema if isinstance(schema, FeatureSchema) else FeatureSchema.from_dict(schema)


def as_tasks(tasks: Iterable[Task | Mapping[str, Any] | str]) -> tuple[Task, ...]:
    """Tasks from themselves, their plain form, or names of binary tasks.

    Raises:
        ArgumentError: There is none, or a name occurs twice or is ``"shared"``, which models call
            what belongs to no task.

    Example:
        >>> [task.type for task in as_tasks(["click", {"name": "rating", "type": "regression"}])]
        ['binary', 'regression']
    """
    built = tuple(
        task if isinstance(task, Task)
        else Task(task) if isinstance(task, str)
        else Task.from_dict(task)
        for task in tasks
    )  # fmt: skip
    names = [task.name for task in built]
    if not names or len(set(names)) < len(names) or "shared" in names:
        raise ArgumentError(
            f"tasks are {names}. Expected one or more tasks of different names, none 'shared'."
        )
    return built


def task_groups(tasks: Many[Task]) -> list[str]:
    """The categories of the tasks, in order of first use; tasks without one are left out."""
    return list(dict.fromkeys(task.group for task in tasks if task.group is not None))


def _plain(value: Any) -> dict[str, Any]:
    return {
        field.name: getattr(value, field.name)
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != field.default
    }


def _build(kind: type[Any], values: Mapping[str, Any]) -> Any:
    known = {field.name for field in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            raise UnknownNameError(f"argument of {kind.__name__}", name, known)
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.name not in values
    ]
    if missing:
        raise ArgumentError(f"{kind.__name__} {dict(values)} lacks {', '.join(missing)}.")
    return kind(**values)


def _positive(feature: Any, *names: str) -> None:
    for name in names:
        value = getattr(feature, name)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ArgumentError(
                f"Feature {feature.name!r} has {name}={value!r}. Expected a whole number from 1."
            )


def _one_of(feature: Any, name: str, known: tuple[str, ...]) -> None:
    value = getattr(feature, name)
    if value not in known:
        raise UnknownNameError(f"{name} of feature {feature.name!r}", value, known)
