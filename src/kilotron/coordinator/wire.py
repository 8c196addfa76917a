"""The wire protocol: every message between clients, coordinator and engines, and how it becomes bytes.

One ZMQ frame holds one msgpack array that starts with the message's tag. docs/wire-protocol.md tells who says what
when. Knows nothing of sockets, and imports neither torch nor zmq.
"""

from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from kilotron.config import KVMode
from kilotron.errors import ProtocolError

PROTOCOL_VERSION = 2
MAX_FRAME_BYTES = 16 << 20

Role: TypeAlias = Literal["engine", "pulse", "client", "controller"]
"""engine and pulse are the two connections of one replica; a controller is a client that may use control verbs."""
Verb: TypeAlias = Literal["pause", "unpause", "suspend", "resume"]
ServiceState: TypeAlias = Literal["running", "paused", "suspended"]
Phase: TypeAlias = Literal["starting", "loading", "ready"]


class Message(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Base of all structs on the wire: an array of the fields in order, without names."""


# --- parts of messages ---


class RequestError(Message):
    """Why a request was refused or failed; `code` names a class of kilotron.errors (see request_errors.py)."""

    code: str
    message: str
    retry_after_s: float | None = None
    is_retryable: bool = False


class EngineFacts(Message):
    """What is known of a replica's model and limits once it is loaded: all that a front end needs to check requests."""

    model: str
    """Its name or folder, as it was given."""
    model_hash: str
    """Of configuration and weights' identity; replicas of one service must agree."""
    tokenizer: str | None
    """The folder a front end loads the tokenizer from; None when only ids go in."""
    vocab_size: int
    max_sequence_length: int
    eos_ids: list[int]
    block_size: int
    num_blocks: int
    """The null block included."""
    max_requests: int
    max_tokens: int
    max_logits_tokens: int
    enable_chunked_prefill: bool
    enable_prefix_caching: bool
    default_sampling: dict[str, Any]
    """Fields of SamplingParams that the checkpoint recommends."""
    max_encoder_length: int = 0
    """Encoder-decoder models: most tokens that the encoder reads; 0 for decoder-only models."""
    decoder_start_token_id: int | None = None
    """Encoder-decoder models: what a decoder begins with that is given nothing."""
    has_fixed_decoder_start: bool = True
    """Whether it also comes in front of what a decoder is given."""


class EngineLoad(Message):
    """Gauges and ever-growing counters of one replica."""

    num_steps: int = 0
    step_age_s: float = 0.0
    """Seconds since the running step began; 0 between steps."""
    num_running: int = 0
    num_waiting: int = 0
    num_blocks_owned: int = 0
    num_blocks_cached: int = 0
    """Found again if needed, else given up; owned ones not counted."""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache."""
    num_queried_tokens: int = 0
    """Prompt tokens that were looked up in the prefix cache."""
    num_generated_tokens: int = 0
    num_preemptions: int = 0


class BlockStored(Message, tag="stored"):
    """Blocks became findable in a replica's prefix cache (vLLM's event of that name)."""

    block_hashes: list[bytes]
    parent_block_hash: bytes | None
    token_ids: list[int]
    block_size: int


class BlockRemoved(Message, tag="removed"):
    """Blocks are no longer findable."""

    block_hashes: list[bytes]


class AllBlocksCleared(Message, tag="cleared"):
    """Nothing is findable any more."""


BlockEvent: TypeAlias = BlockStored | BlockRemoved | AllBlocksCleared


class Beam(Message):
    """A sequence that beam search found."""

    token_ids: list[int]
    text: str
    score: float
    log_probs: list[float]
    cumulative_log_prob: float
    finish_reason: str


class Finish(Message):
    """How one continuation ended; comes with its last output."""

    reason: str
    """stop, length, abort, deadline or error."""
    stop_reason: int | str | None = None
    error: RequestError | None = None
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    prompt_log_probs: list[float] | None = None
    prompt_top_n: list[dict[int, float]] | None = None
    queue_s: float | None = None
    """Seconds in the engine's own queue."""
    ttft_s: float | None = None
    latency_s: float | None = None
    beams: list[Beam] = []
    """Best first; without beam search there are none."""


class Output(Message):
    """What is new in one continuation of a request."""

    request_id: str
    choice: int
    offset: int
    """Tokens of this continuation that came before: a gap means that something was lost."""
    text: str
    token_ids: list[int]
    log_probs: list[float] | None = None
    top_n: list[dict[int, float]] | None = None
    finish: Finish | None = None


class ReplicaStatus(Message):
    """One replica as the coordinator sees it."""

    incarnation: str
    phase: Phase
    progress: float
    """Share of loading that is done."""
    is_live: bool
    """Pulses are fresh and its steps move."""
    load: EngineLoad


# --- from any peer ---


class Hello(Message, tag="hello"):
    """The first message on a connection; nothing else counts before it was answered with Welcome."""

    protocol_version: int
    role: Role
    token: str
    """Of that role, see credentials.py."""
    incarnation: str
    """32 hex digits drawn when the peer's process started; both connections of an engine give the same."""
    pid: int
    """0 when the peer is on another host."""


class Farewell(Message, tag="farewell"):
    """The last message on a connection: the peer ends because it was asked to. It holds nothing any more."""


# --- from engines ---


class Join(Message, tag="join"):
    """The replica is loaded and takes requests."""

    facts: EngineFacts


class Pulse(Message, tag="pulse"):
    """Sent every heartbeat by a thread of its own, from before the model is loaded."""

    phase: Phase
    progress: float
    load: EngineLoad
    held_ids: list[str] | None = None
    """Every so often: the requests this replica holds, which renews their leases."""


class EngineOutput(Message, tag="engine-output"):
    """All that one step gave."""

    outputs: list[Output]
    block_events: list[BlockEvent]


class EngineRefusal(Message, tag="engine-refusal"):
    """A request could not be taken in; it ends here."""

    request_id: str
    error: RequestError


class VerbDone(Message, tag="verb-done"):
    """The replica's answer to EngineVerb."""

    nonce: str
    freed_bytes: int
    error: RequestError | None = None


class TimelineAnswer(Message, tag="timeline-answer"):
    """The replica's answer to TimelineQuery; None when it does not know the request."""

    nonce: str
    timeline: list[dict[str, Any]] | None


# --- from clients ---


class Submission(Message, tag="submit"):
    """A request, checked and in token ids."""

    request_id: str
    """32 hex digits, drawn by the client."""
    prompt_tokens: list[int]
    params: dict[str, Any]
    """Fields of SamplingParams that are not at their default."""
    max_generated: int
    seed: int
    end_ids: list[int]
    bad_word_ids: list[list[int]]
    cache_salt: str = ""
    timeout_s: float | None = None
    """Seconds it may still take when this is sent."""
    block_hashes: list[bytes] = []
    """Chain values of the prompt's full blocks, for routing; may be empty."""
    owner: str = ""
    """Whose quota it counts against."""
    idempotency_key: str = ""
    encoder_tokens: list[int] = []
    """Encoder-decoder models: what the encoder reads."""

    @property
    def num_input_tokens(self) -> int:
        """Prompt tokens, those of the encoder included."""
        return len(self.prompt_tokens) + len(self.encoder_tokens)


class Abort(Message, tag="abort"):
    """Nobody wants this request any more. Also from coordinator to engine."""

    request_id: str


class ClientPulse(Message, tag="client-pulse"):
    """Sent every heartbeat; the lease of the client's requests."""

    held_ids: list[str]
    counters: dict[str, int]
    """Ever-growing counts that only the client knows, such as HTTP responses by code: "http_responses/200"."""


class Control(Message, tag="control"):
    """A lifecycle verb; answered with ControlAnswer. For controllers only."""

    nonce: str
    verb: Verb
    kv_mode: KVMode = "persist"


class AbortById(Message, tag="abort-by-id"):
    """Ends somebody's request; answered with ControlAnswer. A client may end those of its `owner` only."""

    nonce: str
    request_id: str
    owner: str | None
    """None: of anybody, for controllers only."""


class MetricsQuery(Message, tag="metrics-query"):
    """Answered with MetricsAnswer."""

    nonce: str


class TimelineQuery(Message, tag="timeline-query"):
    """What happened to a request; answered with TimelineAnswer. Also from coordinator to engine."""

    nonce: str
    request_id: str


# --- from the coordinator ---


class Welcome(Message, tag="welcome"):
    """The answer to a good Hello."""

    incarnation: str
    """The coordinator's: another one than before means that it forgot everything."""
    pid: int
    heartbeat_s: float


class Unwelcome(Message, tag="unwelcome"):
    """What you sent does not count. `hello`: say Hello (again); anything else: you are refused, and why."""

    reason: Literal["hello", "version", "token", "model", "fenced"]
    message: str


class ServiceStatus(Message, tag="status"):
    """Sent to clients every heartbeat and on every change that they should know at once."""

    state: ServiceState
    replicas: list[ReplicaStatus]
    facts: EngineFacts | None
    """Of the first replica that joined; sent on change and with the first status only, else None."""
    num_queued: int
    """Requests that wait in the coordinator."""
    num_in_flight: int

    @property
    def is_ready(self) -> bool:
        """Whether a request sent now would be taken and run."""
        return self.state == "running" and any(
            replica.is_live and replica.phase == "ready" for replica in self.replicas
        )


class ClientOutput(Message, tag="client-output"):
    """New output of this client's requests."""

    outputs: list[Output]


class Failure(Message, tag="failure"):
    """A request ended, with all its continuations, and this is why."""

    request_id: str
    error: RequestError


class ControlAnswer(Message, tag="control-answer"):
    """The verb took effect, or `error` says why not."""

    nonce: str
    state: ServiceState
    freed_bytes: int = 0
    error: RequestError | None = None


class HistogramFigures(Message):
    """A histogram with explicit upper bounds: counts per bucket (the last one is +Inf) and the sum."""

    bounds: list[float]
    counts: list[int]
    total: float


class MetricsAnswer(Message, tag="metrics-answer"):
    """Everything there is to measure, over all replicas and clients."""

    nonce: str
    gauges: dict[str, float]
    counters: dict[str, float]
    """Name, or name/label: "request_success/stop"."""
    histograms: dict[str, HistogramFigures]
    replicas: list[ReplicaStatus]


class Work(Message, tag="work"):
    """A request for this replica."""

    submission: Submission


class EngineVerb(Message, tag="engine-verb"):
    """A lifecycle verb for this replica; answered with VerbDone."""

    nonce: str
    verb: Verb
    kv_mode: KVMode


FromPeer: TypeAlias = (
    Hello
    | Farewell
    | Join
    | Pulse
    | EngineOutput
    | EngineRefusal
    | VerbDone
    | TimelineAnswer
    | Submission
    | Abort
    | ClientPulse
    | Control
    | AbortById
    | MetricsQuery
    | TimelineQuery
)
ToEngine: TypeAlias = Welcome | Unwelcome | Work | Abort | EngineVerb | TimelineQuery
ToClient: TypeAlias = (
    Welcome | Unwelcome | ServiceStatus | ClientOutput | Failure | ControlAnswer | MetricsAnswer | TimelineAnswer
)

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


class FrameDecoder(msgspec.Struct, frozen=True):
    """Decodes what one kind of receiver may get."""

    decoder: msgspec.msgpack.Decoder[Any]

    def decode(self, frame: bytes | memoryview) -> Any:
        """The message in a frame.

        Raises:
            ProtocolError: it is too long, no msgpack, of an unknown tag, or has wrong fields.
        """
        if len(frame) > MAX_FRAME_BYTES:
            raise ProtocolError(f"a frame of {len(frame)} bytes is longer than {MAX_FRAME_BYTES}")
        try:
            return self.decoder.decode(frame)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise ProtocolError(f"a frame that is no message: {error}") from error


def encode(message: Message) -> bytes:
    """The frame of a message.

    Raises:
        ProtocolError: it would be longer than a frame may be.
    """
    frame = _encoder.encode(message)
    if len(frame) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a {type(message).__name__} of {len(frame)} bytes is longer than {MAX_FRAME_BYTES}")
    return frame


COORDINATOR_DECODER = FrameDecoder(msgspec.msgpack.Decoder(FromPeer))
ENGINE_DECODER = FrameDecoder(msgspec.msgpack.Decoder(ToEngine))
CLIENT_DECODER = FrameDecoder(msgspec.msgpack.Decoder(ToClient))
