"""The speed: what is measured, and what is made of it; no test asserts a time."""

import pytest
import torch

from experiments import benchmark
from experiments import results as records


@pytest.mark.parametrize("kind", benchmark.KINDS)
def test_a_loop_runs_as_many_steps_as_it_is_asked_for(kind, monkeypatch):
    monkeypatch.setattr(benchmark, "SIZE", 1024)
    updates, step = [], torch.optim.SGD.step  # of all, or of the scales and shifts
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (updates.append(1), step(self)))
    run = benchmark.KINDS[kind]("gn")
    run(3)
    assert len(updates) == (0 if "evaluation" in kind else 3)


TIMES = {
    "textbook, 0 workers": [90.0, 100.0, 300.0],
    "textbook, 2 workers": [80.0, 80.0, 200.0],
    "ours": [20.0, 20.0, 50.0],
    "ours, SGD": [10.0, 16.0, 20.0],
    "floor": [19.0, 18.0, 19.0],
    "ours, evaluation": [6.0, 6.0, 7.0],
    "ours, float32": [40.0, 40.0, 40.0],
    "ours, float32, evaluation": [10.0, 10.0, 10.0],
}
MEASURED = {kind: (values, 1.0) for kind, values in TIMES.items()}


def test_the_ratios_are_of_medians_and_against_the_faster_textbook_loop():
    assert list(TIMES) == list(benchmark.KINDS)
    assert benchmark.make_ratios("bn", MEASURED) == "| bn | 4.00 | 0.95 | 1.25 | 0.060 |"
    row = benchmark.make_rows("bn", MEASURED)[2]
    assert row == "| bn | ours | 20.0 (20.0 to 50.0) | 6,400 | 7.8 | 1.00 |"
    row = benchmark.make_rows("bn", MEASURED)[5]  # 79 steps
    assert row == "| bn | ours, evaluation | 6.0 (6.0 to 7.0) | 21,333 | 0.5 | 1.00 |"


def test_the_minutes_are_those_to_the_published_accuracy(monkeypatch):
    monkeypatch.setenv("PRECISION", "bfloat16")
    histories = {
        ("reference", "bn", 1): [60.0, 76.95, 70.0, 77.0],  # within 0.1 after 2 epochs
        ("reference", "bn", 2): [60.0, 70.0, 79.0, 79.0],  # after 3
        ("reference", "bn", 9): [50.0],  # of no page's seed
        ("quick", "bn", 1): [50.0, 80.0],
    }
    results = {key: {"history": {"test_acc": history}} for key, history in histories.items()}
    floats = {key: results[key] for key in histories if key[0] == "reference"}
    monkeypatch.setattr(
        records, "load_results", lambda path: floats if path.name == "float32" else results
    )
    usual = 2.5 * 391 * 80 / 60_000
    quick, float32 = (4 * (391 * ours + 79 * test) / 60_000 for ours, test in ((20, 6), (40, 10)))
    cells = ["2.5", f"{usual:.1f}", "78.00", f"{quick:.1f}", f"{usual / quick:.1f}", "80.00"]
    cells += [f"{float32:.1f}", f"{usual / float32:.1f}", "–"]  # there is no such run
    assert benchmark.make_minutes("bn", MEASURED) == f"| bn | {' | '.join(cells)} |"


@pytest.mark.parametrize("options", [["--steps", "392"], ["--steps", "0"], ["--repeats", "0"]])
def test_a_measurement_is_of_at_most_an_epoch(options, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse(options)
    assert "--steps must be from 1 to 391, one epoch" in capsys.readouterr().err
