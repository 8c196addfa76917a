"""InferenceConfig and ServeConfig: every option of engine and server; `resolve` turns "auto" into facts and says why.

Knows the model and the machine only as the numbers in `ModelFacts` and `MachineFacts`.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, Self

from kilotron.errors import ConfigError

GIB = 1 << 30
API_KEY_VARIABLE = "KILOTRON_API_KEY"
ADMIN_KEY_VARIABLE = "KILOTRON_ADMIN_KEY"

KVMode = Literal["persist", "offload", "recompute"]
"""What becomes of the KV cache while an engine is suspended."""
MOST_QUEUED_TOKENS = 1 << 40

_DTYPES: tuple[str, ...] = ("auto", "float32", "bfloat16", "float16")
_QUANTIZATIONS = (None, "int8", "int4")
_QUANTIZATION_GROUP_SIZES = (32, 64, 128)
# See docs/quantization.md for the errors and sizes that speak for it.
_DEFAULT_GROUP_SIZE = 64
_KV_CACHE_DTYPES = ("auto", "int8")
_WEIGHT_CACHE_MODES = ("auto", "write", "off")
_LOGPROBS_MODES = ("raw_logprobs", "processed_logprobs")
# Share of the free memory that the KV cache takes at most when its size is "auto".
_FREE_MEMORY_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Options of an engine. Names are Megatron's where it has one.

    Raises:
        ConfigError: an option is out of range; the message names option, value and range.
    """

    dtype: str = "auto"
    """Type of weights, activations and KV cache: auto (the checkpoint's), float32, bfloat16 or float16."""
    device: str = "auto"
    """Where to run: auto, cpu, or a torch device name."""
    kernels: str = "auto"
    """Kernel backend: auto, cpu or reference."""
    num_threads: int | None = None
    """CPU threads; None leaves torch's own choice."""
    kv_cache_dtype: str = "auto"
    """Type of the KV cache: auto (that of the activations) or int8, which holds twice as many tokens."""
    quantization: str | None = None
    """Quantizes the weights of a plain checkpoint while loading: int8 or int4; None leaves them as they are."""
    quantization_group_size: int | None = None
    """With int4, input columns that share a scale: 32, 64 or 128; None chooses."""
    weight_cache: str = "auto"
    """Packed weights in a file, for the next start: auto (used where there is one), write (made where not) or off."""
    block_size_tokens: int = 32
    """Tokens in one KV-cache block."""
    buffer_size_gb: float | None = None
    """Size of the KV cache in GiB; None sizes it by need and free memory."""
    max_requests: int = 256
    """Most requests that run at once."""
    max_tokens: int | None = None
    """Most tokens computed in one step; longer prompts are computed in chunks. None chooses by device."""
    max_sequence_length: int | None = None
    """Most tokens of prompt plus output; None takes the model's."""
    max_logits_tokens: int = 512
    """Most tokens per step whose logits are kept (new tokens and scored prompt tokens); bounds memory."""
    max_waiting_requests: int = 200_000
    """Requests beyond this many waiting ones are refused."""
    enable_prefix_caching: bool = True
    """Keep computed blocks and share them between requests that start alike."""
    enable_chunked_prefill: bool = True
    """Split long prompts over steps; when off, a prompt longer than `max_tokens` is refused."""
    aging_steps: int = 256
    """A waiting request gains one priority level each time it has waited this many steps."""
    logprobs_mode: str = "raw_logprobs"
    """raw_logprobs: of the model's logits; processed_logprobs: after temperature and filters."""
    random_seed: int | None = None
    """Seeds the draw of seeds for requests that bring none; None takes the system's randomness."""
    profile: str | None = None
    """File for a Chrome trace of all steps and operations, written when the engine is closed."""

    def __post_init__(self) -> None:
        _check_choice("dtype", self.dtype, _DTYPES)
        _check_choice("logprobs_mode", self.logprobs_mode, _LOGPROBS_MODES)
        _check_int("block_size_tokens", self.block_size_tokens, 1, 4096)
        _check_int("max_requests", self.max_requests, 1, 65536)
        _check_int("max_logits_tokens", self.max_logits_tokens, 1, 1 << 20)
        _check_int("max_waiting_requests", self.max_waiting_requests, 1, 1 << 31)
        _check_int("aging_steps", self.aging_steps, 1, 1 << 31)
        for name, high in (("num_threads", 4096), ("max_tokens", 1 << 24), ("max_sequence_length", 1 << 31)):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), 1, high)
        if self.random_seed is not None:
            _check_int("random_seed", self.random_seed, -(1 << 63), (1 << 64) - 1)
        for name in ("device", "kernels"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} must be a text, not {getattr(self, name)!r}")
        if self.profile is not None and not (isinstance(self.profile, str) and self.profile):
            raise ConfigError(f"profile must be the name of a file, not {self.profile!r}")
        for name in ("enable_prefix_caching", "enable_chunked_prefill"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, not {getattr(self, name)!r}")
        self._check_buffer_size()
        _check_choice("weight_cache", self.weight_cache, _WEIGHT_CACHE_MODES)
        _check_choice("kv_cache_dtype", self.kv_cache_dtype, _KV_CACHE_DTYPES)
        self._check_quantization()

    def _check_quantization(self) -> None:
        _check_choice("quantization", self.quantization, _QUANTIZATIONS)
        size = self.quantization_group_size
        if size is None:
            return
        if isinstance(size, bool) or size not in _QUANTIZATION_GROUP_SIZES:
            raise ConfigError(
                f"quantization_group_size must be one of {_listed(_QUANTIZATION_GROUP_SIZES)}, not {size!r}"
            )
        if self.quantization != "int4":
            raise ConfigError(
                f"quantization_group_size={size} goes with quantization='int4', not {self.quantization!r}"
            )

    def _check_buffer_size(self) -> None:
        size = self.buffer_size_gb
        is_number = isinstance(size, int | float) and not isinstance(size, bool)
        if size is not None and not (is_number and 0 < size < 1 << 20):
            raise ConfigError(f"buffer_size_gb must be a number above 0 and below {1 << 20}, not {size!r}")

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> Self:
        """Builds from a mapping.

        Raises:
            ConfigError: an option is unknown (the message offers the nearest one) or out of range.
        """
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise ConfigError(f"unknown option {name!r}; {hint}")
        return cls(**options)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Options of a server. Those of the engines behind it are an `InferenceConfig`.

    Raises:
        ConfigError: an option is out of range; the message names option, value and range.
    """

    host: str = "127.0.0.1"
    """Address to listen on. Anything but a loopback address needs an API key."""
    port: int = 8000
    """0 takes a free one."""
    served_model_name: str | None = None
    """The model's name in requests and answers; None takes the checkpoint's folder name or hub id."""
    frontend_replicas: int = 1
    """HTTP processes that share the port."""
    data_parallel_size: int = 1
    """Engine replicas."""
    api_key_file: str | None = None
    """File of mode 0600 with one API key per line; KILOTRON_API_KEY in the environment is another way."""
    admin_key_file: str | None = None
    """The same for the key of the admin routes; or KILOTRON_ADMIN_KEY."""
    allow_public_without_key: bool = False
    """Listen on a public address although anybody may then use the server."""
    allowed_hosts: Sequence[str] = ()
    """Names by which browsers may call a server on a loopback address, besides localhost."""
    allowed_origins: Sequence[str] = ()
    """Web pages (scheme://host:port) whose scripts may call the server."""
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    drain_timeout_s: float = 30.0
    """Seconds that running requests get to finish after SIGTERM."""
    request_timeout_s: float = 600.0
    """Seconds after which a request is cancelled, unless it asks for less itself."""
    max_queued_requests: int = 256
    """Requests that may wait for an engine; more are refused at once."""
    max_queued_tokens: int | None = None
    """Prompt tokens that may wait for an engine; None: eight times what the KV caches hold."""
    max_concurrent_per_key: int = 256
    """Prompts that one API key may have under way, where there are keys; a call may have as many."""
    routing: str = "longest_prefix"
    """Which replica gets a request: longest_prefix, least_load or round_robin."""
    routing_alpha: float = 0.5
    """With longest_prefix: weight of the cached share against that of the load, in [0, 1]."""
    heartbeat_s: float = 5.0
    """Seconds between two signs of life; two missed ones mean death."""
    step_timeout_s: float = 120.0
    """Seconds after which a step that does not end counts as hung, and its replica is restarted."""
    share_prefix_cache_between_keys: bool = False
    """Let requests with different API keys find each other's cached prefixes (and notice by their speed)."""
    allow_unknown_fields: bool = False
    """Ignore request fields that nobody knows, with a warning header, instead of refusing them."""
    log_format: str = "text"
    """text or json."""
    access_log: bool = False
    """A line per HTTP request."""

    def __post_init__(self) -> None:
        if not isinstance(self.host, str) or not self.host:
            raise ConfigError(f"host must be an address such as 127.0.0.1, not {self.host!r}")
        _check_choice("routing", self.routing, _ROUTINGS)
        _check_choice("log_format", self.log_format, _LOG_FORMATS)
        for name, low, high in _SERVE_INTEGERS:
            _check_int(name, getattr(self, name), low, high)
        if self.max_queued_tokens is not None:
            _check_int("max_queued_tokens", self.max_queued_tokens, 1, MOST_QUEUED_TOKENS)
        for name, least, most in _SERVE_NUMBERS:
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
                raise ConfigError(f"{name} must be a number in [{least:g}, {most:g}], not {value!r}")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ConfigError("tls_cert_file and tls_key_file go together; give both or neither")


_ROUTINGS = ("longest_prefix", "least_load", "round_robin")
_LOG_FORMATS = ("text", "json")
_SERVE_INTEGERS = (
    ("port", 0, 65535),
    ("frontend_replicas", 1, 64),
    ("data_parallel_size", 1, 1024),
    ("max_queued_requests", 1, 1 << 31),
    ("max_concurrent_per_key", 1, 1 << 20),
)
_SERVE_NUMBERS = (
    ("drain_timeout_s", 0.0, 86400.0),
    ("request_timeout_s", 0.001, 86400.0),
    ("routing_alpha", 0.0, 1.0),
    ("heartbeat_s", 0.05, 300.0),
    ("step_timeout_s", 0.1, 86400.0),
)


class ModelFacts(NamedTuple):
    """What `resolve` needs to know of a model."""

    dtype: str
    """The checkpoint's."""
    max_position_embeddings: int
    kv_numbers_per_token: int
    """Key and value numbers of one token over all layers; times the size of the dtype gives bytes."""
    kv_heads_per_token: int
    """Heads of keys and of values over all layers; each has a scale when the cache is int8."""
    quantization: str | None = None
    """How the checkpoint's weights are quantized already, for people; None when they are plain."""


class MachineFacts(NamedTuple):
    """What `resolve` needs to know of the machine."""

    device: str
    device_reason: str
    free_memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """An InferenceConfig without any "auto", and the reason for each value that was decided."""

    options: InferenceConfig
    dtype: str
    quantization: str | None
    """How the weights are quantized, for people."""
    device: str
    max_sequence_length: int
    max_tokens: int
    num_blocks: int
    """Blocks of the KV cache, the null block included."""
    kv_cache_bytes: int
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Option -> why it has its value."""

    def describe(self) -> list[tuple[str, str, str]]:
        """Rows (option, value, reason) of all that was decided, for people."""
        values = {
            "dtype": self.dtype,
            "quantization": self.quantization or "none",
            "device": self.device,
            "max_sequence_length": f"{self.max_sequence_length}",
            "max_tokens": f"{self.max_tokens}",
            "buffer_size_gb": f"{self.kv_cache_bytes / GIB:.3f} ({self.num_blocks} blocks)",
        }
        return [(name, value, self.reasons[name]) for name, value in values.items()]


def resolve(config: InferenceConfig, model: ModelFacts, machine: MachineFacts) -> ResolvedConfig:
    """Turns every "auto" into a fact.

    Raises:
        ConfigError: an option contradicts the model or the machine.
    """
    dtype, dtype_reason = (config.dtype, "asked for") if config.dtype != "auto" else (model.dtype, "the checkpoint's")
    quantization, group_size, quantization_reason = _resolve_quantization(config, model)
    length, length_reason = _resolve_length(config, model)
    tokens, tokens_reason = _resolve_max_tokens(config, machine)
    block_bytes = _kv_token_bytes(config, model, dtype) * config.block_size_tokens
    blocks, blocks_reason = _resolve_blocks(config, machine, block_bytes, length)
    return ResolvedConfig(
        options=replace(config, max_tokens=tokens, max_sequence_length=length, quantization_group_size=group_size),
        dtype=dtype,
        quantization=quantization,
        device=machine.device,
        max_sequence_length=length,
        max_tokens=tokens,
        num_blocks=blocks,
        kv_cache_bytes=blocks * block_bytes,
        reasons={
            "dtype": dtype_reason,
            "quantization": quantization_reason,
            "device": machine.device_reason,
            "max_sequence_length": length_reason,
            "max_tokens": tokens_reason,
            "buffer_size_gb": blocks_reason,
        },
    )


def _kv_token_bytes(config: InferenceConfig, model: ModelFacts, dtype: str) -> int:
    if config.kv_cache_dtype == "int8":
        return model.kv_numbers_per_token + 4 * model.kv_heads_per_token  # a float32 scale for each head
    return model.kv_numbers_per_token * (4 if dtype == "float32" else 2)


def _resolve_quantization(config: InferenceConfig, model: ModelFacts) -> tuple[str | None, int | None, str]:
    """-> how the weights are quantized, the group size if there are groups to be made, and why."""
    if config.quantization is None:
        return model.quantization, None, "the checkpoint's"
    if model.quantization is not None:
        raise ConfigError(
            f"quantization={config.quantization}, but the checkpoint is quantized already ({model.quantization}); "
            "leave the option out, or use the plain checkpoint"
        )
    if config.quantization == "int8":
        return "int8, a scale per output channel", None, "asked for"
    size, reason = config.quantization_group_size, "asked for"
    if size is None:
        size, reason = _DEFAULT_GROUP_SIZE, "asked for; groups that give a small error for few bytes"
    return f"int4 in groups of {size}", size, reason


def _resolve_length(config: InferenceConfig, model: ModelFacts) -> tuple[int, str]:
    if config.max_sequence_length is None:
        return model.max_position_embeddings, "the model's"
    if config.max_sequence_length > model.max_position_embeddings:
        raise ConfigError(
            f"max_sequence_length={config.max_sequence_length} exceeds the model's "
            f"{model.max_position_embeddings} positions; use at most that"
        )
    return config.max_sequence_length, "asked for"


def _resolve_max_tokens(config: InferenceConfig, machine: MachineFacts) -> tuple[int, str]:
    if config.max_tokens is not None:
        return config.max_tokens, "asked for"
    return default_max_tokens(machine.device)


def default_max_tokens(device: str) -> tuple[int, str]:
    """Tokens of one step where nothing is said, and why so many."""
    if device == "cpu":
        return 1024, "chunks long enough for full matrix speed, short enough to keep other rows moving"
    return 8192, "chunks that fill an accelerator"


def _resolve_blocks(
    config: InferenceConfig, machine: MachineFacts, block_bytes: int, max_sequence_length: int
) -> tuple[int, str]:
    """-> number of blocks, null block included, and why."""
    blocks_per_request = -(-max_sequence_length // config.block_size_tokens)
    if config.buffer_size_gb is not None:
        blocks = int(config.buffer_size_gb * GIB) // block_bytes
        if blocks < 2:
            raise ConfigError(
                f"buffer_size_gb={config.buffer_size_gb} holds {blocks} blocks of {block_bytes} bytes; "
                "at least 2 are needed"
            )
        return blocks, "asked for"
    needed = blocks_per_request * config.max_requests + 1
    affordable = int(machine.free_memory_bytes * _FREE_MEMORY_SHARE) // block_bytes
    if affordable < 2:
        raise ConfigError(
            f"{machine.free_memory_bytes / GIB:.2f} GiB of free memory hold no KV cache; "
            "free some, or set buffer_size_gb or a smaller block_size_tokens"
        )
    if needed <= affordable:
        return needed, f"enough for {config.max_requests} requests of {max_sequence_length} tokens"
    return affordable, f"half of the {machine.free_memory_bytes / GIB:.1f} GiB of free memory"


def _check_choice(name: str, value: Any, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {_listed(choices)}, not {value!r}")


def _listed(choices: Iterable[object]) -> str:
    return ", ".join(map(str, choices))


def _check_int(name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{name} must be a whole number in [{low}, {high}], not {value!r}")
