from itertools import chain

import pytest

from moeapps.registry import MODELS
from moeapps.testing import MODEL_CHECKS, STREAM_CHECKS
from moeapps.testing.models import Subject
from moeapps.testing.streams import StreamSubject

BY_DOMAIN = {
    domain: sorted(name for name, entry in MODELS.items() if entry.domain == domain)
    for domain in ("graphs", "recsys", "streams", "vision")
}


def test_every_model_is_checked():
    assert sorted(chain(*BY_DOMAIN.values())) == sorted(MODELS)


@pytest.mark.parametrize("check", MODEL_CHECKS)
@pytest.mark.parametrize("name", BY_DOMAIN["graphs"] + BY_DOMAIN["recsys"] + BY_DOMAIN["vision"])
def test_model(name, check):
    entry = MODELS[name]
    if entry.domain == "graphs":
        pytest.importorskip("torch_geometric", reason='needs pip install "moeapps[graphs]"')
    run(MODEL_CHECKS[check], Subject(name), fails=check in entry.cannot)


@pytest.mark.parametrize("check", STREAM_CHECKS)
@pytest.mark.parametrize("name", BY_DOMAIN["streams"])
def test_stream_model(name, check):
    pytest.importorskip("river", reason='needs pip install "moeapps[streams]"')
    run(STREAM_CHECKS[check], StreamSubject(name), fails=check in MODELS[name].cannot)


def run(check, subject, *, fails):
    """A declared inability has to be real, or the declaration goes."""
    if not fails:
        check(subject)
        return
    with pytest.raises(Exception):  # noqa: B017, PT011 - however it fails
        check(subject)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_declared_limits_name_checks_and_reasons(name):
    for check, reason in MODELS[name].cannot.items():
        assert check in (STREAM_CHECKS if MODELS[name].domain == "streams" else MODEL_CHECKS)
        assert reason
