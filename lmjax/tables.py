"""Markdown tables."""

from collections.abc import Iterable, Sequence


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], align: str = ""
) -> list[str]:
    """Returns the lines of a Markdown table.

    Args:
      header: cells of the header row.
      rows: cells of the other rows.
      align: one letter per column, 'l' or 'r'; a single letter applies to all columns, and ''
        aligns the first column left and the others right.
    """
    align = align or "l" + "r" * (len(header) - 1)
    align = align * len(header) if len(align) == 1 else align
    ruler = ["---:" if side == "r" else "---" for side in align]
    return [markdown_row(header), markdown_row(ruler), *map(markdown_row, rows)]


def markdown_row(cells: Iterable[str]) -> str:
    """Returns one line of a table. Cells are joined to one line, and their `|` is escaped."""
    texts = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(texts)} |"
