"""`kilotron serve` before it starts anything; what it does then is in tests/service."""

import subprocess
import sys


def test_without_the_servers_packages_it_says_what_to_install() -> None:
    code = """
import sys
sys.modules["starlette"] = None
from kilotron.cli.app import run
sys.exit(run(["serve", "--port", "0"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "kilotron: error: serving needs starlette, not installed here: pip install 'kilotron[server]'\n"
    )
