"""A real HTTP server against malformed, giant, slow and lying peers: right status, bounded time, next request fine."""

import asyncio
import os
import socket
import time
from collections.abc import Iterator

import psutil
import pytest

from kilotron.text_generation_server.http_limits import HttpLimits
from service.http_world import CHUNK, PATIENCE_S, World, error_of, read_response, request, send_all, serving

LIMITS = HttpLimits(
    max_body_bytes=100_000,
    header_timeout_s=0.5,
    body_timeout_s=0.5,
    send_stall_timeout_s=0.5,
    keep_alive_timeout_s=0.5,
    linger_timeout_s=0.5,
    max_connections=64,
)


@pytest.fixture(scope="module", params=["httptools", "h11"])
def shared_world(request: pytest.FixtureRequest) -> Iterator[World]:
    with serving(LIMITS, request.param) as world:
        yield world


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    """The shared server, which must serve as well after every abuse as before."""
    shared_world.app.was_cancelled.clear()
    shared_world.app.has_begun.clear()
    shared_world.app.num_sent_bytes = shared_world.app.num_executed = 0
    yield shared_world
    response = shared_world.ask(request(body=b"hello"))
    assert response.status == 200
    assert response.content.startswith(b'{"length":5')


def head(*lines: str, first: str = "POST /echo HTTP/1.1", host: str = "Host: localhost") -> bytes:
    return "\r\n".join([first, *([host] if host else []), *lines, "", ""]).encode("latin-1")


MALFORMED = {
    "both framings": head("Content-Length: 3", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "two different CLs": head("Content-Length: 3", "Content-Length: 4") + b"abcd",
    "CL -1": head("Content-Length: -1"),
    "CL +4": head("Content-Length: +4") + b"abcd",
    "CL with underscore": head("Content-Length: 1_0") + b"abcdefghij",
    "Transfer-Encoding xchunked": head("Transfer-Encoding: xchunked") + b"0\r\n\r\n",
    "Transfer-Encoding gzip, chunked": head("Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    "Transfer-Encoding twice": head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "Transfer-Encoding in HTTP/1.0": head("Transfer-Encoding: chunked", first="POST /echo HTTP/1.0") + b"0\r\n\r\n",
    "chunk size no number": head("Transfer-Encoding: chunked") + b"xyz\r\n\r\n",
    "bad chunk end": head("Transfer-Encoding: chunked") + b"3\r\nabcd\r\n0\r\n\r\n",
    "bare LF": b"POST /echo HTTP/1.1\nHost: localhost\nContent-Length: 0\n\n",
    "one bare LF": b"POST /echo HTTP/1.1\r\nHost: localhost\nContent-Length: 0\r\n\r\n",
    "no Host": head(host=""),
    "two Hosts": head("Host: localhost"),
    "Host with a path": head(host="Host: localhost/health?"),
    "obs-fold": head("X-A: b", " folded"),
    "HTTP 9.9": head(first="POST /echo HTTP/9.9"),
    "HTTP 0.9": b"GET /echo\r\n\r\n",
    "HTTP 2.0": head(first="POST /echo HTTP/2.0"),
    "space before colon": head("X-A : b"),
    "NUL in a header": head("X-A: b\0c"),
    "binary": bytes(range(128, 256)) + b"\r\n\r\n",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_is_answered_with_400_and_not_executed(world: World, name: str) -> None:
    response = world.ask(MALFORMED[name])

    assert response.status == 400
    assert error_of(response)["type"] == "invalid_request_error"
    assert world.app.num_executed == 0


def test_a_chunk_size_that_no_number_holds_is_400_or_runs_into_a_limit(world: World) -> None:
    response = world.ask(head("Transfer-Encoding: chunked") + b"fffffffffffffffff\r\nabc")

    assert response.status in (400, 408)  # h11 takes it for a very large chunk, and its body never comes
    error_of(response)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (head("X-A: " + "a" * (1 << 20)), 431),
        (head(*(f"X-{i}: a" for i in range(20_000))), 431),
        (head(*(f"X-{i}: a" for i in range(200))), 431),
        (head(first=f"GET /{'a' * 200_000} HTTP/1.1"), 414),
        (head(first=f"GET /{'a' * 9000} HTTP/1.1"), 414),
        (head("Expect: a miracle"), 417),
    ],
    ids=["1 MiB header", "20k headers", "200 headers", "200 KiB URL", "9 kB URL", "unknown expectation"],
)
def test_an_oversized_head_is_refused_with_its_own_status(world: World, data: bytes, status: int) -> None:
    response = world.ask(data)

    assert response.status == status
    error_of(response)


def test_a_head_just_within_the_limits_is_taken(world: World) -> None:
    response = world.ask(head(*(f"X-{i}: {'a' * 500}" for i in range(90)), "Content-Length: 0"))

    assert response.status == 200


def test_a_header_that_comes_in_pieces_is_bounded_as_well(world: World) -> None:
    with world.connect() as peer:
        send_all(peer, b"GET /echo HTTP/1.1\r\nHost: localhost\r\nX-A: ")
        for _ in range(40):
            send_all(peer, b"a" * 4096)

        assert read_response(peer).status == 431


def test_half_a_head_is_answered_with_408_in_time_however_it_trickles(world: World) -> None:
    begin = time.monotonic()
    with world.connect() as peer:
        peer.sendall(b"GET /echo HTTP/1.1\r\nX-A: ")
        peer.settimeout(0.1)
        answer = b""
        while not answer and time.monotonic() - begin < PATIENCE_S:
            send_all(peer, b"a")
            try:
                answer = peer.recv(65536)
            except TimeoutError:
                continue

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize("data", [b"", b"\r\n"], ids=["nothing", "an empty line"])
def test_a_connection_that_asks_nothing_is_closed_without_a_word(world: World, data: bytes) -> None:
    with world.connect() as peer:
        peer.sendall(data)

        assert peer.recv(100) == b""


def test_an_idle_connection_is_closed_after_a_response(world: World) -> None:
    with world.connect() as peer:
        peer.sendall(request(body=b"abc"))
        assert read_response(peer).status == 200

        assert peer.recv(100) == b""


@pytest.mark.parametrize("declared", [100_001, 10**17, 10**40])
def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(world: World, declared: int) -> None:
    response = world.ask(head(f"Content-Length: {declared}"))

    assert response.status in (413, 400)
    error_of(response)
    assert world.app.num_executed == 0


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_giant_body_is_answered_with_413_which_its_sender_can_read(world: World, is_chunked: bool) -> None:
    framing = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {1 << 24}"
    with world.connect() as peer:
        send_all(peer, head(framing))
        piece = b"10000\r\n" + b"a" * 65536 + b"\r\n" if is_chunked else b"a" * 65536
        for _ in range(256):
            peer.sendall(piece)  # which must not fail, because few clients read an answer after that
        response = read_response(peer)

    assert response.status == 413
    assert response.headers["connection"] == "close"
    assert error_of(response)["code"] == "request_too_large"
    assert world.app.num_executed == 0


def test_a_body_of_exactly_the_limit_is_taken(world: World) -> None:
    assert world.ask(request(body=b"a" * 100_000)).content.startswith(b'{"length":100000')


def test_a_flood_of_tiny_chunks_is_refused(world: World) -> None:
    response = world.ask(head("Transfer-Encoding: chunked") + b"1\r\na\r\n" * 50_000 + b"0\r\n\r\n")

    assert response.status == 413
    error_of(response)


@pytest.mark.parametrize("begin", [b"1\r\na\r\n0\r\nX-Trailer: ", b"1;extension="], ids=["trailer", "extension"])
def test_an_endless_trailer_or_chunk_extension_is_refused(world: World, begin: bytes) -> None:
    with world.connect() as peer:
        send_all(peer, head("Transfer-Encoding: chunked") + begin)
        for _ in range(100):
            send_all(peer, b"a" * 65536)

        assert read_response(peer).status in (400, 431)


def test_trailers_do_not_become_headers_and_do_not_count_for_the_next_request(world: World) -> None:
    chunked = head("Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\nAuthorization: Bearer x\r\n\r\n"
    with world.connect() as peer:
        for _ in range(3):
            peer.sendall(chunked)
            response = read_response(peer)

            assert response.content.startswith(b'{"length":5,"headers":2,')


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
def test_a_half_sent_body_is_answered_with_408(world: World, framing: str) -> None:
    response = world.ask(head(framing) + b"5\r\nabcde\r\n")

    assert response.status == 408
    assert error_of(response)["code"] == "request_timeout"
    assert world.app.num_executed == 0


def test_a_compressed_body_is_refused(world: World) -> None:
    response = world.ask(request("/echo", "Content-Encoding: gzip", body=b"abc"))

    assert response.status == 415
    error_of(response)


def test_who_expects_100_continue_is_told_to_go_on(world: World) -> None:
    with world.connect() as peer:
        peer.sendall(head("Expect: 100-continue", "Content-Length: 5"))
        assert peer.recv(100).startswith(b"HTTP/1.1 100 ")
        peer.sendall(b"hello")

        assert read_response(peer).status == 200


def test_who_expects_100_continue_and_is_refused_loses_the_connection(world: World) -> None:
    with world.connect() as peer:
        peer.sendall(head("Expect: 100-continue", f"Content-Length: {10**6}"))
        response = read_response(peer)

        assert (response.status, response.headers["connection"]) == (413, "close")
        assert peer.recv(100) == b""


def test_an_upgrade_is_answered_as_if_it_had_not_been_asked_for(world: World) -> None:
    lines = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ")

    response = world.ask(request("/echo", *lines, body=b"hello"))

    assert response.status == 200


def test_pipelined_requests_are_answered_in_order_or_the_connection_is_closed(world: World) -> None:
    with world.connect() as peer:
        peer.sendall(b"".join(request(body=b"a" * length) for length in (1, 2, 3)))
        answers = bytearray()
        while data := peer.recv(65536):
            answers += data

    lengths = [answers.find(b'{"length":%d,' % length) for length in (1, 2, 3)]
    assert lengths[0] > 0
    assert lengths in ([*sorted(lengths)], [lengths[0], -1, -1])


def test_a_flood_of_pipelined_requests_is_cut_short(world: World) -> None:
    with world.connect() as peer:
        send_all(peer, request(body=b"a") * 10_000)
        answers = bytearray()
        try:
            while data := peer.recv(65536):
                answers += data
        except ConnectionResetError:
            pass

    assert answers.count(b"HTTP/1.1 200 OK") <= 10
    assert world.app.num_executed <= 10


def test_garbage_behind_a_running_request_does_not_get_into_its_response(world: World) -> None:
    with world.connect() as peer:
        peer.sendall(request("/flood") + b"garbage\r\n\r\n")
        answer = bytearray()
        while len(answer) < 10 * len(CHUNK):
            answer += peer.recv(65536)

    assert b"400" not in answer.partition(b"\r\n\r\n")[2].replace(b"4000\r\n", b"")
    assert world.app.was_cancelled.wait(PATIENCE_S)


def test_empty_lines_behind_a_running_request_do_not_end_it(world: World) -> None:
    with world.connect() as peer:
        peer.sendall(request("/wait") + b"\r\n")
        assert world.app.has_begun.wait(PATIENCE_S)

        assert not world.app.was_cancelled.wait(1.0)
    assert world.app.was_cancelled.wait(PATIENCE_S)


def test_a_reader_who_stalls_holds_little_and_is_dropped(world: World) -> None:
    with world.connect(receive_buffer=65536) as peer:
        peer.sendall(request("/flood"))

        assert world.app.was_cancelled.wait(PATIENCE_S)

    assert world.app.num_sent_bytes < 2 << 20  # kernel buffers of both sides included


def test_a_reader_who_stalls_is_dropped_also_where_the_kernel_does_not_care() -> None:
    with serving(LIMITS) as world:
        world.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)
        with world.connect(receive_buffer=65536) as peer:
            peer.sendall(request("/flood"))

            assert world.app.was_cancelled.wait(PATIENCE_S)


def test_a_reader_who_stalls_is_dropped_also_if_the_kernel_holds_all_that_was_sent(world: World) -> None:
    with world.connect(receive_buffer=4096) as peer:
        peer.sendall(request("/stuck"))

        assert world.app.was_cancelled.wait(PATIENCE_S)


def test_a_reader_who_reads_slowly_stays_until_he_stalls(world: World) -> None:
    with world.connect(receive_buffer=4096) as peer:
        peer.sendall(request("/flood"))
        for _ in range(8):
            time.sleep(0.1)
            peer.recv(65536)
        assert not world.app.was_cancelled.is_set()

        assert world.app.was_cancelled.wait(PATIENCE_S)


def test_a_reader_who_never_takes_a_finished_response_is_dropped(world: World) -> None:
    with world.connect(receive_buffer=4096) as peer:
        peer.sendall(request("/big"))
        deadline = time.monotonic() + PATIENCE_S
        while not world.server.server_state.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        assert world.server.server_state.connections

        while world.server.server_state.connections and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not world.server.server_state.connections


def test_a_slow_reader_gets_the_whole_of_a_long_response_that_ends_its_connection(world: World) -> None:
    with world.connect(receive_buffer=65536) as peer:
        peer.sendall(request("/big", "Connection: close"))
        num_bytes = 0
        while data := peer.recv(1 << 18):
            num_bytes += len(data)
            time.sleep(0.02)

    assert num_bytes > 256 * len(CHUNK)


def test_a_client_who_leaves_with_requests_waiting_is_noticed(world: World) -> None:
    with world.connect() as peer:
        peer.sendall(request("/wait") + request("/echo"))
        assert world.app.has_begun.wait(PATIENCE_S)

    assert world.app.was_cancelled.wait(1.0)


@pytest.mark.parametrize("is_reset", [False, True])
def test_a_handler_is_cancelled_when_its_client_leaves(world: World, is_reset: bool) -> None:
    with world.connect() as peer:
        peer.sendall(request("/wait", body=b"abc"))
        assert world.app.has_begun.wait(PATIENCE_S)
        if is_reset:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    assert world.app.was_cancelled.wait(1.0)


@pytest.mark.parametrize(
    ("target", "method", "status", "code"),
    [
        ("/nothing", "GET", 404, "not_found"),
        ("/echo/../nothing", "GET", 404, "not_found"),
        ("/%65cho/%2e%2e/admin", "GET", 404, "not_found"),
        ("/%2561dmin/abort", "POST", 404, "not_found"),
        ("/wait", "GET", 405, "method_not_allowed"),
        ("/break", "GET", 500, "internal_error"),
        ("/full", "POST", 503, "queue_full"),
    ],
)
def test_every_error_is_the_openai_object(world: World, target: str, method: str, status: int, code: str) -> None:
    response = world.ask(request(target, method=method))

    assert response.status == status
    assert error_of(response)["code"] == code
    assert b"secret" not in response.content
    assert (response.headers["allow"] == "POST") == (status == 405)
    assert (response.headers["retry-after"] is not None) == (status == 503)


def test_a_response_that_fails_midway_is_cut_off_without_a_clean_end(world: World) -> None:
    with world.connect() as peer:
        peer.sendall(request("/break_late", method="GET"))
        answer = bytearray()
        while data := peer.recv(65536):
            answer += data

    assert b"begun" in answer
    assert not answer.endswith(b"0\r\n\r\n")
    assert b"secret" not in answer


def test_a_request_id_is_echoed_if_it_is_sane_and_made_if_not(world: World) -> None:
    assert world.ask(request("/echo", "X-Request-Id: my-id.1")).headers["x-request-id"] == "my-id.1"
    assert len(world.ask(request("/echo", f"X-Request-Id: {'a' * 129}")).headers["x-request-id"]) == 32
    assert len(world.ask(request("/echo", "X-Request-Id: a b")).headers["x-request-id"]) == 32
    assert len(world.ask(request("/echo")).headers["x-request-id"]) == 32


def test_a_name_that_is_not_the_servers_is_refused(world: World) -> None:
    response = world.ask(request("/echo", host="evil.example:8000"))

    assert response.status == 421
    assert error_of(response)["code"] == "wrong_host"
    assert world.app.num_executed == 0


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://evil.example", 403),
        ("null", 403),
        ("http://127.0.0.1.evil.example", 403),
        ("http://127.0.0.1", 200),
        ("http://127.0.0.1:80", 200),
        ("http://127.0.0.1:3000", 403),
        ("https://chat.example", 200),
    ],
)
def test_a_page_of_a_foreign_origin_is_not_served(world: World, origin: str, status: int) -> None:
    response = world.ask(request("/echo", f"Origin: {origin}", body=b"x"))

    assert response.status == status
    assert world.app.num_executed == (status == 200)


def test_while_draining_new_work_is_refused_and_reading_and_admin_are_not(world: World) -> None:
    world.app.is_draining = True
    try:
        refused = world.ask(request("/echo", body=b"x"))
        read = world.ask(request("/echo", method="GET"))
        admin = world.ask(request("/admin/abort", body=b"x"))
    finally:
        world.app.is_draining = False

    assert (refused.status, refused.headers["connection"]) == (503, "close")
    assert int(refused.headers["retry-after"]) > 0
    assert (read.status, admin.status) == (200, 200)


def test_responses_do_not_name_the_server_software(world: World) -> None:
    assert world.ask(request()).headers["server"] is None


def test_connections_above_the_limit_are_told_so(world: World) -> None:
    peers = [world.connect() for _ in range(LIMITS.max_connections + 1)]
    answers = [peer.recv(65536) for peer in peers]  # the idle ones are closed in time
    for peer in peers:
        peer.close()

    assert sum(answer.startswith(b"HTTP/1.1 503 ") for answer in answers) >= 1
    assert answers.count(b"") >= LIMITS.max_connections - 8


@pytest.mark.parametrize("protocol", ["httptools", "h11"])
def test_a_stopped_server_finishes_what_runs_and_cancels_what_does_not_end(protocol: str) -> None:
    with serving(LIMITS, protocol) as world, world.connect() as idle, world.connect() as busy:
        idle.sendall(request(body=b"x"))
        assert read_response(idle).status == 200
        busy.sendall(request("/wait"))
        assert world.app.has_begun.wait(PATIENCE_S)

        world.stop()

        assert idle.recv(100) == b""
        response = read_response(busy)
        assert response.status == 503
        assert error_of(response)["code"] == "shutting_down"


def test_draining_waits_for_what_runs_while_newcomers_are_told() -> None:
    with serving(LIMITS) as world, world.connect() as busy:
        busy.sendall(request("/wait"))
        assert world.app.has_begun.wait(PATIENCE_S)
        world.app.is_draining = True

        drained = asyncio.run_coroutine_threadsafe(world.server.drain(PATIENCE_S), world.loop)
        assert world.ask(request()).status == 503
        assert not drained.done()
        busy.close()

        assert drained.result(PATIENCE_S)


def test_draining_ends_after_its_time() -> None:
    with serving(LIMITS) as world, world.connect() as busy:
        busy.sendall(request("/wait"))
        assert world.app.has_begun.wait(PATIENCE_S)

        assert not asyncio.run_coroutine_threadsafe(world.server.drain(0.01), world.loop).result(PATIENCE_S)


def test_an_aborted_server_ends_requests_at_once_and_tells_their_clients() -> None:
    with serving(LIMITS, drain_timeout_s=600.0) as world, world.connect() as busy:
        busy.sendall(request("/wait"))
        assert world.app.has_begun.wait(PATIENCE_S)

        world.stop()
        world.loop.call_soon_threadsafe(world.server.abort)

        assert error_of(read_response(busy))["code"] == "shutting_down"


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["httptools", "h11"])
def test_a_thousand_half_open_sockets_are_shed_while_others_are_served(protocol: str) -> None:
    with serving(HttpLimits(header_timeout_s=3.0), protocol) as world:
        peers = [world.connect() for _ in range(1000)]
        for peer in peers:
            peer.sendall(b"GET /echo HTTP/1.1\r\nX-A: ")
        begin = time.monotonic()
        durations = []
        while time.monotonic() - begin < 2:
            asked = time.monotonic()
            assert world.ask(request(body=b"x")).status == 200
            durations.append(time.monotonic() - asked)
        answers = [peer.recv(100) for peer in peers]
        for peer in peers:
            peer.close()

    assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers)
    assert sorted(durations)[len(durations) * 99 // 100] < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["httptools", "h11"])
def test_a_header_of_64_mib_and_a_body_of_256_mib_take_no_memory(protocol: str) -> None:
    with serving(HttpLimits(), protocol) as world:
        for _ in range(3):
            world.ask(request(body=b"x" * 1_000_000))
        process = psutil.Process(os.getpid())
        before = process.memory_info().rss
        highest = 0
        for start, num_mib in ((b"GET /echo HTTP/1.1\r\nX-A: ", 64), (head(f"Content-Length: {1 << 28}"), 256)):
            with world.connect() as peer:
                send_all(peer, start)
                for _ in range(num_mib * 16):
                    send_all(peer, b"a" * 65536)
                highest = max(highest, process.memory_info().rss)
                assert read_response(peer).status in (413, 431)

    assert highest - before < 1 << 20
