"""Tables of texts: what a command prints, a page shows and a notebook displays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        columns: the names of the columns.
        rows: the texts of the cells.
        title: a line above the table.
        numbers: the columns that are aligned to the right.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    numbers: Sequence[str] = ()

    def html(self) -> str:
        """The table for a notebook, without scripts and styles of its own. All text is escaped.

        Examples:
            >>> Table(("what", "bytes"), [("a < b", "17 B")], numbers=("bytes",)).html()
            '<table>...<td style="text-align: left">a &lt; b</td>...'
        """
        sides = ["right" if name in self.numbers else "left" for name in self.columns]

        def line(cell: str, texts: Sequence[str]) -> str:
            cells = (
                f'<{cell} style="text-align: {side}">{escape(text)}</{cell}>'
                for side, text in zip(sides, texts, strict=True)
            )
            return f"<tr>{''.join(cells)}</tr>"

        head = paragraph(self.title) if self.title else ""
        body = "".join(line("td", row) for row in self.rows)
        columns = line("th", self.columns)
        return f"{head}<table><thead>{columns}</thead><tbody>{body}</tbody></table>"


def paragraph(text: str) -> str:
    """A paragraph for a notebook."""
    return f"<p>{escape(text)}</p>"
