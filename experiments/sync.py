"""Copy the Batch notebook's cells to the other two, so that one edit is enough.

    python -m experiments.sync            write what differs
    python -m experiments.sync --check    write nothing, and fail if something differs

A cell tagged `lesson` keeps each notebook's own text. A code cell that changes loses its outputs.
"""

import argparse
import copy
import sys
from collections.abc import Sequence

import nbformat

from experiments.results import NOTEBOOKS


def copy_cells(source: list, target: list, norm: str) -> list:
    """Return the cells of `source` for that norm, keeping the target's own texts and outputs."""
    own, cells = {cell.id: cell for cell in target}, copy.deepcopy(source)
    for cell in cells:
        old = own.get(cell.id, {})
        if "lesson" in cell.metadata.get("tags", []):
            cell.source = old.get("source", cell.source)
        elif cell.cell_type == "code":
            cell.source = cell.source.replace('norm = "bn"', f'norm = "{norm}"')
            kept = old if old.get("source") == cell.source else {}
            cell.outputs = kept.get("outputs", [])
            cell.execution_count = kept.get("execution_count")
    return cells


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Copy the Batch notebook's cells to the others.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if one differs")
    check, differ = parser.parse_args(arguments).check, []
    source = nbformat.read(NOTEBOOKS["bn"], 4).cells
    for norm, path in NOTEBOOKS.items():
        book = nbformat.read(path, 4)
        cells, book.cells = book.cells, copy_cells(source, book.cells, norm)
        if cells != book.cells:
            differ.append(path.name)
            if not check:
                nbformat.write(book, path)
    print("Different:" if differ else "The three notebooks agree.", *differ)
    sys.exit(bool(check and differ))


if __name__ == "__main__":
    main()
