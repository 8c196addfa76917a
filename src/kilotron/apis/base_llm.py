"""BaseLLM: what the synchronous and the asynchronous API share: choosing the mode, and access to its parts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kilotron.config import MOST_QUEUED_TOKENS, InferenceConfig, ResolvedConfig, ServeConfig
from kilotron.errors import ConfigError, LifecycleError
from kilotron.sampling_params import SamplingParams
from kilotron.tokenization import Tokenizer

if TYPE_CHECKING:
    from kilotron.apis.assembly import Assembly
    from kilotron.apis.coordinator_mode import CoordinatorMode
    from kilotron.apis.direct_mode import DirectMode
    from kilotron.apis.load_phases import LoadPhase
    from kilotron.contexts.dynamic_context import DynamicInferenceContext
    from kilotron.coordinator.credentials import Credentials
    from kilotron.engines.dynamic_engine import DynamicInferenceEngine
    from kilotron.text_generation_controllers.text_generation_controller import TextGenerationController
    from kilotron.trace import Trace

Params = SamplingParams | Sequence[SamplingParams] | None
Conversation = Sequence[Mapping[str, object]]


class BaseLLM:
    """A model with an engine around it, here or elsewhere; see `MegatronLLM` for the arguments."""

    def __init__(self, mode: "DirectMode | CoordinatorMode", coordinator: "CoordinatorMode | None" = None) -> None:
        self._mode = mode
        self._coordinator_mode = coordinator

    @property
    def engine(self) -> "DynamicInferenceEngine":
        """The engine, for experts."""
        return self._assembly.engine

    @property
    def context(self) -> "DynamicInferenceContext":
        """The engine's context, for experts."""
        return self.engine.context

    @property
    def controller(self) -> "TextGenerationController":
        """The engine's controller, for experts."""
        return self.engine.controller

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None when there is none."""
        return self._mode.tokenizer

    @property
    def config(self) -> ResolvedConfig:
        """The options without any "auto", and why each is as it is."""
        return self._assembly.config

    @property
    def default_sampling_params(self) -> SamplingParams:
        """What the checkpoint's generation_config.json recommends."""
        return self._mode.default_sampling_params

    @property
    def kernels_name(self) -> str:
        """The kernel backend in use."""
        return self._assembly.kernels_name

    @property
    def load_phases(self) -> "list[LoadPhase]":
        """How long each part of loading took."""
        return self._assembly.load_phases

    @property
    def trace(self) -> "Trace | None":
        """The times of steps and operations so far; None without `profile`."""
        return self._assembly.trace

    @property
    def credentials(self) -> "Credentials":
        """What another program needs to reach this one's coordinator with an `InferenceClient`. Keep them secret.

        Raises:
            LifecycleError: there is no coordinator.
        """
        return self._coordinator("credentials").credentials

    @property
    def is_primary_rank(self) -> bool:
        """Whether this process takes prompts. All others are kilotron's own children, so it always does."""
        return True

    @property
    def _assembly(self) -> "Assembly":
        """The parts of the engine in this process."""
        assembly = self._mode.assembly
        if assembly is None:
            raise LifecycleError("the engines run in processes of their own; their parts cannot be reached from here")
        return assembly

    def _coordinator(self, what: str) -> "CoordinatorMode":
        """
        Raises:
            LifecycleError: this object was built without a coordinator.
        """
        if self._coordinator_mode is None:
            raise LifecycleError(f"{what} needs a coordinator: build this object with use_coordinator=True")
        return self._coordinator_mode


def choose_config(inference_config: InferenceConfig | None, options: Mapping[str, Any]) -> InferenceConfig:
    """The engine's options from either a config or single ones.

    Raises:
        ConfigError: both are given, the config is none, or an option is unknown or out of range.
    """
    if inference_config is None:
        return InferenceConfig.from_dict(options)
    if options:
        raise ConfigError(f"give inference_config or single options ({', '.join(options)}), not both")
    if not isinstance(inference_config, InferenceConfig):
        raise ConfigError(f"inference_config must be an InferenceConfig, not {type(inference_config).__name__}")
    return inference_config


def choose_coordinator(
    model: Any,
    tokenizer: "str | Path | Tokenizer | None",
    config: InferenceConfig,
    *,
    use_coordinator: bool,
    coordinator_host: str | None,
    coordinator_port: int | None,
    data_parallel_size: int,
) -> "CoordinatorMode | None":
    """The started coordinator mode; None for direct mode.

    Raises:
        ConfigError: options of one mode are given for the other.
    """
    if not use_coordinator:
        if (coordinator_host, coordinator_port, data_parallel_size) != (None, None, 1):
            raise ConfigError("coordinator_host, coordinator_port and data_parallel_size need use_coordinator=True")
        return None
    from kilotron.apis.coordinator_mode import CoordinatorMode

    address = None
    if coordinator_host is not None or coordinator_port is not None:
        address = f"tcp://{coordinator_host or '127.0.0.1'}:{coordinator_port or 0}"
        if not coordinator_port:
            from kilotron.coordinator.sockets import free_tcp_address

            address = free_tcp_address(coordinator_host or "127.0.0.1")
    # One program's own prompts, however many: nobody else is to be kept from a full queue.
    serve = ServeConfig(
        data_parallel_size=data_parallel_size,
        max_queued_requests=config.max_waiting_requests,
        max_queued_tokens=MOST_QUEUED_TOKENS,
    )
    return CoordinatorMode(model, tokenizer, config, serve, address)
