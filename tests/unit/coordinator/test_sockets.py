"""What ZMQ itself watches."""

from pathlib import Path

import pytest
import zmq

from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.sockets import DealerSocket, RouterSocket, free_tcp_address


@pytest.mark.parametrize("is_remote", [False, True])
def test_only_a_connection_between_hosts_is_given_up_because_it_is_silent(tmp_path: Path, is_remote: bool) -> None:
    address = free_tcp_address("127.0.0.1") if is_remote else f"ipc://{tmp_path / 'coordinator'}"
    credentials = Credentials.create(address)
    router, dealer = RouterSocket(credentials), DealerSocket(credentials)
    try:
        beats = {int(peer.socket.getsockopt(zmq.HEARTBEAT_IVL)) for peer in (router, dealer)}
        assert beats == {2000 if is_remote else 0}
    finally:
        dealer.close()
        router.close()
