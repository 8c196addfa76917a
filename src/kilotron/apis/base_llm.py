"""BaseLLM: what the synchronous and the asynchronous API share: choosing the mode, and access to its parts."""

from abc import ABC, abstractmethod
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
    from kilotron.apis.load_phases import LoadPhase
    from kilotron.contexts.dynamic_context import DynamicInferenceContext
    from kilotron.coordinator.credentials import Credentials
    from kilotron.engines.dynamic_engine import DynamicInferenceEngine
    from kilotron.models.gpt_model import GPTModel
    from kilotron.models.weight_loading import OnProgress
    from kilotron.text_generation_controllers.text_generation_controller import TextGenerationController
    from kilotron.trace import Trace

Params = SamplingParams | Sequence[SamplingParams] | None
Conversation = Sequence[Mapping[str, object]]


class BaseLLM(ABC):
    """A model with an engine around it, here or elsewhere; see `MegatronLLM` for the arguments."""

    def __init__(
        self,
        model: "str | Path | GPTModel | None" = None,
        tokenizer: str | Path | Tokenizer | None = None,
        *,
        inference_config: InferenceConfig | None = None,
        use_coordinator: bool = False,
        coordinator_host: str | None = None,
        coordinator_port: int | None = None,
        data_parallel_size: int = 1,
        on_progress: "OnProgress | None" = None,
        **options: Any,
    ) -> None:
        config = _choose_config(inference_config, options)
        self._coordinator_mode: CoordinatorMode | None = None
        if use_coordinator:
            address = _tcp_address(coordinator_host, coordinator_port)
            self._coordinator_mode = _start_coordinator(model, tokenizer, config, data_parallel_size, address)
        elif (coordinator_host, coordinator_port, data_parallel_size) != (None, None, 1):
            raise ConfigError("coordinator_host, coordinator_port and data_parallel_size need use_coordinator=True")
        self._mode = self._coordinator_mode or self._open_directly(model, tokenizer, config, on_progress)

    @abstractmethod
    def _open_directly(
        self,
        model: "str | Path | GPTModel | None",
        tokenizer: str | Path | Tokenizer | None,
        config: InferenceConfig,
        on_progress: "OnProgress | None",
    ) -> Any:
        """Loads the model into this process; a `DirectMode`."""

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


def _choose_config(inference_config: InferenceConfig | None, options: Mapping[str, Any]) -> InferenceConfig:
    """The engine's options from either a config or single ones."""
    if inference_config is None:
        return InferenceConfig.from_dict(options)
    if options:
        raise ConfigError(f"give inference_config or single options ({', '.join(options)}), not both")
    if not isinstance(inference_config, InferenceConfig):
        raise ConfigError(f"inference_config must be an InferenceConfig, not {type(inference_config).__name__}")
    return inference_config


def _tcp_address(host: str | None, port: int | None) -> str | None:
    """Where a coordinator is to listen; None inside this machine only."""
    if host is None and port is None:
        return None
    if port:
        return f"tcp://{host or '127.0.0.1'}:{port}"
    from kilotron.coordinator.sockets import free_tcp_address

    return free_tcp_address(host or "127.0.0.1")


def _start_coordinator(
    model: Any, tokenizer: Any, config: InferenceConfig, data_parallel_size: int, address: str | None
) -> "CoordinatorMode":
    from kilotron.apis.coordinator_mode import CoordinatorMode

    # One program's own prompts, however many: nobody else is to be kept from a full queue.
    serve = ServeConfig(
        data_parallel_size=data_parallel_size,
        max_queued_requests=config.max_waiting_requests,
        max_queued_tokens=MOST_QUEUED_TOKENS,
    )
    return CoordinatorMode(model, tokenizer, config, serve, address)
