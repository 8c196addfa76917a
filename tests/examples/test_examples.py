"""Every script in examples/ runs as its README says, and shows what it promises."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# What must be in a script's output.
EXPECTED = {
    "simple_batch_inference.py": ["(COMPLETED", "'Once upon a time' -> ", "streaming 'Once upon a time': "],
    "custom_sampling.py": ["typical_p=0.2: Once upon a time", "typical_p=0.9: Once upon a time"],
    "custom_wrapper.py": ["WindowedWrapper: ['class ", "both ways give the same tokens"],
    "custom_backend.py": ["0: An engine | ", "2: for request in | "],
}


def test_every_example_is_run_and_listed() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == set(EXPECTED)
    listing = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"[`{name}`]({name})" in listing for name in scripts)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_runs(name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)], capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    for text in EXPECTED[name]:
        assert text in run.stdout
