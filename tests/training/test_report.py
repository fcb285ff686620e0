import re

import numpy as np

from moeapps.plots import training_curves
from moeapps.training.report import Picture, Report, Section, Table, markdown, page, png, write


def report():
    figure = training_curves(np.arange(3), {"loss": np.array([3.0, 2.0, 1.0])}, ylabel="loss")
    return Report(
        "A <title>",
        "seed 0",
        notices=["The data is synthetic."],
        sections=[
            Section("Result", table=Table(("name", "value"), (("a|b", "1"), ("c & d", "2")))),
            Section("Figures", pictures=(Picture("loss", figure, 'Falls & "rests".'),)),
            Section("Command", text="`moeapps fit` is **it**.", code="a: <b>\n"),
        ],
    )


def test_files_are_written(tmp_path):
    write(report(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "figures", "report.html", "report.md",
    ]  # fmt: skip
    assert (tmp_path / "figures" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "(figures/loss.png)" in (tmp_path / "report.md").read_text()


def test_page_needs_nothing_from_elsewhere():
    text = page(report())
    references = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert references
    assert all(reference.startswith("data:image/png;base64,") for reference in references)
    assert "http" not in re.sub(r'src="[^"]*"', "", text)
    assert "<script" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_page_escapes_text():
    text = page(report())
    assert "A &lt;title&gt;" in text
    assert "<title>A &lt;title&gt;</title>" in text
    assert "a: &lt;b&gt;" in text
    assert "c &amp; d" in text
    assert 'alt="Falls &amp; &quot;rests&quot;."' in text
    assert "<code>moeapps fit</code> is <strong>it</strong>." in text


def test_page_adapts_to_phones_and_dark_rooms():
    text = page(report())
    assert 'name="viewport" content="width=device-width' in text
    assert "prefers-color-scheme: dark" in text
    assert 'class="wide"><table>' in text  # wide tables scroll, the page does not


def test_notices_come_before_numbers_in_both_forms():
    for text in (markdown(report()), page(report())):
        assert text.index("synthetic") < text.index("Result")


def test_markdown_table_keeps_its_columns():
    line = next(line for line in markdown(report()).splitlines() if "a\\|b" in line)
    assert line == "| a\\|b | 1 |"


def test_same_figure_gives_same_bytes():
    figure = report().sections[1].pictures[0].figure
    assert png(figure) == png(figure)
