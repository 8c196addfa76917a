"""Promises of docs/reliability.md about requests, against a running service that is not hurt: P02-P04, P24, P28, P30,
P33, F08, F09, F23, F24, F28."""

import os
import stat
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import psutil
import pytest
import zmq

from kilotron.config import ServeConfig
from kilotron.coordinator.wire import (
    PROTOCOL_VERSION,
    Abort,
    Control,
    EngineLoad,
    EngineOutput,
    Finish,
    Hello,
    Output,
    Pulse,
    Submission,
    encode,
)
from kilotron.text_generation_server.app import build_app
from service.generations import Counts, right_texts, story
from service.http_calls import Call
from service.running_service import RunningService, canary_places, report, running, wait_for

KEY, OTHER_KEY, ADMIN_KEY = "key-canary-5d81", "key-canary-93ac", "admin-canary-77fe"
PROMPT_CANARY = "zanzibar heliotrope 4417"
# The bar is one step and 100 ms; but the figures come with pulses, four of them a second, and machines may be loaded.
FREED_WITHIN_S = 1.0
SLOW_MODES = [pytest.param(mode, marks=pytest.mark.slow) for mode in ("persist", "recompute")]
LONG_PROMPT = "word " * 850
STREAMS = [story(index, 500, stream=True) for index in range(4)]


@pytest.fixture(scope="module")
def shared_service() -> Iterator[RunningService]:
    keys = {"KILOTRON_API_KEY": f"{KEY},{OTHER_KEY}", "KILOTRON_ADMIN_KEY": ADMIN_KEY}
    with running("--max-num-batched-tokens", "8", key=KEY, environment=keys) as service:
        yield service


@pytest.fixture(scope="module")
def expected(shared_service: RunningService) -> list[str]:
    """What the streams below get when nothing happens."""
    return right_texts(shared_service, STREAMS)


@pytest.fixture
def service(shared_service: RunningService) -> Iterator[RunningService]:
    """Every test leaves it as it was: the same processes, nothing under way."""
    before = {child.pid for child in shared_service.children()}
    yield shared_service
    assert {child.pid for child in shared_service.children()} == before
    shared_service.wait_idle()


def admin(service: RunningService, verb: str, body: Any = None) -> dict[str, Any]:
    answer = service.ask("POST", f"/admin/{verb}", body, key=ADMIN_KEY)
    assert answer.status == 200, answer.text
    return dict(answer.json)


# P03, F23, F24: who leaves


@pytest.mark.parametrize("kind", ["stream", "whole", "stream n=4", "whole n=4"])
@pytest.mark.parametrize("state", ["queued", "prefill", "decode"])
def test_blocks_are_free_soon_after_a_client_left(service: RunningService, state: str, kind: str) -> None:
    body = story(1, 900, stream="stream" in kind, n=4 if "n=4" in kind else 1)
    if state == "prefill":
        body |= {"prompt": f"{kind} {LONG_PROMPT}", "max_tokens": 50}  # 8 tokens in each step
    if state != "decode":
        admin(service, "pause")
    counts = Counts(service)
    call = service.start(body)
    if state == "decode":
        wait_for(lambda: service.metrics()["kv_cache_usage_perc"], what="a block in use")
    else:
        wait_for(lambda: service.metrics()["num_requests_queued"], what="a queued request")
    if state == "prefill":
        # A prompt is computed within less time than figures of it take to come, so that nobody waits for them.
        admin(service, "unpause")
        time.sleep(0.02)

    call.leave(abruptly="n=4" in kind)
    report(f"P03 {state} {kind}", service.wait_idle(), FREED_WITHIN_S)

    assert call.ended_at > 0
    assert time.monotonic() - call.ended_at < FREED_WITHIN_S
    num_tokens = counts.grown("generation_tokens_total")
    if state == "queued":
        admin(service, "unpause")
        assert (num_tokens, counts.grown("prompt_tokens_total")) == (0, 0)
    time.sleep(0.2)
    assert counts.grown("generation_tokens_total") == num_tokens  # nothing is computed for nobody
    counts.check([call])


@pytest.mark.parametrize("mode", ["offload", *SLOW_MODES])
def test_a_client_that_leaves_during_a_suspension_has_no_blocks_after_it(service: RunningService, mode: str) -> None:
    calls = [service.start(story(index, 900, stream=True)).wait_chunks(3) for index in range(2)]
    counts = Counts(service)
    admin(service, "pause")
    admin(service, "suspend", {"kv_mode": mode})
    calls[0].leave()
    wait_for(lambda: service.metrics()["num_requests_in_flight"] == 1, FREED_WITHIN_S, "one request less")
    assert calls[1].outcome is None
    admin(service, "resume")
    admin(service, "unpause")
    assert calls[1].wait().outcome == "finished"
    counts.check(calls)


# P04: abort by id


def test_only_the_owner_and_the_admin_can_abort_a_request_by_its_id(service: RunningService) -> None:
    counts = Counts(service)
    calls = [service.start(story(index, 900, stream=True)).wait_chunks(3) for index in range(2)]

    stranger = service.ask("POST", f"/v1/requests/{calls[0].id}/abort", key=OTHER_KEY)
    unknown = service.ask("POST", f"/v1/requests/cmpl-{'0' * 32}/abort")
    assert (stranger.status, unknown.status) == (404, 404)
    assert unknown.error["code"] == "request_not_found"
    assert all(call.outcome is None for call in calls)

    owner = service.ask("POST", f"/v1/requests/{calls[0].id}/abort")
    admin(service, "abort", {"request_id": calls[1].id})
    assert owner.status == 200
    assert [call.wait(5).error["code"] for call in calls] == ["request_aborted"] * 2
    report("P04", service.wait_idle(), FREED_WITHIN_S)
    counts.check(calls)
    assert service.ask("POST", f"/v1/requests/{calls[0].id}/abort").status == 404


# P02: deadlines


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("place", ["body", "header"])
def test_a_request_ends_at_its_deadline(service: RunningService, place: str, stream: bool) -> None:
    counts = Counts(service)
    # More work than can be done in that time.
    if place == "body":
        call = service.start(story(1, 900, n=16, stream=stream, timeout=0.3))
    else:
        call = service.start(story(1, 900, n=16, stream=stream), x_request_timeout_ms="300")
    call.wait()

    assert call.error["code"] == "deadline_exceeded"
    assert call.status == (200 if call.num_chunks else 504)
    assert stream or call.response_headers["x-should-retry"] == "false"
    report(f"P02 {place}", call.ended_at - call.started_at - 0.3, 0.1)
    assert 0.25 < call.ended_at - call.started_at < 2.0  # of the seconds that all of it would take
    service.wait_idle()
    assert counts.grown("admission_rejections_total") == 0


def test_a_request_whose_time_is_over_in_the_queue_is_never_computed(service: RunningService) -> None:
    counts = Counts(service)
    admin(service, "pause")
    call = service.complete(story(1, 10, timeout=0.3))
    admin(service, "unpause")

    assert (call.status, call.error["code"]) == (504, "deadline_exceeded")
    service.wait_idle()
    time.sleep(0.3)
    assert counts.grown("prompt_tokens_total") == counts.grown("generation_tokens_total") == 0
    counts.check([call])


# P24: the same request twice


def test_an_idempotency_key_is_refused_while_it_is_under_way(service: RunningService) -> None:
    first = service.start(story(1, 600, stream=True), idempotency_key="a").wait_chunks(2)
    twin = service.complete(story(1, 600), idempotency_key="a")
    others = service.complete(story(1, 5), idempotency_key="a", key=OTHER_KEY)

    assert (twin.status, twin.error["code"]) == (409, "duplicate_request")
    assert twin.response_headers["x-should-retry"] == "false"
    assert others.outcome == first.wait().outcome == "finished"
    assert service.complete(story(1, 5), idempotency_key="a").outcome == "finished"


# P28, P30, P33: keys, secrets, tenants


def test_every_route_but_health_asks_for_a_key(service: RunningService) -> None:
    application = build_app(None, None, ServeConfig(), None)  # type: ignore[arg-type] # nothing is asked of it
    routes = {(route.method, route.path.replace("{", "").replace("}", "")) for route in application.routes}
    routes |= {(method, "/v1/nothing") for method in ("GET", "POST", "PUT", "DELETE", "PATCH")}

    open_routes = set()
    for method, path in routes:
        for key in ("", "wrong", "\xe9"):
            answer = service.ask(method, path, {} if method != "GET" else None, key=key)
            if answer.status != 401:
                open_routes.add((method, path))
            else:
                assert answer.error["code"] == "invalid_api_key"
                assert "bearer" in answer.headers["www-authenticate"].lower()

    assert open_routes == {("GET", path) for path in ("/health", "/livez", "/ready", "/readyz")}
    assert len(routes) > 20
    admin_routes = [path for _, path in routes if path.startswith("/admin/")]
    assert len(admin_routes) == 5
    assert {service.ask("POST", path, {}).status for path in admin_routes} == {403}


def test_keys_and_prompts_are_nowhere_to_be_read(service: RunningService) -> None:
    bad_bodies: list[dict[str, Any]] = [
        {"prompt": PROMPT_CANARY, "max_tokens": -1},
        {"prompt": PROMPT_CANARY, "temperature": "warm"},
        {"prompt": [PROMPT_CANARY, 5]},
        {"prompt": {"text": PROMPT_CANARY}},
        {"prompt": PROMPT_CANARY * 400},
        {"prompt": PROMPT_CANARY, "timeout": 0.001, "max_tokens": 500},
        {"messages": [{"role": "user", "content": [{"type": "nothing", "text": PROMPT_CANARY}]}]},
    ]
    errors = []
    for body in bad_bodies:
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        answer = service.ask("POST", path, body)
        assert answer.status >= 400, body
        errors.append(("an error body", answer.text))
    errors.append(("an error body", service.ask("GET", "/v1/models", key=f"{KEY}x").text))
    assert service.complete({"prompt": PROMPT_CANARY, "max_tokens": 5}).outcome == "finished"

    for where, text in [*canary_places(service), *errors]:
        for canary in (KEY, OTHER_KEY, ADMIN_KEY, PROMPT_CANARY):
            assert canary not in text, where


def test_another_key_finds_nothing_in_the_prefix_cache(service: RunningService) -> None:
    body = {"prompt": "tenants " * 90, "max_tokens": 2, "temperature": 0}

    def cached_tokens(key: str) -> int:
        return int(service.complete(body, key=key).usage["prompt_tokens_details"]["cached_tokens"])

    assert cached_tokens(KEY) == 0
    assert cached_tokens(OTHER_KEY) == 0
    assert cached_tokens(KEY) > 0
    assert cached_tokens(OTHER_KEY) > 0


# F08, F09: the inside


def strange_frames(request_id: str) -> list[list[bytes]]:
    """What somebody might send who knows the protocol and an id, but no token."""
    finish = Finish(reason="stop")
    hello = Hello(PROTOCOL_VERSION, "engine", "0" * 64, "ab" * 16, 0)
    submission = Submission(request_id="cd" * 16, prompt_tokens=[1], params={}, max_generated=5, seed=0, end_ids=[],
                            bad_word_ids=[])  # fmt: skip
    messages = [
        hello,
        msgspec.structs.replace(hello, protocol_version=99),
        msgspec.structs.replace(hello, role="controller"),
        msgspec.structs.replace(hello, token="\ud7ff"),
        EngineOutput([Output(request_id, 0, 3, "forged", [1, 2], finish=finish)], []),
        Pulse("ready", 1.0, EngineLoad()),
        Abort(request_id),
        Control("n", "pause"),
        submission,
    ]
    frames = [[encode(message)] for message in messages]
    garbage = [b"", b"\xc1 garbage", b"\x91\xcd\x03\xe7", b"\xdd\xff\xff\xff\xff", b"\x91" * 100_000, b"x" * (1 << 20)]
    return [*frames, *frames, *([frame] for frame in garbage), [b"two", b"frames"], [b"", encode(hello)]]


def shake_the_socket(address: str, request_id: str) -> None:
    """Several strangers, each saying everything; one more with a message that is too long."""
    context = zmq.Context()
    peers = [context.socket(zmq.DEALER) for _ in range(4)]
    try:
        for peer in peers:
            peer.setsockopt(zmq.LINGER, 1000)
            peer.connect(address)
            for frames in strange_frames(request_id):
                peer.send_multipart(frames)
        peers[0].send(bytes((16 << 20) + 1))
    finally:
        for peer in peers:
            peer.close()
        context.term()


def test_strangers_on_the_internal_socket_change_nothing(service: RunningService, expected: list[str]) -> None:
    counts = Counts(service)
    calls = [service.start(body) for body in STREAMS]
    for call in calls:
        call.wait_chunks(5)
    (folder,) = service.folder.glob("kilotron-*")
    shake_the_socket(f"ipc://{folder}/coordinator", calls[0].id.removeprefix("cmpl-"))

    assert [call.wait().text for call in calls] == expected
    assert counts.grown("protocol_errors_total") >= 4 * 20
    counts.check(calls)
    assert service.ask("GET", "/ready?deep=1").json["state"] == "running"


def test_the_internal_socket_is_private_and_nothing_but_http_listens(service: RunningService) -> None:
    (folder,) = service.folder.glob("kilotron-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "coordinator").stat().st_mode) & 0o077 == 0

    processes = [psutil.Process(service.process.pid), *service.children()]
    listeners = {
        (connection.laddr.ip, connection.laddr.port)
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listeners == {("127.0.0.1", service.port)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_cannot_open_the_internal_socket(service: RunningService) -> None:
    (folder,) = service.folder.glob("kilotron-*")
    program = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    stranger = subprocess.run(
        ("python3", "-c", program, str(folder / "coordinator")), user=65534, capture_output=True, text=True, check=False
    )

    assert "PermissionError" in stranger.stderr


# F28: suspension


@pytest.mark.parametrize("mode", ["offload", *SLOW_MODES])
def test_streams_go_on_with_the_same_tokens_after_a_suspension(
    service: RunningService, expected: list[str], mode: str
) -> None:
    counts = Counts(service)
    calls = [service.start(body) for body in STREAMS]
    for call in calls:
        call.wait_chunks(5)

    assert admin(service, "pause")["state"] == "paused"
    waiting = service.start(story(9, 5))
    freed_bytes = admin(service, "suspend", {"kv_mode": mode})["freed_bytes"]
    assert freed_bytes > 0 or mode == "persist"
    refused = service.complete(story(9, 5))
    assert (refused.status, service.ask("GET", "/ready").status) == (503, 503)
    assert "retry-after" in refused.response_headers
    assert service.ask("GET", "/health").status == 200
    num_chunks = [call.num_chunks for call in calls]
    time.sleep(0.2)
    assert [call.num_chunks for call in calls] == num_chunks
    assert [call.outcome for call in calls] == [None] * 4
    assert admin(service, "resume")["state"] == "paused"
    assert admin(service, "unpause")["state"] == "running"

    assert [call.wait().text for call in calls] == expected
    counts.check([*calls, waiting, refused])


def test_a_verb_in_the_wrong_order_is_refused_and_changes_nothing(service: RunningService) -> None:
    answer = service.ask("POST", "/admin/suspend", {}, key=ADMIN_KEY)

    assert (answer.status, answer.error["code"]) == (409, "lifecycle_error")
    assert service.complete(story(1, 5)).outcome == "finished"


def test_one_call_with_many_prompts_ends_as_a_whole(service: RunningService) -> None:
    call: Call = service.start({**story(1, 900, stream=True), "prompt": ["One", "Two", "Three"]}).wait_chunks(6)
    call.leave()

    report("P03 three prompts", service.wait_idle(), FREED_WITHIN_S)
