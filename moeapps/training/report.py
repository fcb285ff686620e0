"""Reports: sections once, written as Markdown with figure files and as one self-contained page."""

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from matplotlib.figure import Figure

from moeapps.data.integrity import atomic_write


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; columns after the first are aligned right.

    Args:
        header: Names of the columns.
        rows: One tuple per row.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A figure with what it shows.

    Args:
        name: File name without ending.
        figure: The drawing.
        caption: What to look at, in a sentence or two.
    """

    name: str
    figure: Figure
    caption: str

    @cached_property
    def png(self) -> bytes:
        """The figure's file, drawn once for both forms of the report."""
        return png(self.figure)


@dataclass(frozen=True)
class Section:
    """A heading with text, a table, pictures and preformatted text, each optional."""

    heading: str
    text: str = ""
    table: Table | None = None
    pictures: tuple[Picture, ...] = ()
    code: str = ""


@dataclass
class Report:
    """A title, a notice that must not be missed, and sections.

    Args:
        title: One line.
        subtitle: What and when, one line.
        notices: Short statements set off from the text: synthetic data, a partial run.
        sections: In order.

    Example:
        >>> report = Report("Run", "today", notices=["Synthetic data."])
        >>> report.sections.append(Section("Result", table=Table(("name", "value"), (("a", "1"),))))
        >>> print(markdown(report))
        # Run
        <BLANKLINE>
        today
        <BLANKLINE>
        > **Synthetic data.**
        <BLANKLINE>
        ## Result
        <BLANKLINE>
        | name | value |
        |---|---:|
        | a | 1 |
        <BLANKLINE>
    """

    title: str
    subtitle: str
    notices: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)


def write(report: Report, folder: str | Path) -> None:
    """Write ``report.md``, ``report.html`` and ``figures/*.png`` into a folder."""
    folder = Path(folder)
    for section in report.sections:
        for picture in section.pictures:
            _write(folder / "figures" / f"{picture.name}.png", picture.png)
    _write(folder / "report.md", markdown(report).encode())
    _write(folder / "report.html", page(report).encode())


def png(figure: Figure, *, dpi: int = 160) -> bytes:
    """A figure as PNG, without the date, so that the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def markdown(report: Report) -> str:
    """The report as Markdown; pictures are links to ``figures/``."""
    blocks = [f"# {report.title}", report.subtitle]
    blocks += [f"> **{notice}**" for notice in report.notices]
    for section in report.sections:
        blocks.append(f"## {section.heading}")
        if section.text:
            blocks.append(section.text)
        if section.table is not None:
            header, rows = section.table.header, section.table.rows
            lines = [_row(header), "|---" + "|---:" * (len(header) - 1) + "|"]
            blocks.append("\n".join([*lines, *(_row(row) for row in rows)]))
        blocks += [
            f"![{picture.name}](figures/{picture.name}.png)\n\n{picture.caption}"
            for picture in section.pictures
        ]
        if section.code:
            blocks.append(f"```\n{section.code.rstrip()}\n```")
    return "\n\n".join(blocks) + "\n"


def page(report: Report) -> str:
    """The report as one HTML page that needs no other file and no network."""
    body = [f"<h1>{_escape(report.title)}</h1>", f'<p class="sub">{_escape(report.subtitle)}</p>']
    body += [f'<p class="notice">{_escape(notice)}</p>' for notice in report.notices]
    for section in report.sections:
        body.append(f"<h2>{_escape(section.heading)}</h2>")
        body += [f"<p>{_inline(part)}</p>" for part in section.text.split("\n\n") if part]
        if section.table is not None:
            body.append(_html_table(section.table))
        body += [_html_picture(picture) for picture in section.pictures]
        if section.code:
            body.append(f"<pre>{_escape(section.code.rstrip())}</pre>")
    return _PAGE.format(title=_escape(report.title), style=_STYLE, body="\n".join(body))


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{_escape(name)}</th>" for name in table.header)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    inner = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="wide"><table>{inner}</table></div>'


def _html_picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    return (
        f'<figure><img alt="{_escape(picture.caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{_inline(picture.caption)}</figcaption></figure>"
    )


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _inline(text: str) -> str:
    """Escaped text in which ``code`` and **strong** work as in Markdown."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", _escape(text))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)


_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #5b6773; --line: #dde2e7; --back: #ffffff;
  --code: #f3f5f7; --note: #fff7e0; --note-line: #e69f00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e9ed; --soft: #a3adb8; --line: #39424c;
  --back: #15191e; --code: #20262d; --note: #332a12; --note-line: #e69f00; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 58rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid var(--line); }
.sub { color: var(--soft); margin: 0 0 1rem; }
.notice { background: var(--note); border-left: 4px solid var(--note-line); padding: .6rem .8rem;
  border-radius: 3px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: bottom; }
th, td:first-child { white-space: normal; }
td:first-child { min-width: 7.5rem; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; line-height: 1.3; }
figure { margin: 1.4rem 0; }
img { display: block; width: 100%; max-width: 46rem; height: auto; background: #fff;
  border: 1px solid var(--line); border-radius: 4px; }
figcaption { color: var(--soft); font-size: .93rem; margin-top: .4rem; max-width: 46rem; }
pre { background: var(--code); padding: .8rem; border-radius: 4px; overflow-x: auto;
  font-size: .85rem; }
code { background: var(--code); padding: .1em .3em; border-radius: 3px; font-size: .92em; }
@media (max-width: 30rem) { th, td { font-size: .86rem; padding-right: .55rem; }
  td:first-child { min-width: 5.5rem; } }
@media print { main { max-width: none; } figure { break-inside: avoid; } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
