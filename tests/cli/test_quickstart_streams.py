import json

import pytest

pytest.importorskip("river", reason='needs pip install "moeapps[streams]"')

from moeapps.cli.main import main
from moeapps.cli.quickstart import NEEDS, PARTS
from moeapps.cli.quickstart_streams import DRIFTING, MODELS, REAL

PART = "streams"


def test_report_shows_every_model_on_every_stream(folder):
    page = (folder / "report.html").read_text()
    for name in (*MODELS, *REAL, DRIFTING):
        assert name in page
    assert "trial run" in page
    assert page.count("data:image/png") >= 4  # accuracy, living experts, usage, recovery
    assert "synthetic" in page[: page.index("<table>")]  # the title says which of them


def test_numbers_are_kept(folder, part):
    facts = json.loads((folder / "report.json").read_text())
    assert not facts["synthetic"]
    assert part["datasets"] == [*REAL, DRIFTING]
    assert [row["model"] for row in part["rows"]] == list(MODELS)
    for row in part["rows"]:
        assert len(row["scores"]) == 3
        assert all(0 <= score <= 1 for score in row["scores"])


def test_a_part_that_is_not_installed_is_left_out_or_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(NEEDS, "graphs", ("x_y",))
    for other in set(PARTS) - {"graphs", "streams"}:
        monkeypatch.delitem(PARTS, other)
    assert main(["quickstart", "graphs", "--out", str(tmp_path / "a")]) == 2
    assert "x-y is not installed" in capsys.readouterr().err
    assert main(["quickstart", "--fast", "--out", str(tmp_path / "b")]) == 0
    assert "graphs is left out: x-y is not installed" in capsys.readouterr().err
    assert main(["quickstart", "stream", "--out", str(tmp_path / "c")]) == 2
    assert "Did you mean 'streams'" in capsys.readouterr().err


def test_the_doctor_says_whether_the_kernels_are_compiled(folder):
    from moeapps.cli.doctor import kernels

    (finding,) = kernels()
    assert finding.found == "compiled"  # the quickstart did it
    (finding,) = kernels(compile_now=True)
    assert finding.found.startswith("compiled in")
