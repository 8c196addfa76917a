"""Where equal bits are a promise and where they are only hoped for.

For the CPU kernels they are a promise. On the reference backend they rest on how torch's libraries happen to work. That
was established on CPUs with AVX2 and AVX-512. On CPUs with matrix tiles (AMX) nobody has looked yet: there a difference
is reported, as an expected failure, and does not fail the run.
"""

from pathlib import Path

import pytest

REASON = "torch's libraries on a CPU with AMX: nobody has established that a row's bits do not depend on its company"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or "amx_tile" not in flags.read_text():
        return
    for item in items:
        if item.get_closest_marker("exact_bits"):
            item.add_marker(pytest.mark.xfail(reason=REASON, strict=False))
