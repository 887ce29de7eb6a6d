"""What the notebooks hold; that they run is nbval's part."""

import json
import re

import pytest

import evidence
from conftest import NOTEBOOKS, ROOT

notebooks = pytest.mark.parametrize("norm", NOTEBOOKS)


def read(norm):
    return json.loads(NOTEBOOKS[norm].read_text())["cells"]


def get_code(norm):
    return ["".join(cell["source"]) for cell in read(norm) if cell["cell_type"] == "code"]


def get_outputs(norm):
    """Return all that the notebook shows as text."""
    outputs = [output for cell in read(norm) for output in cell.get("outputs", [])]
    return "\n".join(
        "".join(output.get("text", output.get("data", {}).get("text/plain", "")))
        for output in outputs
    )


def test_the_code_differs_in_one_line_that_names_the_norm():
    lines = {norm: "\n".join(get_code(norm)).split("\n") for norm in NOTEBOOKS}
    assert len({len(code) for code in lines.values()}) == 1
    differ = [row for row in zip(*lines.values(), strict=True) if len(set(row)) > 1]
    assert differ == [tuple(f'norm = "{norm}"' for norm in NOTEBOOKS)]


@notebooks
def test_a_cell_is_short_and_a_sentence_stands_before_it(norm):
    cells = read(norm)
    for before, cell in zip(cells, cells[1:], strict=False):
        if cell["cell_type"] == "code":
            assert before["cell_type"] == "markdown"
            assert 1 <= len(cell["source"]) <= 10
    assert not re.search(r"^\s*(def|class) ", "\n".join(get_code(norm)), re.MULTILINE)


@notebooks
def test_the_blocks_are_the_seven_published_ones(norm):
    text = "\n".join("".join(c["source"]) for c in read(norm) if c["cell_type"] == "markdown")
    assert re.findall(r"^## Block (\d)", text, re.MULTILINE) == list("1234567")


@notebooks
def test_the_committed_outputs_are_of_one_clean_run_on_the_real_data(norm):
    code = [cell for cell in read(norm) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = [output["output_type"] for cell in code for output in cell["outputs"]]
    assert "error" not in kinds
    text = get_outputs(norm)
    assert "CIFAR-10: 50,000 training and 10,000 test images" in text
    assert "NOT CIFAR-10" not in text
    assert "Total params: 48,448" in text
    assert "Warning" not in text
    assert not re.search(r"(?<![\w.])/\w+/|\b[A-Z]:\\", text), "a path of a machine"


@notebooks
def test_the_committed_run_is_the_committed_result(norm):
    result = evidence.load_results(ROOT / "results")["onecycle", norm, 1]
    history = result["history"]
    text = get_outputs(norm)
    for epoch, accuracy in enumerate(history["test_acc"], 1):
        assert re.search(rf"^ +{epoch} .* {accuracy:.2f} +[\d.]+$", text, re.MULTILINE), epoch
    correct = round(history["test_acc"][-1] * 100)
    assert f"{correct:,} of 10,000 test images right, {history['test_acc'][-1]:.2f}%" in text
