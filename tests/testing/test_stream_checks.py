"""The checks of stream classifiers refuse each kind of wrong."""

import numpy as np
import pytest

pytest.importorskip("river", reason='needs pip install "moeapps[streams]"')

from moeapps.errors import UnknownNameError
from moeapps.registry import MODELS, ModelEntry
from moeapps.streams import HoeffdingTree
from moeapps.testing import STREAM_CHECKS, check_stream_model
from moeapps.testing.streams import StreamSubject


class Forgetful(HoeffdingTree):
    """Loses its leaves in the file."""

    def _restore(self, state):
        self._begin(self._columns, len(self._labels))


class Hasty(HoeffdingTree):
    """Learns before it answers in test-then-train runs."""

    def _test_then_train_rows(self, x, y, w):
        self._learn_rows(x, y, w)
        return self._predict_rows(x).argmax(1)


class Fickle(HoeffdingTree):
    """Draws without a seed."""

    def _test_then_train_rows(self, x, y, w):
        super()._test_then_train_rows(x, y, w)
        return np.random.default_rng().integers(0, 3, len(x))


class Lazy(HoeffdingTree):
    """Learns nothing."""

    def _learn_rows(self, x, y, w):
        pass

    def _test_then_train_rows(self, x, y, w):
        return self._predict_rows(x).argmax(1)


class Unnormalised(HoeffdingTree):
    """Probabilities of sum 2."""

    def _predict_rows(self, x):
        return 2 * super()._predict_rows(x)


class Noting(HoeffdingTree):
    """Keeps the features it was asked about."""

    def predict_proba_one(self, x, **kwargs):
        x["seen"] = 1.0
        return super().predict_proba_one(x)


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        (Noting, "river"),
        (Hasty, "ways_in"),
        (Unnormalised, "probabilities"),
        (Fickle, "seed"),
        (Lazy, "learns"),
        (Forgetful, "save"),
        (Unnormalised, "odd_features"),
    ],
)
def test_each_check_refuses_its_wrong(wrong, check, monkeypatch):
    entry = ModelEntry("streams", f"{__name__}:{wrong.__name__}", "online classification", "", "-")
    monkeypatch.setitem(MODELS, "wrong", entry)
    monkeypatch.setattr(StreamSubject, "build", lambda self: wrong(grace_period=50))
    with pytest.raises(AssertionError):
        STREAM_CHECKS[check](StreamSubject("wrong"))


def test_a_good_model_passes_and_a_wrong_name_is_corrected():
    assert check_stream_model("hoeffding_tree") == {}
    with pytest.raises(UnknownNameError, match="hoeffding_tree"):
        check_stream_model("hoefding_tree")
