"""CoordinatorConnection: every stream ends exactly once, whatever the coordinator does."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kilotron.coordinator.coordinator_connection import CoordinatorConnection
from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.wire import (
    Abort,
    ClientOutput,
    ClientPulse,
    Control,
    ControlAnswer,
    Failure,
    Finish,
    MetricsAnswer,
    MetricsQuery,
    Output,
    RequestError,
    ServiceStatus,
    Submission,
    Unwelcome,
    Welcome,
)
from kilotron.errors import (
    EngineDiedError,
    InvalidRequestError,
    LifecycleError,
    ProtocolError,
    QueueFullError,
    ServiceUnavailableError,
)
from unit.coordinator.fake_coordinator import FakeCoordinator, make_credentials

REQUEST = "a" * 32


@pytest.fixture
def credentials(tmp_path: Path) -> Credentials:
    return make_credentials(tmp_path)


class Scene:
    """A connected client and the coordinator that a test plays."""

    def __init__(self, client: CoordinatorConnection, coordinator: FakeCoordinator, peer: bytes) -> None:
        self.client = client
        self.coordinator = coordinator
        self.peer = peer

    async def hear(self, kind: type[Any], **fields: object) -> Any:
        return (await asyncio.to_thread(self.coordinator.hear, kind, **fields))[1]

    def say(self, message: Any) -> None:
        self.coordinator.say(self.peer, message)


def play(credentials: Credentials, story: Callable[[Scene], Awaitable[None]], *, heartbeat_s: float = 2.0) -> None:
    async def run() -> None:
        client = CoordinatorConnection(credentials)
        await client.start()
        with FakeCoordinator(credentials, heartbeat_s=heartbeat_s) as coordinator:
            peer = await asyncio.to_thread(coordinator.welcome, "client")
            await client.wait_until(lambda _: True, 5)
            try:
                await asyncio.wait_for(story(Scene(client, coordinator, peer)), 20)
            finally:
                await client.close()

    asyncio.run(run())


def submission(request_id: str = REQUEST, **params: Any) -> Submission:
    return Submission(
        request_id=request_id,
        prompt_tokens=[1, 2, 3],
        params=params,
        max_generated=4,
        seed=1,
        end_ids=[],
        bad_word_ids=[],
    )


def output(offset: int, tokens: list[int], *, choice: int = 0, finish: str | None = None) -> Output:
    end = None if finish is None else Finish(reason=finish)
    return Output(REQUEST, choice, offset, "".join(map(chr, tokens)), tokens, finish=end)


async def read(stream: Any) -> list[Output]:
    return [piece async for batch in stream for piece in batch]


def test_pieces_of_all_continuations_come_in_order_until_the_last_has_ended(credentials: Credentials) -> None:
    async def story(scene: Scene) -> None:
        reading = asyncio.create_task(read(scene.client.submit(submission(n=2))))
        assert (await scene.hear(Submission)).prompt_tokens == [1, 2, 3]
        scene.say(ClientOutput([output(0, [65]), output(0, [66], choice=1, finish="stop")]))
        scene.say(ClientOutput([output(1, [67], finish="length")]))
        pieces = await reading
        assert "".join(piece.text for piece in pieces if piece.choice == 0) == "AC"
        assert [piece.finish.reason for piece in pieces if piece.finish] == ["stop", "length"]

    play(credentials, story)


def test_a_refusal_comes_out_of_the_stream_with_all_that_it_says(credentials: Credentials) -> None:
    async def story(scene: Scene) -> None:
        reading = asyncio.create_task(read(scene.client.submit(submission())))
        await scene.hear(Submission)
        scene.say(Failure(REQUEST, RequestError("QueueFullError", "full", 7.0)))
        with pytest.raises(QueueFullError, match="full") as refusal:
            await reading
        assert refusal.value.retry_after_s == 7.0

    play(credentials, story)


def test_a_piece_that_is_missing_ends_the_request_instead_of_giving_wrong_text(credentials: Credentials) -> None:
    async def story(scene: Scene) -> None:
        reading = asyncio.create_task(read(scene.client.submit(submission())))
        await scene.hear(Submission)
        scene.say(ClientOutput([output(0, [65])]))
        scene.say(ClientOutput([output(2, [67], finish="length")]))
        with pytest.raises(EngineDiedError, match="lost"):
            await reading
        await scene.hear(Abort, request_id=REQUEST)

    play(credentials, story)


def test_pieces_that_come_twice_or_of_nobodys_request_change_nothing(credentials: Credentials) -> None:
    async def story(scene: Scene) -> None:
        reading = asyncio.create_task(read(scene.client.submit(submission())))
        await scene.hear(Submission)
        scene.say(ClientOutput([Output("f" * 32, 0, 0, "secret", [1])]))
        scene.say(ClientOutput([output(0, [65], finish="length")]))
        scene.say(ClientOutput([output(0, [65], finish="length")]))
        assert [piece.text for piece in await reading] == ["A"]

    play(credentials, story)


def test_a_reader_that_leaves_aborts_its_request(credentials: Credentials) -> None:
    async def story(scene: Scene) -> None:
        stream = scene.client.submit(submission())
        await scene.hear(Submission)
        await stream.aclose()
        await scene.hear(Abort, request_id=REQUEST)
        await scene.hear(ClientPulse, held_ids=[])

    play(credentials, story)


def test_when_the_coordinator_dies_all_requests_end_and_new_ones_are_refused(credentials: Credentials) -> None:
    async def run() -> None:
        client = CoordinatorConnection(credentials)
        await client.start()
        with FakeCoordinator(credentials, heartbeat_s=0.1) as first:
            await asyncio.to_thread(first.welcome, "client")
            await client.wait_until(lambda _: True, 5)
            reading = asyncio.create_task(read(client.submit(submission())))
            asking = asyncio.create_task(client.read_metrics())
            await asyncio.to_thread(first.hear, Submission)
        for waiting in (reading, asking):
            with pytest.raises(ServiceUnavailableError):
                await asyncio.wait_for(waiting, 5)
        with pytest.raises(ServiceUnavailableError):
            client.submit(submission("b" * 32))
        with FakeCoordinator(credentials) as second:
            await asyncio.to_thread(second.welcome, "client", "2" * 32)
            await client.wait_until(lambda _: True, 5)
            client.submit(submission("c" * 32))
            assert (await asyncio.to_thread(second.hear, Submission))[1].request_id == "c" * 32
        await client.close()

    asyncio.run(run())


def test_told_that_it_is_unknown_a_client_ends_its_requests_and_says_hello_again(credentials: Credentials) -> None:
    async def story(scene: Scene) -> None:
        reading = asyncio.create_task(read(scene.client.submit(submission())))
        await scene.hear(Submission)
        scene.say(Unwelcome("hello", "who are you?"))
        with pytest.raises(ServiceUnavailableError):
            await reading
        peer = await asyncio.to_thread(scene.coordinator.welcome, "client", "2" * 32)
        assert peer == scene.peer

    play(credentials, story)


def test_a_client_that_is_refused_hears_why(credentials: Credentials) -> None:
    async def story(scene: Scene) -> None:
        scene.say(Unwelcome("version", "speak version 2"))
        with pytest.raises(ProtocolError, match="speak version 2"):
            await scene.client.wait_until(lambda _: False, 5)

    play(credentials, story)


def test_verbs_and_questions_get_their_own_answers(credentials: Credentials) -> None:
    async def story(scene: Scene) -> None:
        pausing = asyncio.create_task(scene.client.control("pause"))
        resuming = asyncio.create_task(scene.client.control("resume"))
        pause, resume = await scene.hear(Control, verb="pause"), await scene.hear(Control, verb="resume")
        metrics = asyncio.create_task(scene.client.read_metrics())
        query = await scene.hear(MetricsQuery)
        scene.say(MetricsAnswer(query.nonce, {"num_requests_running": 3.0}, {}, {}, []))
        scene.say(ControlAnswer(resume.nonce, "running", 0, RequestError("LifecycleError", "suspend first")))
        scene.say(ControlAnswer(pause.nonce, "paused"))
        assert (await pausing).state == "paused"
        with pytest.raises(LifecycleError, match="suspend first"):
            await resuming
        assert (await metrics).gauges == {"num_requests_running": 3.0}

    play(credentials, story)


def test_a_request_that_cannot_be_written_down_is_refused_at_once(credentials: Credentials) -> None:
    async def story(scene: Scene) -> None:
        with pytest.raises(InvalidRequestError):
            scene.client.submit(submission(attributes={"odd": object()}))

    play(credentials, story)


def test_the_newest_status_is_known_and_facts_are_kept(credentials: Credentials) -> None:
    async def story(scene: Scene) -> None:
        status = ServiceStatus("paused", replicas=[], facts=None, num_queued=2, num_in_flight=3)
        scene.say(status)
        assert await scene.client.wait_until(lambda news: news.num_queued == 2, 5) == status
        assert not scene.client.status.is_ready

    play(credentials, story)


def test_garbage_from_the_coordinator_is_dropped(credentials: Credentials) -> None:
    async def story(scene: Scene) -> None:
        assert scene.coordinator._router.send(scene.peer, b"\xc1garbage")
        scene.say(Welcome("c" * 32, 0, 2.0))
        reading = asyncio.create_task(read(scene.client.submit(submission())))
        await scene.hear(Submission)
        scene.say(ClientOutput([output(0, [65], finish="stop")]))
        assert len(await reading) == 1

    play(credentials, story)
