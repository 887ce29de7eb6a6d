"""The speed: what is measured, and what is made of it; no test asserts a time."""

import pytest
import torch

from common import make_run, write_result
from experiments import benchmark
from experiments import results as records


@pytest.mark.parametrize("kind", benchmark.KINDS)
def test_a_loop_runs_as_many_steps_as_asked_for(kind, monkeypatch):
    calls = []

    def count(owner, name):
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: (calls.append(name), method(*args))[1])

    monkeypatch.setattr(benchmark, "SIZE", 1024)
    run = benchmark.KINDS[kind]("gn")
    count(benchmark.Session8Net, "forward")
    count(torch.Tensor, "backward")
    run(3)
    assert calls == (["forward"] if "evaluation" in kind else ["forward", "backward"]) * 3


def test_a_step_s_time_is_that_of_the_steps_after_the_warm_up(monkeypatch):
    now = [0.0]

    def run(steps):  # the first one takes 100 seconds, each later one 2
        now[0] += 2 * steps + (100 if now[0] == 0 else 0)

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(benchmark, "RUN", run, raising=False)
    assert benchmark.measure() == 2000


MEDIANS = {"ours": 20.0, "floor": 19.0, "textbook": 80.0}
MEDIANS |= {"ours, small images": 12.0, "ours, evaluation": 6.0, "ours, float32": 40.0}
MEDIANS |= {"ours, float32, small images": 25.0, "ours, float32, evaluation": 10.0}


def test_minutes_are_those_to_the_final_accuracy(monkeypatch, tmp_path):
    monkeypatch.setenv("PRECISION", "bfloat16")
    monkeypatch.setattr(records, "ROOT", tmp_path)
    for recipe, seed, precision, tests in (
        ("reference", 1, "float32", [60.0, 76.95, 70.0, 77.0]),  # within 0.1 after 2 epochs
        ("reference", 2, "float32", [60.0, 70.0, 79.0, 79.0]),  # after 3
        ("reference", 9, "float32", [50.0]),  # of no page's seed
        ("quick", 1, "bfloat16", [50.0, 80.0]),
    ):
        run = make_run(recipe, "bn", seed, precision)
        write_result(tmp_path / "results", run, history={"test_acc": tests})
    usual = 2.5 * 391 * 80 / 60_000
    # Four epochs, the first two of them with small images, each with two evaluations of 79 steps.
    quick = (391 * (2 * 20 + 2 * 12) + 4 * 158 * 6) / 60_000
    float32 = (391 * (2 * 40 + 2 * 25) + 4 * 158 * 10) / 60_000
    cells = ["2.5", f"{usual:.1f}", "78.00", f"{quick:.1f}", f"{usual / quick:.1f}", "80.00"]
    cells += [f"{float32:.1f}", f"{usual / float32:.1f}", "–"]  # there is no such run
    assert benchmark.make_minutes("bn", MEDIANS) == f"| bn | {' | '.join(cells)} |"
