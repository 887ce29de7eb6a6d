"""The speed: what is measured, and what is made of it; no test asserts a time."""

import pytest
import torch

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
    monkeypatch.setitem(benchmark.KINDS, "slow at first", lambda norm: run)
    assert benchmark.measure("slow at first", "bn") == 2000


def test_the_speed_is_written_where_the_report_finds_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PRECISION", "float32")
    monkeypatch.setattr(records, "SPEED", tmp_path / "speed")
    times = {kind: [10.0 + i, 10.0 + i, 99.0] for i, kind in enumerate(benchmark.KINDS)}
    monkeypatch.setattr(benchmark, "measure_norm", lambda *_: times)
    assert records.load_speed() is None
    benchmark.main()
    assert "bn, floor: 12.0 ms per step (12.0 to 99.0)" in capsys.readouterr().out
    speed = records.load_speed()
    assert speed["environment"]["precision"] == "float32"
    assert list(speed["steps"]) == ["bn", "gn", "ln"]
    assert speed["steps"]["ln"]["floor"] == {"median": 12.0, "low": 12.0, "high": 99.0}
    assert set(speed["steps"]["bn"]) == set(benchmark.KINDS)
