"""PeerProcesses: watches the processes of peers on this host, and ends those that hang. Knows nothing of messages.

A process is held by a pidfd from its Hello on, so that a number which the system gave to somebody else is never hit.
"""

import logging
import os
import select
import signal

import zmq

_log = logging.getLogger(__name__)


class PeerProcesses:
    """The processes behind connections.

    Args:
        poller: gets a pidfd for each, readable once that process has ended.
    """

    def __init__(self, poller: zmq.Poller) -> None:
        self._poller = poller
        self._pidfds: dict[int, int] = {}
        self._pids: dict[int, int] = {}
        self._peers: dict[int, set[bytes]] = {}

    def watch(self, peer: bytes, pid: int) -> bool:
        """Begins to watch -> False when that process has ended already."""
        if pid not in self._pidfds:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                return False
            except OSError as error:
                # Out of descriptors, or not on this host: its pulses tell of its death, only later.
                _log.warning("process %d cannot be watched: %s", pid, error)
                return True
            self._pidfds[pid], self._pids[pidfd] = pidfd, pid
            self._poller.register(pidfd, zmq.POLLIN)
        self._peers.setdefault(pid, set()).add(peer)
        return True

    def take_ended(self, descriptor: int) -> set[bytes]:
        """The peers of a process whose pidfd has become readable; it is watched no more."""
        pid = self._pids.get(descriptor)
        if pid is None or not _is_readable(descriptor):
            return set()
        peers = self._peers.pop(pid, set())
        self._close(pid)
        return peers

    def forget(self, peer: bytes) -> None:
        """A connection is gone; its process is watched for its other ones only."""
        for pid, peers in list(self._peers.items()):
            peers.discard(peer)
            if not peers:
                del self._peers[pid]
                self._close(pid)

    def kill(self, pid: int) -> None:
        """Ends a process that is watched; never this one, its parent or the system's first."""
        pidfd = self._pidfds.get(pid)
        if pidfd is None or pid in (os.getpid(), os.getppid(), 1):
            return
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except OSError as error:
            _log.warning("process %d cannot be ended: %s", pid, error)

    def close(self) -> None:
        """Watches nothing any more. Idempotent."""
        for pid in list(self._pidfds):
            self._close(pid)
        self._peers.clear()

    def _close(self, pid: int) -> None:
        pidfd = self._pidfds.pop(pid, None)
        if pidfd is not None:
            del self._pids[pidfd]
            self._poller.unregister(pidfd)
            os.close(pidfd)


def _is_readable(descriptor: int) -> bool:
    """Asked anew: since the poller said so, the number may have been closed and given to another process's pidfd."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
