"""What is made of scales and shifts: tables and figures of made-up results with known answers."""

import math

import pytest

from common import need_packages, read_table

need_packages()

from experiments import internals  # noqa: E402


@pytest.fixture
def scales():
    """Channels of three sizes, in C10 a hundredth of those in C1 before training with `none`."""
    channels = [1.0, 2.0, 4.0]
    sizes = {
        ("none", "before"): 0.01,
        ("none", "after"): 0.5,
        ("bn", "before"): 1,
        ("bn", "after"): 1,
    }
    return {
        ("scales-0.05", arm, seed): {
            moment: {
                "C1": [seed * c for c in channels],
                "C10": [seed * sizes[arm, moment] * c for c in channels],
            }
            for moment in ("before", "after")
        }
        for arm in ("bn", "none")
        for seed in (1, 2)
    }


def test_scales_are_compared_by_factors(scales):
    rows = read_table(internals.make_scales(internals.make_scale_frame(scales)))
    spread = f"{3.6 / 1.2:g} (3 to 3)"  # percentiles of 1, 2 and 4, between two channels
    assert rows == [
        ["`none`", "100 (100 to 100)", spread, "2 (2 to 2)", spread],
        ["`bn`", "1 (1 to 1)", spread, "1 (1 to 1)", spread],
    ]
    assert internals.format_factors(internals.pd.Series([1.0, 4.0])) == "2 (1 to 4)"
    assert internals.format_factors(internals.pd.Series([123456.0] * 2)).startswith("123,000 (")
    assert internals.format_factors(internals.pd.Series([1.0, math.inf])) == "∞ (1 to ∞)"


def test_the_figure_of_scales_has_a_line_an_arm_before_and_after(scales):
    before, after = internals.draw_scales(internals.make_scale_frame(scales)).axes
    assert [line.get_ydata().tolist() for line in before.lines] == [[3.0, 0.03], [3.0, 3.0]]
    assert [line.get_ydata().tolist() for line in after.lines] == [[3.0, 1.5], [3.0, 3.0]]
    assert [text.get_text() for text in before.get_legend().get_texts()] == ["None", "Batch"]


@pytest.fixture
def shifts():
    def make_row(step, value):
        both = {"change": value, "cosine": value / 10}
        return {
            "step": step,
            "shift": dict.fromkeys(("C2", "C5", "C8", "C10"), both),
            "loss_range": [1.0, 1.0 + value],
            "change": 2 * value,
            "smoothness": 3 * value,
        }

    return {
        ("shift-0.1", arm, seed): {
            "rows": [make_row(20 * i, v + seed) for i, v in enumerate(values)]
        }
        for arm, values in {"bn": (1.0, 2.0, 9.0), "none": (0.1, 0.2, 0.3)}.items()
        for seed in (1, 2)
    }


def test_shifts_are_medians_of_steps_and_means_of_seeds(shifts):
    shifts["shift-0.1", "bn", 1]["rows"][2]["loss_range"] = [1.0, None]  # it overflowed
    rows = read_table(internals.make_shift(internals.make_shift_frame(shifts)))
    cells = {row[0]: row[1:] for row in rows}
    half = 12.706 / 2  # Student's t for one degree of freedom, medians 1 apart
    assert cells["change of C5's gradient"] == [f"1.7 ± {half:.2g}", f"3.5 ± {half:.2g}"]
    assert cells["range of the loss"][1] == f"{(2.5 + 4) / 2:.3g} ± {1.5 * half:.2g}"
    assert cells["largest change by its distance"][0] == f"{3 * 1.7:.3g} ± {3 * half:.2g}"
    assert len(rows) == 11
    one = {key: run for key, run in shifts.items() if key[2] == 1}
    rows = read_table(internals.make_shift(internals.make_shift_frame(one)))
    assert ["change of C5's gradient", "1.2", "3"] in rows, "one run has no interval"


def test_bn_is_compared_with_the_other_norms(shifts):
    norms = {"gn": (2.0, 3.0), "ln": (2.0, 4.0)}  # made of bn's by one seed's offset
    for norm, offsets in norms.items():
        for seed, offset in enumerate(offsets, 1):
            rows = [dict(row) for row in shifts["shift-0.1", "bn", seed]["rows"]]
            for row in rows:
                row["smoothness"] += offset
            shifts["shift-0.1", norm, seed] = {"rows": rows}
    rows = read_table(internals.make_shift_differences(internals.make_shift_frame(shifts)))
    cells = {row[0]: [cell.split(" ")[0] for cell in row[1:]] for row in rows}
    assert cells["largest change by its distance"] == ["-2.50", "-3.00"]
    assert cells["cosine, C2"] == ["+0.00", "+0.00"]
    assert len(rows) == 11


def test_the_figure_of_shifts_has_the_steps_that_were_measured(shifts):
    figure = internals.draw_shift(internals.make_shift_frame(shifts))
    assert len(figure.axes) == 6
    for axis in figure.axes:
        assert [line.get_xdata().tolist() for line in axis.lines] == [[0, 20, 40]], "bn's alone"
        assert axis.get_title()
