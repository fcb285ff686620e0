"""Test, then train: several models side by side on one stream, window by window.

A run can be saved between two windows and taken up again by another process: the model files hold
everything a model knows, so the predictions are those of a run that was never stopped.
"""

import pickle
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moeapps.data.integrity import atomic_write, file_digest
from moeapps.errors import ArgumentError, CheckpointError, MoeappsError
from moeapps.streams import saving
from moeapps.streams.datasets.stream import Rows, Stream
from moeapps.streams.metrics import References
from moeapps.streams.record import Record

KIND = "evaluation"
STATE = "evaluation.npz"


class Evaluation:
    """A run of one or more models over one stream.

    Every model predicts instance t, then learns it. With a label delay D it first learns instance
    t - D, whose label arrives, then predicts t; what it predicts then is what is scored. This is
    how river and `StreamClassifier.prequential` count a delay, so 0 and 1 are the same.

    Args:
        models: Name -> classifier: any of river's or of this package.
        stream: From :func:`moeapps.streams.load`.
        delay: Instances between a prediction and its label.
        window: Instances per entry of the records.
        keep_predictions: Keep every prediction, 4 bytes each.

    Raises:
        ArgumentError: A number is out of range, or there is no model.

    Notes:
        The published program of DriftMoE pairs features with a label 1,000 instances older; here
        features and label always belong together.

    Example:
        >>> from river.naive_bayes import GaussianNB
        >>> from moeapps import streams
        >>> evaluation = Evaluation({"nb": GaussianNB()}, streams.load("sea", limit=2000))
        >>> windows = evaluation.run()["nb"].windows()
        >>> windows.total.tolist(), bool((windows.model > windows.majority).all())
        ([1000, 1000], True)
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        stream: Stream,
        *,
        delay: int = 0,
        window: int = 1_000,
        keep_predictions: bool = False,
    ) -> None:
        if delay < 0 or window < 1 or not models:
            raise ArgumentError(
                f"delay={delay}, window={window}, {len(models)} models cannot be run. Expected a "
                "delay of at least 0, a window of at least 1 and at least one model."
            )
        self.models = dict(models)
        self.stream = stream
        self.delay = delay
        self.window = window
        self.keep_predictions = keep_predictions
        self.done = 0
        self.records = {name: Record() for name in self.models}
        self._references = References(len(stream.class_names))
        self._used = {name: np.zeros(0) for name in self.models}
        self._codes = {label: code for code, label in enumerate(stream.class_names)}

    def run(self, on_window: Callable[["Evaluation"], None] | None = None) -> dict[str, Record]:
        """Go on to the end of the stream.

        Args:
            on_window: Called after every window, for example to show progress or to save.
        """
        while self.step():
            if on_window is not None:
                on_window(self)
        return self.records

    def step(self) -> bool:
        """One window for every model; False at the end of the stream."""
        start, stop = self.done, min(self.done + self.window, len(self.stream))
        if start == stop:
            return False
        X, y = self.stream.rows(start, stop)  # noqa: N806
        late, labels = self._earlier(self.delay) if self.delay > 1 else (X, y)
        # The references know every label that the models know when they predict.
        _, revealed = self._earlier(max(self.delay, 1) - 1)
        majority, last = self._references.right(
            y, np.concatenate([np.full(len(y) - len(revealed), -1), revealed])
        )
        for name, model in self.models.items():
            record = self.records[name]
            ask = self._arrays if hasattr(model, "prequential") else self._dicts
            try:
                predicted, seconds = ask(model, X, y, late, labels)
            except MoeappsError:
                raise
            except Exception as error:
                raise ArgumentError(
                    f"{name} failed between the instances {start} and {stop} "
                    f"({type(error).__name__}: {error}). It may not take missing values or text: "
                    "choose another model or stream. MOEAPPS_DEBUG=1 shows where it happened."
                ) from error
            record.ends.append(stop)
            record.counts.append((len(y), int((predicted == y).sum()), majority, last))
            record.seconds += seconds
            if self.keep_predictions:
                record.predictions.append(predicted.astype(np.int32))
            self._look_inside(name, model, stop)
        self.done = stop
        return True

    def _arrays(
        self,
        model: Any,
        X: np.ndarray,  # noqa: N803
        y: np.ndarray,
        late: np.ndarray,
        labels: np.ndarray,
    ) -> tuple[np.ndarray, float]:
        began = time.process_time()
        if self.delay <= 1:
            predicted = np.asarray(model.prequential(X, y))
        else:
            predicted = np.full(len(y), -1)
            early = len(y) - len(labels)  # rows at which no label has arrived
            predicted[early:] = model.learn_then_predict(late, labels, X[early:])
        return predicted, time.process_time() - began

    def _dicts(
        self,
        model: Any,
        X: np.ndarray,  # noqa: N803
        y: np.ndarray,
        late: np.ndarray,
        labels: np.ndarray,
    ) -> tuple[np.ndarray, float]:
        questions = list(self.stream.dicts(X, y))
        answers = questions if late is X else list(self.stream.dicts(late, labels))
        early = len(questions) - len(answers)
        given = []
        began = time.process_time()
        for i, (x, _) in enumerate(questions):
            if self.delay > 1 and i >= early:
                model.learn_one(*answers[i - early])
            given.append(model.predict_one(x))
            if self.delay <= 1:
                model.learn_one(*answers[i])
        seconds = time.process_time() - began
        return np.array([self._codes.get(label, -1) for label in given]), seconds

    def _earlier(self, lag: int) -> Rows:
        """The instances that lie ``lag`` before those of this window, from the first one on."""
        stop = min(self.done + self.window, len(self.stream))
        return self.stream.rows(max(0, self.done - lag), max(0, stop - lag))

    def _look_inside(self, name: str, model: Any, stop: int) -> None:
        """Record what the model tells about its experts."""
        record = self.records[name]
        if hasattr(model, "statistics"):
            told = model.statistics()
            # The model counts the instances it has learnt; the stream is `delay` ahead of it.
            record.drifts = [int(t) + self.delay for t in told.get("drifts", ())]
            record.living.append(float(told.get("living", np.nan)))
            used = np.asarray(told.get("usage", ()), float)
        else:
            count = model.n_drifts_detected() if hasattr(model, "n_drifts_detected") else 0
            record.drifts += [stop] * (count - len(record.drifts))
            record.living.append(np.nan)
            used = np.zeros(0)
        before = np.zeros(len(used))
        before[: len(self._used[name])] = self._used[name][: len(used)]
        record.usage.append(used - before)
        self._used[name] = used

    def save(self, folder: str | Path) -> None:
        """Write the state so that a process that dies at any moment leaves a whole one.

        Models of this package are written by their own ``save``, others are pickled.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files: dict[str, list[str]] = {}
        for index, (name, model) in enumerate(self.models.items()):
            kind = "npz" if hasattr(model, "save") else "pkl"
            path = folder / f"model{index}_{self.done}.{kind}"
            if kind == "npz":
                model.save(path)
            else:
                with atomic_write(path) as file:
                    pickle.dump(model, file)
            files[name] = [path.name, file_digest(path)]
        arrays: dict[str, np.ndarray] = {"seen": self._references.seen}
        for index, (name, record) in enumerate(self.records.items()):
            arrays |= {f"{index}/{key}": array for key, array in record.arrays().items()}
            arrays[f"{index}/used"] = self._used[name]
        header = {
            "kind": KIND,
            "stream": self._identity(),
            "done": self.done,
            "last": self._references.last,
            "models": files,
        }
        saving.write(folder / STATE, arrays, header)
        kept = {name for name, _ in files.values()} | {STATE}
        for path in folder.iterdir():
            if path.name not in kept:
                path.unlink()

    def restore(self, folder: str | Path) -> None:
        """Go back to a saved state. The models given to the constructor are replaced.

        Raises:
            CheckpointError: The state is damaged or belongs to another run.
        """
        folder = Path(folder)
        arrays, header = saving.read(folder / STATE, kind=KIND)
        if header["stream"] != self._identity() or [*header["models"]] != [*self.models]:
            raise CheckpointError(
                f"{folder} was saved by another run: it has {header['stream']} and the models "
                f"{', '.join(header['models'])}. Expected {self._identity()} and "
                f"{', '.join(self.models)}. Start a new run instead."
            )
        for name, (file, digest) in header["models"].items():
            self.models[name] = _load(self.models[name], folder / file, digest)
        for index, name in enumerate(self.models):
            part = {
                key.partition("/")[2]: array
                for key, array in arrays.items()
                if key.startswith(f"{index}/")
            }
            self._used[name] = part.pop("used")
            self.records[name] = Record.of(part)
        self.done = int(header["done"])
        self._references.seen = arrays["seen"]
        self._references.last = int(header["last"])

    def _identity(self) -> dict[str, Any]:
        return {
            "name": self.stream.name,
            "seed": self.stream.seed,
            "instances": len(self.stream),
            "delay": self.delay,
            "window": self.window,
            "predictions": self.keep_predictions,
        }


def _load(model: Any, path: Path, digest: str) -> Any:
    if not path.is_file() or file_digest(path) != digest:
        raise CheckpointError(
            f"{path} is missing or damaged. Expected the file that was saved with the run: delete "
            "the run folder and start again."
        )
    if path.suffix == ".npz":
        return type(model).load(path)
    with path.open("rb") as file:
        return pickle.load(file)
