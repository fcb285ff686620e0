import importlib.metadata
from pathlib import Path

import pytest

from moeapps.cli import doctor
from moeapps.cli.main import main


@pytest.fixture
def installed(monkeypatch):
    """Versions by name, on top of what is really installed."""
    changed: dict[str, str | None] = {}
    real = importlib.metadata.version

    def version(name):
        if name in changed:
            if changed[name] is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return changed[name]
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    return changed


def levels(findings):
    return {finding.subject: finding for finding in findings}


def test_healthy_installation_exits_with_zero(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for subject in ("python", "torch", "threads", "cuda", "data home", "offline switch"):
        assert subject in out


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_malicious_lightning_is_bad_and_says_what_to_do(installed, version, capsys):
    installed["lightning"] = version
    assert main(["doctor"]) == 2
    out = " ".join(capsys.readouterr().out.split())
    assert f"{version} is a MALICIOUS release" in out
    assert "change every password" in out


def test_missing_package_names_the_command(installed):
    installed["torchmetrics"] = None
    found = levels(doctor.packages())["torchmetrics"]
    assert found.level == "bad"
    assert 'pip install "torchmetrics>=' in found.found


def test_old_package_names_the_bound(installed):
    installed["torch"] = "2.1.0+cpu"
    found = levels(doctor.packages())["torch"]
    assert found.level == "bad"
    assert "2.1.0+cpu, needs >=2" in found.found


def test_missing_extra_is_a_note_with_the_command(installed):
    installed["torch-geometric"] = None
    found = levels(doctor.extras())["moeapps[graphs]"]
    assert found.level == "note"
    assert 'pip install "moeapps[graphs]"' in found.found


@pytest.mark.parametrize(
    ("version", "bounds", "fits"),
    [
        ("2.6.6", ">=2.6,!=2.6.2,!=2.6.3", True),
        ("2.6.2", ">=2.6,!=2.6.2,!=2.6.3", False),
        ("2.6", ">=2.6.0", True),
        ("2.10.0", ">=2.9", True),
        ("2.5.9", ">=2.6", False),
        ("2.14.1+cpu", ">=2.13", True),
        ("3.0.0rc1", ">=2.13", True),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_as_numbers(version, bounds, fits):
    assert doctor._fits(version, bounds) is fits


def test_every_declared_package_is_looked_at():
    import tomllib

    file = Path(__file__).parents[2] / "pyproject.toml"
    declared = tomllib.loads(file.read_text())["project"]["dependencies"]
    assert len(list(doctor.packages())) == len(declared)


def test_data_home_and_offline_switch_are_told(monkeypatch, tmp_path):
    monkeypatch.setenv("MOEAPPS_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("MOEAPPS_OFFLINE", "1")
    found = levels(doctor.data())
    assert "does not exist yet" in found["data home"].found
    assert "mixed-csbm" in found["data sets"].found  # needs no files
    assert "cora" not in found["data sets"].found
    assert "on: nothing is downloaded" in found["offline switch"].found


def test_folder_that_cannot_be_written_is_bad(monkeypatch, tmp_path):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    found = levels(doctor.folders(str(tmp_path)))
    assert found["run folder"].level == "bad"
    assert "Permission denied" in found["run folder"].found
