"""Outbox: what a coordinator's core wants done by whoever has sockets and processes, as plain values in order."""

from kilotron.coordinator.wire import Message


class Outbox:
    """Filled by the core, emptied by its owner after every call."""

    def __init__(self) -> None:
        self.sends: list[tuple[bytes, Message]] = []
        """Peer and message."""
        self.watches: list[tuple[bytes, int]] = []
        """Peer and the process whose end is that peer's end."""
        self.kills: list[int] = []
        """Processes of replicas that hang."""

    def send(self, peer: bytes, message: Message) -> None:
        """Wants a message sent."""
        self.sends.append((peer, message))

    def take_sends(self) -> list[tuple[bytes, Message]]:
        """All messages so far; the outbox is empty afterwards."""
        sends, self.sends = self.sends, []
        return sends

    def take_watches(self) -> list[tuple[bytes, int]]:
        """All processes to watch so far."""
        watches, self.watches = self.watches, []
        return watches

    def take_kills(self) -> list[int]:
        """All processes to end so far."""
        kills, self.kills = self.kills, []
        return kills
