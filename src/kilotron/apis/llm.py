"""MegatronLLM: the synchronous API. Runs the engine in the caller's thread."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kilotron.apis.assembly import assemble
from kilotron.apis.progress import RequestProgressBar
from kilotron.apis.prompts import as_prompts, chat_prompts, scoring_params
from kilotron.config import InferenceConfig, ResolvedConfig
from kilotron.contexts.dynamic_context import DynamicInferenceContext
from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.engines.request_intake import Prompt
from kilotron.errors import ConfigError
from kilotron.inference_request import InferenceRequest
from kilotron.models.gpt_model import GPTModel
from kilotron.models.weight_loading import OnProgress
from kilotron.sampling_params import SamplingParams
from kilotron.text_generation_controllers.generation_progress import StreamItem
from kilotron.text_generation_controllers.text_generation_controller import TextGenerationController
from kilotron.tokenization import Tokenizer

Params = SamplingParams | Sequence[SamplingParams] | None
Conversation = Sequence[Mapping[str, object]]


class MegatronLLM:
    """A model ready to generate.

    Args:
        model: checkpoint folder, hub id, a ready `GPTModel`, or None for the bundled tiny model.
        tokenizer: folder or ready tokenizer; None takes the one beside the checkpoint.
        inference_config: the engine's options.
        on_progress: called with (bytes done, bytes in all) while weights load.
        **options: single options of `InferenceConfig`, instead of one.

    Raises:
        CheckpointError: the checkpoint is missing, broken or of an unknown architecture.
        ConfigError: an option is unknown, out of range or impossible here.

    Example:
        >>> with MegatronLLM() as llm:
        ...     llm.generate("Once upon a time")[0].generated_text
    """

    def __init__(
        self,
        model: str | Path | GPTModel | None = None,
        tokenizer: str | Path | Tokenizer | None = None,
        *,
        inference_config: InferenceConfig | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> None:
        config = merge_config(inference_config, options)
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
    def is_primary_rank(self) -> bool:
        """Whether this process takes prompts; always so when the engine runs in it."""
        return True

    def generate(
        self, prompts: Prompt | Sequence[Prompt], sampling_params: Params = None, *, show_progress: bool | None = None
    ) -> list[InferenceRequest]:
        """Continues one or many prompts.

        Args:
            prompts: a text, token ids, or a list of either.
            sampling_params: one for all prompts, or one for each.
            show_progress: None shows a bar on a terminal when it takes longer than a moment.

        Returns:
            One request per prompt, in order, also for a single prompt. What fails while running has status FAILED and
            an `error`; with n > 1 all continuations are in `choices`.

        Raises:
            InvalidRequestError: a prompt or its params are wrong; nothing was started.
        """
        with RequestProgressBar(self.engine, show_progress) as bar:
            return self.engine.generate(as_prompts(prompts), sampling_params, on_step=bar.update)

    def generate_stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[StreamItem]:
        """Yields one prompt's continuation as it grows; leaving the loop early aborts it.

        Raises:
            InvalidRequestError: the prompt or its params are wrong.
        """
        return self.engine.generate_stream(prompt, sampling_params)

    def chat(
        self, messages: Conversation | Sequence[Conversation], sampling_params: Params = None, **variables: object
    ) -> list[InferenceRequest]:
        """Answers one conversation or many; `variables` go to the chat template.

        Raises:
            ChatTemplateError: the model has no chat template, or it refuses the messages.
        """
        return self.generate(chat_prompts(self.tokenizer, messages, variables), sampling_params)

    def chat_stream(
        self, messages: Conversation, sampling_params: SamplingParams | None = None, **variables: object
    ) -> Iterator[StreamItem]:
        """Yields the answer to one conversation as it grows."""
        return self.generate_stream(chat_prompts(self.tokenizer, messages, variables)[0], sampling_params)

    def score(self, prompts: Prompt | Sequence[Prompt], *, top_n_logprobs: int = 0) -> list[InferenceRequest]:
        """Log-probabilities of the prompts' own tokens, in `prompt_log_probs` (one fewer than tokens).

        Raises:
            InvalidRequestError: a prompt is wrong.
        """
        return self.generate(prompts, scoring_params(top_n_logprobs))

    def shutdown(self) -> None:
        """Aborts what runs and gives the engine's memory back. Idempotent."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()


def merge_config(inference_config: InferenceConfig | None, options: Mapping[str, Any]) -> InferenceConfig:
    """The engine's options from either a config or single ones.

    Raises:
        ConfigError: both are given, or an option is unknown or out of range.
    """
    if inference_config is None:
        return InferenceConfig.from_dict(options)
    if options:
        raise ConfigError(f"give inference_config or single options ({', '.join(options)}), not both")
    return inference_config
