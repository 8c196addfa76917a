"""BaseLLM: what the synchronous and the asynchronous API share: building the engine, and access to its parts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kilotron.apis.assembly import assemble
from kilotron.apis.load_phases import LoadPhase
from kilotron.config import InferenceConfig, ResolvedConfig
from kilotron.contexts.dynamic_context import DynamicInferenceContext
from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.errors import ConfigError
from kilotron.models.gpt_model import GPTModel
from kilotron.models.weight_loading import OnProgress
from kilotron.sampling_params import SamplingParams
from kilotron.text_generation_controllers.text_generation_controller import TextGenerationController
from kilotron.tokenization import Tokenizer
from kilotron.trace import Trace

Params = SamplingParams | Sequence[SamplingParams] | None
Conversation = Sequence[Mapping[str, object]]


class BaseLLM:
    """A model with an engine around it; see `MegatronLLM` for the arguments."""

    def __init__(
        self,
        model: str | Path | GPTModel | None = None,
        tokenizer: str | Path | Tokenizer | None = None,
        *,
        inference_config: InferenceConfig | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> None:
        config = _merge_config(inference_config, options)
        self._assembly = assemble(model, tokenizer, config, on_progress=on_progress)

    @property
    def engine(self) -> DynamicInferenceEngine:
        """The engine, for experts."""
        return self._assembly.engine

    @property
    def context(self) -> DynamicInferenceContext:
        """The engine's context, for experts."""
        return self.engine.context

    @property
    def controller(self) -> TextGenerationController:
        """The engine's controller, for experts."""
        return self.engine.controller

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None when there is none."""
        return self._assembly.tokenizer

    @property
    def config(self) -> ResolvedConfig:
        """The options without any "auto", and why each is as it is."""
        return self._assembly.config

    @property
    def default_sampling_params(self) -> SamplingParams:
        """What the checkpoint's generation_config.json recommends."""
        return self._assembly.default_sampling_params

    @property
    def kernels_name(self) -> str:
        """The kernel backend in use."""
        return self._assembly.kernels_name

    @property
    def load_phases(self) -> list[LoadPhase]:
        """How long each part of loading took."""
        return self._assembly.load_phases

    @property
    def trace(self) -> Trace | None:
        """The times of steps and operations so far; None without `profile`."""
        return self._assembly.trace

    @property
    def is_primary_rank(self) -> bool:
        """Whether this process takes prompts; always so when the engine runs in it."""
        return True


def _merge_config(inference_config: InferenceConfig | None, options: Mapping[str, Any]) -> InferenceConfig:
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
