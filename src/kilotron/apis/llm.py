"""MegatronLLM: the synchronous API. Runs the engine in the caller's thread."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from kilotron.apis.base_llm import BaseLLM, Conversation, Params
from kilotron.apis.progress import RequestProgressBar
from kilotron.apis.prompts import as_prompts, chat_prompts, scoring_params
from kilotron.engines.request_intake import Prompt
from kilotron.inference_request import InferenceRequest
from kilotron.sampling_params import SamplingParams
from kilotron.text_generation_controllers.stream_item import StreamItem


class MegatronLLM(BaseLLM):
    """A model ready to generate. Several threads may share it; their requests run in the same steps.

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
