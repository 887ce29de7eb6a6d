"""The front page and the lab book tell the truth: their commands, links, names and network."""

import re

import pytest
import torch

import utils
from common import NOTEBOOKS, PAGES, ROOT, get_rows
from experiments import claims, compare, replicate
from models import Session8Net

README, LAB = PAGES.values()
COMMANDS = re.findall(r"```sh\n(.*?)\n```", README + LAB, re.DOTALL)


def test_the_table_of_the_architecture_is_the_network():
    rows, image = get_rows(README, "architecture"), torch.zeros(1, 3, 32, 32)
    model = Session8Net("bn").eval()
    layers = dict(model.layers.named_children())
    assert [row[0] for row in rows[:-1]] == [f"`{name}`" for name in layers]
    for row, layer in zip(rows[:-1], layers.values(), strict=True):
        image = layer(image)
        assert row[2] == " x ".join(map(str, image.shape[1:]))
        assert row[4] == f"{sum(p.numel() for p in layer.parameters()):,}"
    assert rows[-1][-1] == "**48,448**"


def test_a_receptive_field_is_what_an_output_can_see():
    fields = {row[0].strip("`"): row[3] for row in get_rows(README, "architecture")}
    model, size = Session8Net("none").eval().double(), 64
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(0.1)  # nothing cancels: a brighter pixel is a larger output
    x = torch.ones(size + 1, 3, size, size, dtype=torch.float64)
    for column in range(size):
        x[column, ..., column] = 100.0  # one column is brighter in each image but the last
    for name, layer in list(model.layers.named_children())[:-2]:
        x = layer(x)
        middle = x[:, 0, x.shape[2] // 2, x.shape[3] // 2]
        seen = (middle[:-1] > middle[-1]).sum()
        assert fields[name] == f"{seen} x {seen}", name
    assert name == "C10"


# What is no finding, or is one of a single run: thresholds, rates, sources, versions.
TYPED = {
    "README.md": {"3.10"},
    "experiments/README.md": {
        *("0.01", "0.02", "0.03", "0.04", "0.05", "0.08"),
        *("0.1 points", "52.5 %", "71.1 %", "76.9 %"),
    },
}


def find_numbers(text):
    """Return the numbers with two decimals, and those with one before % or points."""
    found = re.findall(r"(?<![\d.])(\d+\.\d\d(?!\.?\d)|\d+\.\d\s(?:%|points?))", text)
    return {re.sub(r"\s", " ", number) for number in found}


@pytest.mark.parametrize("page", PAGES)
def test_a_number_in_prose_is_marked(page):
    text = re.sub(r"<!-- ([\w-]+) -->.*?<!-- /\1 -->", "", PAGES[page], flags=re.DOTALL)
    text = re.sub(r"```.*?```|`[^`\n]*`|[-+\d.,]+<!--= .*? -->", "", text, flags=re.DOTALL)
    assert find_numbers(text) - TYPED[page] == set()
    typed = f"{text}at 58.04 %, by 49.0 % or 1.5\npoints; torch 2.14.1, 1.2 to 1.4 times, 5 %."
    assert find_numbers(typed) - TYPED[page] == {"58.04", "49.0 %", "1.5 points"}


# --- Commands, files and names


def test_the_commands_run_notebooks_and_experiments_that_are_there(monkeypatch):
    lines = [command for line in "\n".join(COMMANDS).splitlines() for command in line.split(" && ")]
    executed = [line.split() for line in lines if "jupyter execute" in line]
    assert [words[0] for words in executed] == ["RECIPE=smoke", "RECIPE=quick"]
    for words in executed:
        assert ROOT / words[-1] in NOTEBOOKS.values()
        assert words[-2].startswith("--output=my-"), "which git ignores"
    assert ".venv/bin/pytest" in lines
    monkeypatch.delenv("RECIPE")
    shown = re.findall(r"\.venv/bin/python -m experiments\.(\w+)(.*)", "\n".join(COMMANDS))
    parsers = {m.__name__.split(".")[1]: m.parse for m in (replicate, claims, compare)}
    assert {name for name, _ in shown} == {*parsers, "report", "benchmark"}
    for name, options in shown:
        if name not in parsers:
            assert options == ""
        elif "$" not in options:
            parsers[name](options.split())  # SystemExit for an unknown one


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_image_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)]+)\)", PAGES[page])
    assert len(targets) >= 5
    for target in targets:
        file, _, place = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), target
        if place:
            heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
            assert place in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in heads]
    assert all(re.findall(r"!\[(.*?)\]", PAGES[page]))


def test_the_names_recipes_and_variables_of_the_front_page_exist():
    row = next(line for line in README.splitlines() if line.startswith("| [utils.py]"))
    names = re.findall(r"`([A-Za-z_]+)`", row)
    assert names
    assert [name for name in names if not hasattr(utils, name)] == []
    variables = dict(re.findall(r"^\| `([A-Z0-9_]+)` \| (.*) \| `.*` \|$", README, re.M))
    assert set(re.findall(r"`(\w+)`", variables["RECIPE"])) <= set(utils.RECIPES)
    code = NOTEBOOKS["bn"].read_text(encoding="utf-8")
    assert set(re.findall(r"environ\.get\(\\\"(\w+)\\\"", code)) == set(variables)
