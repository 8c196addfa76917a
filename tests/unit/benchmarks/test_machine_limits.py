"""Tests of the machine's limits: that something sensible is measured with and without a compiler."""

import shutil
from pathlib import Path

import pytest

from workloads.machine_limits import MachineLimits, measure_limits, measure_with_torch
from workloads.shapes import MachineRates


def test_torch_measures_where_there_is_no_compiler_and_says_so() -> None:
    limits = measure_with_torch(1, "there is no C compiler", num_bytes=1 << 22, size=64)

    assert min(limits.rates) > 0
    assert limits.describe().endswith("(there is no C compiler)")


def test_the_better_of_two_measurements_is_the_limit() -> None:
    before = MachineLimits(MachineRates(3.0, 10.0), "AMX bf16", "")
    after = MachineLimits(MachineRates(4.0, 9.0), "AMX bf16", "")

    assert before.best_of(after).rates == MachineRates(4.0, 10.0)


def test_one_undisturbed_measurement_of_two_is_enough() -> None:
    sure = MachineLimits(MachineRates(3.0, 10.0), "AMX bf16", "")
    disturbed = sure._replace(note="too low")

    assert sure.best_of(disturbed).note == disturbed.best_of(sure).note == ""
    assert disturbed.best_of(disturbed).note == "too low"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_compiled_program_measures_this_machine() -> None:
    limits = measure_limits(1)

    assert limits.note == ""
    assert limits.rates.bytes_per_s > 5e8
    assert limits.rates.flops_per_s > 1e9


@pytest.mark.slow
def test_a_missing_compiler_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert "there is no C compiler" in measure_limits(1).note
