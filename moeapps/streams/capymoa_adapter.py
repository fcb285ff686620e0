"""Our classifiers as CapyMOA's, so that its streams, evaluators and plots work with them."""

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeapps.errors import ArgumentError, MissingExtraError
from moeapps.streams.classifier import StreamClassifier

if TYPE_CHECKING:
    from torch import Tensor


def to_capymoa(
    model: StreamClassifier, schema: Any, *, random_seed: int = 1, batch: bool = False
) -> Any:
    """A CapyMOA classifier that learns with a copy of ``model``.

    CapyMOA numbers classes and nominal values by its schema; the copy gets arrays of these numbers.
    It is untrained, knows the schema's classes and nominal attributes, and has ``random_seed`` as
    its seed, if it takes one.

    Args:
        model: Any classifier of :mod:`moeapps.streams`.
        schema: Of the stream (``stream.get_schema()``).
        random_seed: Seed of the copy.
        batch: Make a ``BatchClassifier``, to which evaluators hand mini-batches as tensors.

    Returns:
        A ``capymoa.base.Classifier`` (or ``BatchClassifier``) with the copy as ``model``.

    Raises:
        MissingExtraError: CapyMOA is not installed. It needs a Java machine, too.
        ArgumentError: The schema is not one of classification.

    Notes:
        Before it has learned anything it gives no prediction (None; a batch gets equal
        probabilities). Rows of a batch are learned one after the other, as everywhere.

    Example:
        >>> from capymoa.evaluation import prequential_evaluation  # doctest: +SKIP
        >>> from capymoa.stream.generator import SEA  # doctest: +SKIP
        >>> stream = SEA()  # doctest: +SKIP
        >>> learner = to_capymoa(HoeffdingTree(), stream.get_schema())  # doctest: +SKIP
        >>> prequential_evaluation(stream, learner, max_instances=1000)  # doctest: +SKIP
    """
    adapter, batch_adapter = _classes()
    if not schema.is_classification():
        raise ArgumentError(
            "The schema is of a regression stream, expected classes. Use a classification stream."
        )
    return (batch_adapter() if batch else adapter)(model, schema, random_seed)


@functools.cache
def _classes() -> tuple[Any, Any]:
    """The adapter, and what makes the one for batches; CapyMOA starts Java when imported."""
    try:
        from capymoa.base import Classifier
    except ModuleNotFoundError as error:
        raise MissingExtraError("capymoa", "capymoa") from error

    class Adapter(Classifier):
        """Learns and predicts one instance at a time."""

        def __init__(self, model: StreamClassifier, schema: Any, random_seed: int = 1) -> None:
            super().__init__(schema=schema, random_seed=random_seed)
            self.model = _copy(model, schema, random_seed)
            self._classes = list(range(schema.get_num_classes()))
            self._trained = False

        def __str__(self) -> str:
            return str(self.model)

        def train(self, instance: Any) -> None:
            self._learn(instance.x[None], np.array([instance.y_index]))

        def predict_proba(self, instance: Any) -> NDArray[np.float64] | None:
            return self.model.predict_proba(instance.x[None])[0] if self._trained else None

        def _learn(self, x: NDArray[np.float64], y: NDArray[np.int64]) -> None:
            self.model.partial_fit(x, y, classes=self._classes)
            self._trained = True

    @functools.cache
    def batch_adapter() -> Any:  # CapyMOA has this base only where torch is
        import torch
        from capymoa.base import BatchClassifier

        class BatchAdapter(Adapter, BatchClassifier):
            """Learns and predicts mini-batches; ``train`` and ``predict_proba`` are Adapter's."""

            x_dtype = torch.float64

            def batch_train(self, x: "Tensor", y: "Tensor") -> None:
                self._learn(x.numpy(), y.numpy())

            def batch_predict_proba(self, x: "Tensor") -> "Tensor":
                if not self._trained:
                    return torch.full((len(x), len(self._classes)), 1 / len(self._classes))
                return torch.from_numpy(self.model.predict_proba(x.numpy()))

        return BatchAdapter

    return Adapter, batch_adapter


def _copy(model: StreamClassifier, schema: Any, random_seed: int) -> StreamClassifier:
    header, declared = schema.get_moa_header(), set(schema.get_nominal_attributes())
    names = [str(header.attribute(i).name()) for i in range(schema.get_num_attributes())]
    nominal = [i for i, name in enumerate(names) if name in declared]
    changes: dict[str, Any] = {"nominal_attributes": nominal or None}
    if "seed" in model._get_params():
        changes["seed"] = random_seed
    return model.clone(changes)
