"""A replica whose tokens are known beforehand, in a process of its own that starts in a tenth of a second and may be
killed at any moment: `python -m soak.counting_engine CREDENTIALS-FILE NUMBER`.

Token k of a request with seed s is `token_of(s, k)`. One step gives each request it holds one token.
"""

import os
import sys
import time
from pathlib import Path

import msgspec

from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.sockets import DealerSocket
from kilotron.coordinator.wire import (
    ENGINE_DECODER,
    Abort,
    EngineLoad,
    EngineOutput,
    Finish,
    Join,
    Output,
    Pulse,
    Submission,
    Work,
    encode,
)
from unit.coordinator.core.core_world import FACTS, hello_of, incarnation_of

STEP_S = 0.002
BEAT_S = 0.2
COUNTING_FACTS = msgspec.structs.replace(FACTS, max_requests=16)


def token_of(seed: int, offset: int) -> int:
    return (seed * 31 + offset * 7) % 250 + 1


def main() -> None:
    credentials, number = Credentials.from_file(Path(sys.argv[1])), int(sys.argv[2])
    pulse, engine = DealerSocket(credentials), DealerSocket(credentials)
    for role, socket in (("pulse", pulse), ("engine", engine)):
        hello = hello_of(role, incarnation_of(number), os.getpid(), credentials)  # type: ignore[arg-type]
        while not socket.send(encode(hello)) or not socket.wait(5):
            time.sleep(0.001)
    engine.send(encode(Join(COUNTING_FACTS)))
    held: dict[str, tuple[Submission, int]] = {}
    next_beat = 0.0
    while True:
        if time.monotonic() >= next_beat:
            next_beat = time.monotonic() + BEAT_S
            pulse.send(encode(Pulse("ready", 1.0, EngineLoad(num_running=len(held)), list(held))))
        while (frame := engine.receive()) is not None:
            message = ENGINE_DECODER.decode(frame)
            if isinstance(message, Work):
                held[message.submission.request_id] = (message.submission, 0)
            elif isinstance(message, Abort):
                held.pop(message.request_id, None)
        outputs = [output for request_id in list(held) if (output := step(held, request_id)) is not None]
        if outputs:
            engine.send(encode(EngineOutput(outputs, [])))
        time.sleep(STEP_S)


def step(held: dict[str, tuple[Submission, int]], request_id: str) -> Output | None:
    """The next token, or, for a request that does not stream, all of them at its end."""
    submission, offset = held[request_id]
    held[request_id] = (submission, offset + 1)
    finish = None
    if offset + 1 == submission.max_generated:
        del held[request_id]
        finish = Finish(reason="length", num_generated_tokens=offset + 1)
    is_streaming = submission.params.get("streaming", False)
    if not is_streaming and finish is None:
        return None
    first = offset if is_streaming else 0
    tokens = [token_of(submission.seed, place) for place in range(first, offset + 1)]
    return Output(request_id, 0, first, "", tokens, finish=finish)


if __name__ == "__main__":
    main()
