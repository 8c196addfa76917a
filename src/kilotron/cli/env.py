"""`kilotron env`: what a bug report needs. Uses no network and shows no secret."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from kilotron.apis.weight_cache import user_cache_folder
from kilotron.cli.options import OUTPUT_GROUP, switch
from kilotron.cli.output import format_bytes, format_table, print_json

_PACKAGES = """
kilotron torch numpy safetensors tokenizers jinja2 huggingface-hub msgspec pyzmq cyclopts psutil
starlette uvicorn llguidance prometheus-client transformers triton
""".split()
_VARIABLES = """
HF_HOME HF_HUB_CACHE HF_HUB_OFFLINE TRANSFORMERS_OFFLINE HF_ENDPOINT HF_TOKEN XDG_CACHE_HOME OMP_NUM_THREADS
MKL_NUM_THREADS RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT NO_COLOR DO_NOT_TRACK
""".split()
_OWN_PREFIX = "KILOTRON_"
_SECRET_WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD")
_HIDDEN = "(set, not shown)"


def env(*, json: Annotated[bool, switch("One JSON object instead of a table.", group=OUTPUT_GROUP)] = False) -> int:
    """Versions, machine and caches, for a bug report.

    Secrets are never shown, and nothing is sent anywhere.

    Try:
      kilotron env
      kilotron env --json
    """
    facts = describe_environment()
    if json:
        print_json(facts)
        return 0
    print(format_table(list(_rows(facts))))
    return 0


def describe_environment() -> dict[str, Any]:
    """All facts, by section."""
    import psutil
    import torch

    from kilotron.kernels.machine import DEVICE_VARIABLES, describe_accelerators, describe_processor
    from kilotron.kernels.registry import backend_names

    memory = psutil.virtual_memory()
    return {
        "versions": {"python": f"{platform.python_version()} ({sys.executable})", "system": platform.platform()}
        | {name: _version(name) for name in _PACKAGES},
        "processor": describe_processor() | {"torch_threads": str(torch.get_num_threads())},
        "memory": {"total": format_bytes(memory.total), "available": format_bytes(memory.available)},
        "accelerators": dict(enumerate(describe_accelerators())) or {"none": "torch sees none"},
        "kernels": {"backends": ", ".join(backend_names())},
        "caches": {"models": str(_hub_cache()), "kilotron": str(user_cache_folder())},
        "variables": _variables((*_VARIABLES, *DEVICE_VARIABLES)),
    }


def _rows(facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Section, name, value; a section's name stands in its first row."""
    rows = []
    for section, values in facts.items():
        for index, (name, value) in enumerate((values or {"none": ""}).items()):
            rows.append((section if index == 0 else "", str(name), str(value)))
    return rows


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME") or user_cache_folder().parent / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _variables(names: tuple[str, ...]) -> dict[str, str]:
    own = sorted(name for name in os.environ if name.startswith(_OWN_PREFIX))
    return {name: _shown(name, os.environ[name]) for name in (*own, *names) if name in os.environ}


def _shown(name: str, value: str) -> str:
    if any(word in name for word in _SECRET_WORDS) and not name.endswith("TOKENS"):
        return _HIDDEN
    if "@" in urlsplit(value).netloc:  # a URL with a password in it
        return _HIDDEN
    return value
