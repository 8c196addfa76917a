"""A pytest plugin: another build of the CPU kernels in place of the installed one, or none at all.

`pytest -p unit.kernels.native_choice` with KILOTRON_TEST_NATIVE=absent, or =the path of a compiled module.
"""

import os
import sys
from importlib import util

MODULE = "kilotron.kernels.cpu._native"
CHOICE_VARIABLE = "KILOTRON_TEST_NATIVE"


def pytest_configure() -> None:
    """Before any test module is imported."""
    choice = os.environ[CHOICE_VARIABLE]
    if choice == "absent":
        sys.modules[MODULE] = None  # type: ignore[assignment]
        return
    spec = util.spec_from_file_location(MODULE, choice)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{choice} is no compiled module")
    import torch  # noqa: F401 - it brings the OpenMP runtime

    sys.modules[MODULE] = util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[MODULE])
