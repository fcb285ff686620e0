"""What every stream classifier of moeapps can do, written once: dicts, frames, arrays, files."""

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from river import base

from moeapps.errors import ArgumentError, CheckpointError
from moeapps.streams import saving
from moeapps.streams.batches import ArrayBatch, RecordBatch, as_batch, as_matrix
from moeapps.streams.columns import Columns
from moeapps.streams.compiling import announce
from moeapps.streams.labels import Labels

if TYPE_CHECKING:
    import pandas as pd

# Rows encoded at once: enough to forget the cost of a call, few enough to stay in the cache.
_PIECE = 4096


class _Targets(NamedTuple):
    """Class indices and weights ``[N]`` of a batch; the rows at which new labels come up."""

    codes: np.ndarray
    weights: np.ndarray
    new_rows: list[int]
    new_labels: list[Hashable]


class StreamClassifier(base.MiniBatchClassifier):
    """A classifier on a stream, for river's dicts, for DataFrames and for arrays.

    Whatever the way in, instances are learned one after the other, and the answers are the same to
    the last bit. Labels are any hashable objects; classes are numbered in order of appearance.

    A method derives from this and supplies the hooks ``_begin``, ``_grow``, ``_predict_rows``,
    ``_learn_rows``, ``_test_then_train_rows``, ``_state``, ``_restore`` and ``_statistics``; they
    see rows as `Columns` makes them and class indices only.

    Args:
        nominal_attributes: Features whose numbers are names of values: keys of the dicts, names of
            the DataFrame's columns, or indices of the array's columns.
    """

    def __init__(self, nominal_attributes: Sequence[Hashable] | None = None) -> None:
        self.nominal_attributes = nominal_attributes
        self._columns = Columns(nominal_attributes)
        self._labels = Labels()
        self._begun = False
        self._num_learned = 0
        self._array_keys: list[Hashable] | None = None

    # Hooks.

    @abstractmethod
    def _begin(self, columns: Columns, num_classes: int) -> None:
        """Make the state; called once, before the first row is learned."""

    @abstractmethod
    def _grow(self, num_numeric: int, num_values: list[int], num_classes: int) -> None:
        """Columns, nominal values or classes were added."""

    @abstractmethod
    def _predict_rows(self, x: np.ndarray) -> np.ndarray:
        """Class probabilities ``[N, C]``; no side effects."""

    @abstractmethod
    def _learn_rows(self, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> None:
        """Learn row after row."""

    @abstractmethod
    def _test_then_train_rows(self, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Most probable class ``[N]`` of each row before it is learned."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """Arrays and JSON values that, with the parameters, make up the model."""

    @abstractmethod
    def _restore(self, state: dict[str, Any]) -> None:
        """Take over what `_state` gave."""

    def _statistics(self) -> dict[str, Any]:
        """Numbers that tell how the model is doing."""
        return {}

    # river: one instance.

    @property
    def _multiclass(self) -> bool:
        return True

    def learn_one(self, x: dict[Hashable, Any], y: Hashable, w: float = 1.0) -> None:
        """Learn one instance.

        Args:
            x: Features; keys may come and go.
            y: Label.
            w: Weight; 0 teaches nothing.
        """
        if not 0.0 <= w < np.inf:
            raise _bad_weight(w)
        label = self._labels.find(y)
        row = self._columns.encode_usual(x)
        grown = row is None and self._columns.learn(x)
        if grown or not self._begun or label is None:
            label = self._labels.add(y)
            self._make_room()
        if row is None:
            row = self._columns.encode(x)
        self._learn_rows(row[None], np.array([label]), np.array([float(w)]))
        self._num_learned += 1

    def predict_proba_one(self, x: dict[Hashable, Any], **kwargs: Any) -> dict[Any, float]:
        """Probability of each label seen so far; empty before the first."""
        if not self._labels:
            return {}
        proba = self._probabilities(self._columns.encode(x)[None])
        return dict(zip(self._labels.index, proba[0].tolist(), strict=True))

    def predict_one(self, x: dict[Hashable, Any], **kwargs: Any) -> Any:
        """The most probable label, the first seen of equals; None before the first."""
        proba = self.predict_proba_one(x)
        return max(proba, key=proba.__getitem__) if proba else None

    # river: many instances.

    def learn_many(self, X: "pd.DataFrame", y: "pd.Series", w: Any = None) -> None:  # noqa: N803
        """Learn the rows of a DataFrame, one after the other.

        Args:
            X: Features, one column each.
            y: Labels.
            w: Weights, or None for 1.
        """
        batch = as_batch(self._columns, X)
        self._walk(batch, self._targets(len(batch), y, w), 0, len(batch))

    def predict_proba_many(self, X: "pd.DataFrame") -> "pd.DataFrame":  # noqa: N803
        """Probability of each label seen so far (columns) for each row."""
        import pandas as pd

        proba = self._predict_batch(as_batch(self._columns, X))
        return pd.DataFrame(proba, index=X.index, columns=pd.Index([*self._labels], dtype=object))

    def predict_many(self, X: "pd.DataFrame") -> "pd.Series":  # noqa: N803
        """The most probable label of each row; None before the first label is known."""
        import pandas as pd

        if not self._labels:
            return pd.Series([None] * len(X), index=X.index, dtype=object)
        classes = self._predict_batch(as_batch(self._columns, X)).argmax(1)
        return pd.Series(self.classes_[classes], index=X.index)

    # scikit-learn.

    @property
    def classes_(self) -> np.ndarray:
        """Labels in order of first appearance, the order of the columns of probabilities."""
        if not self._labels:
            raise AttributeError(f"{type(self).__name__} has not seen a label yet.")
        return self._labels.array()

    @property
    def n_features_in_(self) -> int:
        """Number of columns of the arrays it learned from."""
        if self._array_keys is None:
            raise AttributeError(f"{type(self).__name__} has not seen an array yet.")
        return len(self._array_keys)

    def partial_fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        classes: Sequence[Hashable] | None = None,
        sample_weight: Any = None,
    ) -> Self:
        """Learn the rows of an array, one after the other.

        Args:
            X: ``[N, d]`` numbers, NaN where missing; or a DataFrame.
            y: ``[N]`` labels.
            classes: Labels that may come; others are added when they come.
            sample_weight: ``[N]`` weights, or None for 1.

        Raises:
            ArgumentError: A shape, dtype or weight cannot work.
        """
        batch = self._array_batch(X, learning=True)
        self._announce(classes)
        self._walk(batch, self._targets(len(batch), y, sample_weight), 0, len(batch))
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Probabilities ``[N, C]``, columns in the order of ``classes_``."""
        self._need_labels()
        return self._predict_batch(self._array_batch(X, learning=False))

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Most probable labels ``[N]``."""
        classes = self.predict_proba(X).argmax(1)
        return self.classes_[classes]

    def prequential(
        self,
        X: Any,  # noqa: N803
        y: Any,
        *,
        classes: Sequence[Hashable] | None = None,
        delay: int = 0,
        sample_weight: Any = None,
    ) -> np.ndarray:
        """Test each row, then learn it: the labels predicted for a stream, in compiled code.

        Args:
            X: ``[N, d]`` numbers, NaN where missing; or a DataFrame.
            y: ``[N]`` labels.
            classes: Labels that may come; others are added when they come.
            delay: The label of a row arrives this many rows later, before that row is predicted;
                0 is at once, after the prediction. Labels still missing at the end come then.
            sample_weight: ``[N]`` weights, or None for 1.

        Returns:
            ``[N]`` predicted labels. A row before the first known label gets the first of
            ``classes``, or of ``y``.
        """
        if delay < 0:
            raise ArgumentError(
                f"delay={delay} would be a label from the future. Expected a number of rows from "
                "0; leave it out for labels that arrive at once."
            )
        batch = self._array_batch(X, learning=True)
        self._announce(classes)
        targets = self._targets(len(batch), y, sample_weight)
        n = len(batch)
        answers = np.zeros(n, np.int64)
        if delay <= 1:  # either way the label of the row before is known in time
            self._walk(batch, targets, 0, n, answers)
        else:
            early = min(delay, n)
            if self._labels:
                answers[:early] = self._predict_batch(batch, early).argmax(1)
            self._walk_late(batch, targets, delay, answers[early:])
            self._walk(batch, targets, n - early, n)
        return self.classes_[answers] if n else np.array([])

    def learn_then_predict(self, X: Any, y: Any, then: Any) -> np.ndarray:  # noqa: N803
        """Learn row after row and after each predict the row that has arrived by then.

        What `prequential` does with late labels, for a stream that comes in pieces.

        Args:
            X: ``[N, d]`` numbers, NaN where missing.
            y: ``[N]`` labels.
            then: ``[N, d]``; row n is predicted once row n of ``X`` is learned.

        Returns:
            ``[N]`` predicted labels.
        """
        learned, asked = as_matrix(X), as_matrix(then)
        if learned.shape != asked.shape:
            raise ArgumentError(
                f"X has shape {learned.shape} but the rows to predict {asked.shape}. Expected one "
                "row to predict per row to learn; use partial_fit and predict otherwise."
            )
        n = len(learned)
        batch = self._array_batch(np.concatenate([learned, asked]), learning=True)
        answers = np.zeros(n, np.int64)
        self._walk_late(batch, self._targets(n, y, None), n, answers)
        return self.classes_[answers] if n else np.array([])

    # Batches.

    def _walk(
        self,
        batch: ArrayBatch | RecordBatch,
        targets: _Targets,
        start: int,
        stop: int,
        answers: np.ndarray | None = None,
    ) -> None:
        """Learn rows in order; ``answers``, if given, gets the class predicted for each before."""
        position = bisect_left(targets.new_rows, start)
        while start < stop:
            new_row = targets.new_rows[position] if position < len(targets.new_rows) else stop
            end = min(start + _PIECE, new_row, stop)
            rows = batch.known(start, end) if self._begun else np.empty((0, 0))
            done = start + len(rows)
            if done > start:
                part = rows, targets.codes[start:done], targets.weights[start:done]
                if answers is None:
                    self._learn_rows(*part)
                else:
                    answers[start:done] = self._test_then_train_rows(*part)
                self._num_learned += len(rows)
            start = done
            if done < end or end == new_row < stop:
                self._learn_new(batch, targets, done, answers)
                position += done == new_row
                start += 1

    def _learn_new(
        self,
        batch: ArrayBatch | RecordBatch,
        targets: _Targets,
        t: int,
        answers: np.ndarray | None,
    ) -> None:
        """Learn row ``t``, which brings a label, a key or a value that is new, or is the first."""
        if answers is not None and self._labels:
            answers[t] = self._probabilities(batch.encode(t, t + 1)).argmax()
        known = len(self._labels)
        if targets.codes[t] == known:
            self._labels.add(targets.new_labels[bisect_left(targets.new_rows, t)])
        batch.learn(t)
        self._make_room()
        one = slice(t, t + 1)
        self._learn_rows(batch.encode(t, t + 1), targets.codes[one], targets.weights[one])
        self._num_learned += 1

    def _walk_late(
        self,
        batch: ArrayBatch | RecordBatch,
        targets: _Targets,
        delay: int,
        answers: np.ndarray,
    ) -> None:
        """Learn row t, then predict row t + delay, for each of the ``answers`` ``[t]``."""
        for t in range(len(answers)):
            self._walk(batch, targets, t, t + 1)
            row = batch.encode(t + delay, t + delay + 1)
            answers[t] = self._probabilities(row).argmax()

    def _targets(self, n: int, y: Any, w: Any) -> _Targets:
        if np.shape(y)[:1] != (n,) or (hasattr(y, "ndim") and y.ndim != 1):
            raise ArgumentError(
                f"y has shape {np.shape(y)} but X has {n} rows. Expected one label per row; pass "
                "as many labels as rows."
            )
        weights = np.ones(n) if w is None else np.array(w, np.float64)
        if weights.shape != (n,):
            raise ArgumentError(
                f"The weights have shape {weights.shape} but X has {n} rows. Expected one per row; "
                "leave them out for weight 1."
            )
        good = (weights >= 0) & (weights < np.inf)
        if not good.all():
            raise _bad_weight(weights[~good][0])
        codes, new = self._labels.codes(y)
        return _Targets(codes, weights, [row for row, _ in new], [label for _, label in new])

    def _predict_batch(
        self, batch: ArrayBatch | RecordBatch, stop: int | None = None
    ) -> np.ndarray:
        """Probabilities of the rows up to ``stop``."""
        stop = len(batch) if stop is None else stop
        pieces = [
            self._probabilities(batch.encode(start, min(start + _PIECE, stop)))
            for start in range(0, stop, _PIECE)
        ]
        return np.concatenate([np.empty((0, len(self._labels))), *pieces])

    def _probabilities(self, rows: np.ndarray) -> np.ndarray:
        if self._begun:
            return self._predict_rows(rows)
        return np.full((len(rows), len(self._labels)), 1 / max(len(self._labels), 1))

    def _make_room(self) -> None:
        if self._begun:
            self._grow(self._columns.num_numeric, self._columns.num_values, len(self._labels))
        else:
            announce()
            self._begin(self._columns, len(self._labels))
            self._begun = True

    def _announce(self, classes: Sequence[Hashable] | None) -> None:
        known = len(self._labels)
        for label in () if classes is None else Labels(_items(classes)):
            self._labels.add(label)
        if self._begun and len(self._labels) > known:
            self._make_room()

    def _array_batch(self, x: Any, *, learning: bool) -> ArrayBatch | RecordBatch:
        batch = as_batch(self._columns, x, self._array_keys)
        if self._array_keys is not None and {*batch.keys} != {*self._array_keys}:
            raise ArgumentError(
                f"X has the columns {_short(batch.keys)} but {type(self).__name__} learned from "
                f"{_short(self._array_keys)}. Expected the same columns; for features that come "
                "and go use dicts or learn_many."
            )
        if learning and self._array_keys is None:
            self._array_keys = [*batch.keys]
        return batch

    def _need_labels(self) -> None:
        if not self._labels:
            raise ArgumentError(
                f"{type(self).__name__} has not learned anything yet. Call partial_fit first."
            )

    # Files and numbers.

    def statistics(self) -> dict[str, Any]:
        """Numbers that tell how the model is doing."""
        return {
            "instances": self._num_learned,
            "classes": len(self._labels),
            "columns": len(self._columns),
            **self._statistics(),
        }

    def save(self, path: str | Path) -> None:
        """Write the model to one ``.npz`` file; nothing in it is code.

        Raises:
            ArgumentError: A parameter, label or feature name is of a type that cannot be saved.
        """
        state = self._state() if self._begun else {}
        arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
        columns = self._columns
        parameters = {name: getattr(self, name) for name in self._get_params()}
        code = [name for name, v in parameters.items() if callable(v) or isinstance(v, base.Base)]
        header = {
            "kind": type(self).__name__,
            "parameters": {k: saving.pack(v) for k, v in parameters.items() if k not in code},
            "code": code,
            "labels": [saving.pack(label) for label in self._labels],
            "numeric": [saving.pack(key) for key in columns.numeric],
            "nominal": [saving.pack(key) for key in columns.nominal],
            "values": [[saving.pack(value) for value in codes] for codes in columns.codes],
            "array_keys": saving.pack(self._array_keys),
            "num_learned": self._num_learned,
            "begun": self._begun,
            "state": {name: value for name, value in state.items() if name not in arrays},
        }
        saving.write(path, arrays, header)

    @classmethod
    def load(cls, path: str | Path, **code: Any) -> Self:
        """The model that `save` wrote.

        Args:
            path: The file.
            **code: Parameters that are functions, classes or models; a file holds none of them.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: The file is cut short, damaged, of another kind or of a newer format,
                or it was saved with ``code`` that is not given.
        """
        arrays, header = saving.read(path, kind=cls.__name__)
        missing = [f"{name}=..." for name in header["code"] if name not in code]
        if missing:
            raise CheckpointError(
                f"{path} holds a {cls.__name__} with code of its own, which no file holds. Give "
                f"what it was made with: {cls.__name__}.load(path, {', '.join(missing)})"
            )
        parameters = {name: saving.unpack(v) for name, v in header["parameters"].items()}
        model = cls(**{**parameters, **code})
        model._labels = Labels(saving.unpack(label) for label in header["labels"])
        columns = model._columns
        columns.numeric = {saving.unpack(key): i for i, key in enumerate(header["numeric"])}
        columns.nominal = {saving.unpack(key): i for i, key in enumerate(header["nominal"])}
        columns.codes = [
            {saving.unpack(value): i for i, value in enumerate(values)}
            for values in header["values"]
        ]
        model._array_keys = saving.unpack(header["array_keys"])
        model._num_learned = header["num_learned"]
        model._begun = header["begun"]
        if model._begun:
            model._restore({**arrays, **header["state"]})
        return model


def _short(keys: Sequence[Hashable]) -> str:
    shown = ", ".join(map(repr, keys[:5]))
    return shown if len(keys) <= 5 else f"{shown}, ... ({len(keys)} columns)"


def _items(classes: Any) -> list[Any]:
    return classes.tolist() if isinstance(classes, np.ndarray) else list(classes)


def _bad_weight(w: float) -> ArgumentError:
    return ArgumentError(
        f"The weight {w} cannot be learned with. Expected a finite number from 0; drop the "
        "instance to ignore it."
    )
