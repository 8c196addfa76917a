"""Ties the life of a child process to its parent's. Imports nothing heavy: it is the first thing a child does."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent_pid: int) -> None:
    """Has the kernel kill this process when its parent is gone, however the parent ends.

    The kernel means the thread that started this process: whoever starts children does it from a thread that lives as
    long as they shall.

    Args:
        parent_pid: The parent as it called itself. Another one now means that it died before we asked, so we end here.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the kernel does not tie this process to its parent (PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)
