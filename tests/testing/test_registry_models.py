import pytest

from moeapps.registry import MODELS
from moeapps.testing import MODEL_CHECKS
from moeapps.testing.models import Subject


@pytest.mark.parametrize("check", MODEL_CHECKS)
@pytest.mark.parametrize("name", sorted(MODELS))
def test_model(name, check):
    entry = MODELS[name]
    if entry.domain == "graphs":
        pytest.importorskip("torch_geometric", reason='needs pip install "moeapps[graphs]"')
    if check in entry.cannot:
        pytest.skip(f"{name} cannot: {entry.cannot[check]}")
    MODEL_CHECKS[check](Subject(name))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_declared_limits_name_checks_and_reasons(name):
    for check, reason in MODELS[name].cannot.items():
        assert check in MODEL_CHECKS
        assert reason
