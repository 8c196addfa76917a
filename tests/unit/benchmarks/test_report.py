"""Tests of the numbers that the benchmark reports, and of how it writes them."""

import json
from pathlib import Path

import pytest

from workloads.machine_limits import MachineLimits
from workloads.plot import save_plot
from workloads.report import Report
from workloads.session import Run
from workloads.shapes import SHAPES, MachineRates
from workloads.summary import Line, Spread, summarize
from workloads.systems import System

SHAPE = SHAPES["qwen3-0.6b"]
RATES = MachineRates(bytes_per_s=20e9, flops_per_s=1e12)
OURS, SMALL = System("kilotron"), System("kilotron", "small", options={"quantization": "int8"})
SLOW, FAST = System("transformers"), System("openvino")
Q8 = System("llama.cpp", "q8_0")
DECODE, COLD = "decode_tokens_per_s", "first_token_s"


def runs_of(system: System, values: list[float], figure: str = DECODE, foreign: float = 0.0) -> list[Run]:
    return [
        Run(
            system=system.name,
            workload="F" if figure == COLD else "A",
            repetition=repetition,
            figures={figure: value},
            foreign=foreign,
            stolen=0.0,
            own=0.5,
            is_counted=foreign < 0.05,
        )
        for repetition, value in enumerate(values)
    ]


def lines_of(runs: list[Run], *systems: System) -> list[Line]:
    return summarize(runs, systems, SHAPE, RATES)


def make_report(*, foreign: float = 0.0, failures: dict[str, str] | None = None) -> Report:
    runs = runs_of(OURS, [10.0, 12.0, 11.0], foreign=foreign) + runs_of(FAST, [8.0, 8.0, 8.0])
    return Report(
        shape=SHAPE,
        num_threads=2,
        divisor=1,
        limits=MachineLimits(RATES, "AMX bf16", ""),
        systems=[OURS, FAST],
        facts={"kilotron": {"version": "0.1"}},
        failures=failures or {},
        runs=runs,
        lines=lines_of(runs, OURS, FAST),
    )


def test_the_median_is_of_the_counted_runs() -> None:
    runs = runs_of(OURS, [10.0, 12.0, 11.0]) + runs_of(OURS, [3.0, 4.0], foreign=0.2)

    line = lines_of(runs, OURS)[0]

    assert line.figures[DECODE] == Spread(11.0, 10.0, 12.0)
    assert (line.num_counted, line.num_disturbed, line.is_sure) == (3, 2, True)


def test_disturbed_runs_stand_in_where_none_counts_and_are_told() -> None:
    line = lines_of(runs_of(OURS, [3.0, 4.0], foreign=0.2), OURS)[0]

    assert line.figures[DECODE].median == 3.5
    assert not line.is_sure


def test_the_ratio_is_to_the_best_peer() -> None:
    runs = runs_of(OURS, [12.0]) + runs_of(SLOW, [4.0]) + runs_of(FAST, [8.0])

    ratios = {line.system: line.ratio_to_best_peer for line in lines_of(runs, OURS, SLOW, FAST)}

    assert ratios == {"kilotron": 1.5, "transformers": 0.5, "openvino": 1.0}


def test_a_ratio_to_a_disturbed_peer_is_not_sure() -> None:
    runs = runs_of(OURS, [12.0]) + runs_of(SLOW, [4.0], foreign=0.2) + runs_of(Q8, [4.0], foreign=0.2)

    sure = {line.system: (line.is_sure, line.is_ratio_sure) for line in lines_of(runs, OURS, SLOW, Q8)}

    assert sure["kilotron"] == (True, False)


def test_a_ratio_of_times_is_above_one_when_ours_is_shorter() -> None:
    runs = runs_of(OURS, [2.0], COLD) + runs_of(SLOW, [9.0], COLD) + runs_of(FAST, [5.0], COLD)

    assert lines_of(runs, OURS, SLOW, FAST)[0].ratio_to_best_peer == 2.5


def test_systems_are_compared_with_peers_of_the_same_precision() -> None:
    runs = runs_of(OURS, [10.0]) + runs_of(SMALL, [18.0]) + runs_of(FAST, [10.0]) + runs_of(Q8, [12.0])

    ratios = {line.system: line.ratio_to_best_peer for line in lines_of(runs, OURS, SMALL, FAST, Q8)}

    assert (ratios["kilotron"], ratios["kilotron small"]) == (1.0, 1.5)
    assert lines_of(runs_of(SMALL, [18.0]) + runs_of(FAST, [10.0]), SMALL, FAST)[0].ratio_to_best_peer is None


def test_the_share_of_the_limit_counts_the_bytes_of_the_precision() -> None:
    plain, small = lines_of(runs_of(OURS, [10.0]) + runs_of(SMALL, [10.0]), OURS, SMALL)

    assert plain.limit_share == pytest.approx(10 * (596.0e6 * 2 + 192 * 114_688) / 20e9, rel=1e-3)
    assert small.limit_share == pytest.approx(10 * (596.0e6 + 192 * 114_688) / 20e9, rel=1e-3)


def test_the_table_has_medians_ranges_ratios_and_shares() -> None:
    text = make_report().to_markdown()

    assert "reads 20.0 GB/s, AMX bf16 1.000 TFLOP/s" in text
    assert "### A: one stream, prompt 128, decode 128" in text
    assert "| kilotron | 11 [10-12] | - | 1.38x | 67% | 3 |" in text
    assert "### B" not in text


def test_the_table_marks_what_was_disturbed_and_what_was_left_out() -> None:
    text = make_report(foreign=0.3, failures={"vllm": "vllm: it broke\nand more"}).to_markdown()

    assert "| kilotron | 11 [10-12]\\* | - | 1.38x\\* |" in text
    assert "0 (+3 disturbed)" in text
    assert "Left out: vllm: it broke" in text


def test_the_json_has_every_run() -> None:
    facts = json.loads(json.dumps(make_report().to_json()))

    assert [run["figures"][DECODE] for run in facts["runs"]] == [10.0, 12.0, 11.0, 8.0, 8.0, 8.0]
    assert facts["summary"][0]["figures"][DECODE] == {"median": 11.0, "low": 10.0, "high": 12.0}
    assert facts["systems"]["kilotron"] == {"precision": "bf16", "weight_bits": 16.0, "options": {}, "version": "0.1"}


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    save_plot(make_report(), tmp_path / "plot.png")

    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
