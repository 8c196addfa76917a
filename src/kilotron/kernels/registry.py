"""Chooses the kernel backend for a device and says why."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from kilotron.errors import KernelError
from kilotron.kernels.interface import KernelBackend
from kilotron.kernels.reference.backend import ReferenceBackend

_BACKENDS: dict[str, Callable[[torch.device], KernelBackend]] = {"reference": ReferenceBackend}


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


def choose_backend(wanted: str, device: str) -> BackendChoice:
    """The backend for a device.

    Raises:
        KernelError: the name is unknown; the message lists the known ones.
    """
    if wanted == "auto":
        return BackendChoice(_BACKENDS["reference"](torch.device(device)), "the only backend for this device")
    if wanted not in _BACKENDS:
        raise KernelError(f"kernels {wanted!r} are not known; known: auto, {', '.join(sorted(_BACKENDS))}")
    return BackendChoice(_BACKENDS[wanted](torch.device(device)), "asked for")


def backend_names() -> list[str]:
    """The backends that exist, by the names that `choose_backend` knows."""
    return sorted(_BACKENDS)
