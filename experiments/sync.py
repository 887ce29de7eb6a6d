"""Copy the Batch notebook's cells to the other two, so that one edit is enough.

    python -m experiments.sync            write what differs
    python -m experiments.sync --check    write nothing, and fail if something differs

A cell tagged `lesson` is each notebook's own. A cell whose text changes loses its outputs.
"""

import argparse
import copy
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = {
    norm: ROOT / f"ERA_Session8_{name}Normalization.ipynb"
    for norm, name in (("bn", "Batch"), ("gn", "Group"), ("ln", "Layer"))
}


def copy_cells(source: nbformat.NotebookNode, target: nbformat.NotebookNode, norm: str) -> list:
    """Return the cells of `source` for that norm, with what is the target's own."""
    own, cells = {cell.id: cell for cell in target.cells}, []
    for cell in source.cells:
        old, new = own.get(cell.id), copy.deepcopy(cell)
        if cell.cell_type == "code":
            new.source = cell.source.replace('norm = "bn"', f'norm = "{norm}"')
        if old and "lesson" in cell.metadata.get("tags", []):
            new.source = old.source
        if cell.cell_type == "code":
            same = old is not None and old.source == new.source
            new.outputs = old.outputs if same else []
            new.execution_count = old.execution_count if same else None
        cells.append(new)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description="Copy the Batch notebook's cells to the others.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if one differs")
    check, differ = parser.parse_args().check, []
    books = {norm: nbformat.read(path, 4) for norm, path in NOTEBOOKS.items()}
    for norm, path in NOTEBOOKS.items():
        cells = copy_cells(books["bn"], books[norm], norm)
        if cells != books[norm].cells:
            differ.append(path.name)
            books[norm].cells = cells
            if not check:
                nbformat.write(books[norm], path)
    print("Different:" if differ else "The three notebooks agree.", *differ)
    sys.exit(1 if check and differ else 0)


if __name__ == "__main__":
    main()
