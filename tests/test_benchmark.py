"""The speed: what is measured, and what is made of it; no test asserts a time."""

import pytest
import torch

import benchmark


@pytest.mark.parametrize("kind", benchmark.KINDS)
def test_a_loop_runs_as_many_steps_as_it_is_asked_for(kind, monkeypatch):
    monkeypatch.setattr(benchmark, "SIZE", 1024)
    updates, step = [], torch.optim.SGD.step  # of all, or of the scales and shifts
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (updates.append(1), step(self)))
    run = benchmark.KINDS[kind]("gn")
    run(3)
    assert len(updates) == (0 if kind == "ours, evaluation" else 3)


def test_the_ratios_are_of_medians_and_against_the_faster_textbook_loop():
    times = {
        "textbook, 0 workers": [90.0, 100.0, 300.0],
        "textbook, 2 workers": [80.0, 80.0, 200.0],
        "ours": [20.0, 20.0, 50.0],
        "ours, SGD": [10.0, 16.0, 20.0],
        "floor": [19.0, 18.0, 19.0],
        "ours, evaluation": [6.0, 6.0, 7.0],
    }
    measured = {kind: (values, 1.0) for kind, values in times.items()}
    ratios = benchmark.make_ratios("bn", measured)
    usual, quick = 20 * 391 * 0.08 / 60, benchmark.QUICK.epochs * (391 * 0.02 + 79 * 0.006) / 60
    minutes = f"{usual:.1f} | {quick:.1f} | {usual / quick:.1f}"
    assert ratios == f"| bn | 4.00 | 0.95 | 1.25 | 0.060 | {minutes} |"
    row = benchmark.make_rows("bn", measured)[2]
    assert row == "| bn | ours | 20.0 (20.0 to 50.0) | 6,400 | 7.8 | 1.00 |"
    row = benchmark.make_rows("bn", measured)[5]  # 79 steps
    assert row == "| bn | ours, evaluation | 6.0 (6.0 to 7.0) | 21,333 | 0.5 | 1.00 |"


@pytest.mark.parametrize("options", [["--steps", "392"], ["--steps", "0"], ["--repeats", "0"]])
def test_a_measurement_is_of_at_most_an_epoch(options, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse(options)
    assert "--steps must be from 1 to 391, one epoch" in capsys.readouterr().err
