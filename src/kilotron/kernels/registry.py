"""Chooses the kernel backend for a device and says why."""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch

from kilotron.errors import KernelError
from kilotron.kernels.cpu.backend import CpuBackend, why_not_native
from kilotron.kernels.interface import KernelBackend
from kilotron.kernels.reference.backend import ReferenceBackend

_log = logging.getLogger(__name__)

_BACKENDS: dict[str, Callable[[torch.device], KernelBackend]] = {"cpu": CpuBackend, "reference": ReferenceBackend}


class BackendChoice(NamedTuple):
    """A backend and the reason it was taken."""

    backend: KernelBackend
    reason: str


def choose_device(wanted: str) -> tuple[str, str]:
    """-> a torch device string and why; "auto" takes an accelerator when there is one.

    Raises:
        KernelError: the device does not exist here.
    """
    has_accelerator = torch.cuda.is_available()
    if wanted == "auto":
        return ("cuda", "an accelerator was found") if has_accelerator else ("cpu", "no accelerator was found")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise KernelError(f"device {wanted!r} is not known; use auto, cpu or cuda") from error
    if device.type == "cuda" and not has_accelerator:
        raise KernelError(
            f"device {wanted!r} is not available here (torch sees no accelerator); use device=cpu or auto"
        )
    return wanted, "asked for"


def device_of_replica(wanted: str, index: int) -> str:
    """Which of several accelerators the replica with this number takes when none is named; what was asked for else."""
    count = torch.cuda.device_count()
    return f"cuda:{index % count}" if wanted in ("auto", "cuda") and count > 1 else wanted


def choose_backend(wanted: str, device: str) -> BackendChoice:
    """The backend for a device.

    Raises:
        KernelError: the name is unknown (the message lists the known ones), or does not run on the device.
    """
    is_cpu = torch.device(device).type == "cpu"
    if wanted == "auto":
        if not is_cpu:
            return BackendChoice(ReferenceBackend(device), "the only backend that runs there")
        obstacle = why_not_native()
        if obstacle is None:
            return BackendChoice(CpuBackend(device), "the best for this processor")
        _log.warning("running on plain torch, which is several times slower: %s", obstacle)
        return BackendChoice(ReferenceBackend(device), obstacle)
    if wanted not in _BACKENDS:
        raise KernelError(f"kernels {wanted!r} are not known; known: auto, {', '.join(sorted(_BACKENDS))}")
    if wanted == "cpu" and not is_cpu:
        raise KernelError(f"kernels 'cpu' do not run on device {device!r}; use kernels=auto")
    return BackendChoice(_BACKENDS[wanted](torch.device(device)), "asked for")


def backend_names() -> list[str]:
    """The backends that exist, by the names that `choose_backend` knows."""
    return sorted(_BACKENDS)
