"""One short quickstart for all tests of a part: a test module names its part in ``PART``."""

import json

import pytest

from moeapps.cli.main import main


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    """What ``moeapps quickstart PART --fast`` wrote."""
    path = tmp_path_factory.mktemp("quickstart")
    assert main(["quickstart", request.module.PART, "--fast", "--out", str(path)]) == 0
    return path


@pytest.fixture
def part(request, folder):
    """The numbers of the part in ``report.json``."""
    return json.loads((folder / "report.json").read_text())["parts"][request.module.PART]
