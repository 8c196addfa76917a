"""Tests of the gate and of the accounting: whose CPU time is whose, and which runs count."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from workloads.foreign_load import LoadMeter, read_busy, wait_until_quiet

WORK_S = 0.1
CLOCK_ERROR_S = 0.03


@pytest.fixture
def busy_process() -> Iterator[int]:
    """A process that uses what it can get."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield process.pid
    process.kill()
    process.wait()


def test_busy_time_leaves_out_idling_and_counts_what_the_host_took(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 9999 555 4 6 70 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")

    busy = read_busy(stat)

    ticks = os.sysconf("SC_CLK_TCK")
    assert busy.used_s == pytest.approx(160 / ticks)
    assert busy.stolen_s == pytest.approx(70 / ticks)


def let_work(process_id: int) -> None:
    """Returns when the process got some CPU time, however busy the machine is."""
    process = psutil.Process(process_id)
    enough = process.cpu_times().user + WORK_S
    while process.cpu_times().user < enough:
        time.sleep(0.01)


def cpu_seconds(share: float, meter: LoadMeter) -> float:
    return share * meter.wall_s * (os.cpu_count() or 1)


def test_work_of_others_is_foreign(busy_process: int) -> None:
    with LoadMeter() as meter:
        let_work(busy_process)

    assert cpu_seconds(meter.foreign, meter) > WORK_S - CLOCK_ERROR_S


def test_work_of_the_timed_system_is_its_own(busy_process: int) -> None:
    with LoadMeter([busy_process]) as meter:
        let_work(busy_process)

    assert cpu_seconds(meter.own, meter) > WORK_S - CLOCK_ERROR_S


def test_a_process_added_inside_of_the_block_is_own(busy_process: int) -> None:
    with LoadMeter() as meter:
        meter.add(busy_process)
        let_work(busy_process)

    assert cpu_seconds(meter.own, meter) > WORK_S - CLOCK_ERROR_S


@pytest.mark.parametrize(("share", "is_counted"), [(0.0, True), (0.049, True), (0.05, False), (0.7, False)])
def test_a_run_counts_below_five_percent(share: float, is_counted: bool) -> None:
    meter = LoadMeter()
    meter.foreign = share

    assert meter.is_counted is is_counted


def test_the_gate_gives_up_when_its_time_is_over() -> None:
    assert wait_until_quiet(timeout_s=0) is False
