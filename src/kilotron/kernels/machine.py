"""Describes the machine to people: processor, instruction sets that matter here, accelerators. Chooses nothing."""

import os
import platform
from pathlib import Path

# What the matrix code paths of this and other engines ask for, by the kernel's names.
_CPU_FLAGS = """
avx2 fma f16c avx512f avx512_bf16 avx512_fp16 avx512_vnni amx_tile amx_bf16 amx_int8 sve bf16 i8mm
""".split()
DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "TRITON_CACHE_DIR", "TRITON_INTERPRET")


def describe_processor() -> dict[str, str]:
    """Model, cores usable by this process, and instruction sets."""
    fields = _read_cpuinfo()
    found = set((fields.get("flags") or fields.get("Features") or "").split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": f"{usable} of {os.cpu_count()}",
        "instruction_sets": " ".join(flag for flag in _CPU_FLAGS if flag in found) or "none of interest",
    }


def describe_accelerators() -> list[str]:
    """Name and memory of each accelerator that torch sees."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [f"{one.name}, {one.total_memory / (1 << 30):.1f} GiB, compute {one.major}.{one.minor}" for one in found]


def _read_cpuinfo() -> dict[str, str]:
    """The first processor's fields; nothing where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n", maxsplit=1)[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
