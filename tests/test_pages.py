"""The front page and the lab book tell the truth: their commands, links, names and network."""

import os
import re
import shutil
import subprocess

import pytest
import torch

import utils
from common import NOTEBOOKS, PAGES, ROOT, get_rows
from experiments import benchmark, claims, compare, replicate
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
    model = Session8Net("none").eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(0.1)  # nothing cancels
    size = 96  # of which a middle output of GAP's input sees a part
    image = torch.ones(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    x = image
    for name, layer in list(model.double().layers.named_children())[:-2]:
        pool = isinstance(layer, torch.nn.MaxPool2d)
        x = torch.nn.AvgPool2d(2)(x) if pool else layer(x)  # the maximum would pick one of four
        middle = x.shape[-1] // 2
        (gradient,) = torch.autograd.grad(x[..., middle, middle].sum(), image, retain_graph=True)
        seen = gradient.abs().sum(dim=(0, 1, 2)).nonzero().flatten()
        assert fields[name] == f"{len(seen)} x {len(seen)}", name
    assert name == "C10"


def test_accuracies_stand_only_in_the_tables_that_are_made_from_the_results():
    for page in PAGES.values():
        text = re.sub(r"<!-- ([\w-]+) -->.*?<!-- /\1 -->", "", page, flags=re.DOTALL)
        text = re.sub(r"[\d.]+<!--= .*? -->", "", text)
        assert len(text) < len(page)
        assert re.findall(r"\b[678]\d\.\d\d\b", text) == []


# --- Commands, files and names


def test_the_commands_are_there_and_ci_runs_the_one_for_the_tests():
    setup = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && "
    every = "\n".join(COMMANDS).splitlines()
    run, test = [command.removeprefix(setup) for command in every if command.startswith(setup)]
    said = ".venv/bin/jupyter nbconvert --to notebook --execute --output my-run.ipynb "
    assert run.startswith(said), "a copy: the committed run stays"
    assert ROOT / run.split()[-1] in NOTEBOOKS.values()
    assert test == ".venv/bin/pytest"
    clone, *lines = COMMANDS[0].split("\n")  # the same in three lines, with a short recipe
    assert clone.startswith("git clone ")
    assert " && ".join(lines) == f"{setup}RECIPE=quick {run}".replace("my-run", "my-quick")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "grep -m 1 'bin/pytest$' README.md" in ci


def test_the_experiments_take_the_options_that_are_shown(monkeypatch):
    monkeypatch.delenv("RECIPE")
    shown = re.findall(r"\.venv/bin/python -m experiments\.(\w+)(.*)", "\n".join(COMMANDS))
    parsers = {m.__name__.split(".")[1]: m.parse for m in (replicate, claims, compare, benchmark)}
    for name, options in shown:
        assert (ROOT / "experiments" / f"{name}.py").is_file()
        if name in parsers and "$" not in options:
            parsers[name](options.split())  # SystemExit for an unknown one
        elif name not in parsers:
            assert options == ""
    assert {name for name, _ in shown} == {*parsers, "report"}


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")
def test_the_scheduler_gets_all_runs_one_a_job(tmp_path):
    command = next(command for command in COMMANDS if "sbatch" in command)
    stub = tmp_path / "sbatch"  # prints what each job of the array would run
    stub.write_text(
        '#!/bin/sh\nfor SLURM_ARRAY_TASK_ID in 1 2 3 4 5; do eval "echo $PRECISION $3"; done\n',
        encoding="utf-8",
    )
    stub.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    jobs = subprocess.run(
        ["sh", "-c", command], env={"PATH": path}, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert all(job.startswith("float32 ") for job in jobs)
    runs = [replicate.parse(job.split("replicate ")[1].split()) for job in jobs]
    assert all(len(run.norms) == len(run.recipes) == len(run.seeds) == 1 for run in runs)
    assert "--array=1-5 --wrap " in command
    assert len({(*run.norms, *run.recipes, *run.seeds) for run in runs}) == 60


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_image_leads_somewhere(page):
    text, folder = PAGES[page], (ROOT / page).parent
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) >= 5
    for target in targets:
        file, _, place = target.partition("#")
        assert (folder / file).exists(), target
        if place:
            heads = re.findall(
                r"^#+ (.*)$", (folder / file).read_text(encoding="utf-8") if file else text, re.M
            )
            assert place in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in heads]
    assert all(re.findall(r"!\[(.*?)\]", text))


def test_every_figure_is_on_a_page():
    command = ["git", "-C", str(ROOT), "ls-files", "images"]  # not those of the user's own
    if not (shutil.which("git") and (ROOT / ".git").exists()):
        pytest.skip("no git repository")
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(listed.stderr)  # it belongs to another user
    assert len(listed.stdout.split()) > 5
    for path in listed.stdout.split():
        assert path in README + LAB


def test_the_names_on_the_front_page_exist():
    row = next(line for line in README.splitlines() if line.startswith("| [utils.py]"))
    names = re.findall(r"`([A-Za-z_]+)`", row)
    assert len(names) >= 14
    assert [name for name in names if not hasattr(utils, name)] == []


def test_the_recipes_and_variables_of_the_pages_exist():
    rows = {
        row[0]: row for row in re.findall(r"^\| `([A-Z0-9_]+)` \| (.*) \| `(.*)` \|$", README, re.M)
    }
    assert set(rows) == {"RECIPE", "SEED", "PRECISION", "CIFAR10_ROOT"}
    named = re.findall(r"`(\w+)`", rows["RECIPE"][1])
    assert [name for name in named if name not in utils.RECIPES] == []
    code = "\n".join(path.read_text(encoding="utf-8") for path in NOTEBOOKS.values())
    assert set(re.findall(r"environ\.get\(\\\"(\w+)\\\"", code)) == set(rows)
    for name, default in (("RECIPE", rows["RECIPE"][2]), ("PRECISION", "native")):
        assert f'environ.get(\\"{name}\\", \\"\\").strip() or \\"{default}\\"' in code
