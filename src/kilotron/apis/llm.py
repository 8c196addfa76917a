"""MegatronLLM: the synchronous API. Runs the engine in the caller's thread, or asks a coordinator's."""

from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from kilotron.apis.base_llm import BaseLLM, Conversation, Params
from kilotron.apis.prompts import chat_prompts, scoring_params, with_encoder_prompts
from kilotron.config import InferenceConfig, KVMode, ServeConfig
from kilotron.engines.prompt_pairs import pair_prompt
from kilotron.engines.request_intake import Prompt
from kilotron.inference_request import InferenceRequest
from kilotron.sampling_params import SamplingParams
from kilotron.text_generation_controllers.stream_item import StreamItem
from kilotron.tokenization import Tokenizer

if TYPE_CHECKING:
    from kilotron.apis.coordinator_mode import CoordinatorMode
    from kilotron.apis.direct_mode import DirectMode
    from kilotron.models.gpt_model import GPTModel
    from kilotron.models.weight_loading import OnProgress

T = TypeVar("T")


class MegatronLLM(BaseLLM):
    """A model ready to generate. Several threads may share it; their requests run in the same steps.

    Args:
        model: checkpoint folder, hub id, a ready `GPTModel`, or None for the bundled tiny model.
        tokenizer: folder or ready tokenizer; None takes the one beside the checkpoint.
        inference_config: the engine's options.
        use_coordinator: run engines in processes of their own behind a coordinator, which pause, suspend and serve
            need. A ready model's engine runs in a thread of this process.
        coordinator_host: with a coordinator: listen there over tcp, encrypted, instead of inside this machine only.
        coordinator_port: the port; None takes a free one.
        data_parallel_size: with a coordinator: number of engines.
        on_progress: called with (bytes done, bytes in all) while weights load; not with a coordinator.
        **options: single options of `InferenceConfig`, instead of one.

    Raises:
        CheckpointError: the checkpoint is missing, broken or of an unknown architecture.
        ConfigError: an option is unknown, out of range or impossible here.

    Example:
        >>> with MegatronLLM() as llm:
        ...     llm.generate("Once upon a time")[0].generated_text
    """

    _mode: "DirectMode | CoordinatorMode"

    def _open_directly(
        self,
        model: "str | Path | GPTModel | None",
        tokenizer: str | Path | Tokenizer | None,
        config: InferenceConfig,
        on_progress: "OnProgress | None",
    ) -> "DirectMode":
        from kilotron.apis.direct_mode import DirectMode

        return DirectMode(model, tokenizer, config, on_progress)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None,
        sampling_params: Params = None,
        *,
        encoder_prompts: Prompt | Sequence[Prompt] | None = None,
        show_progress: bool | None = None,
    ) -> list[InferenceRequest]:
        """Continues one or many prompts.

        Args:
            prompts: a text, token ids, or a list of either. An encoder-decoder model's encoder reads them, unless there
                are `encoder_prompts`: then its decoder begins with them, and None stands for nothing.
            sampling_params: one for all prompts, or one for each.
            encoder_prompts: for encoder-decoder models: what the encoder reads, one for each prompt.
            show_progress: None shows a bar on a terminal when it takes longer than a moment.

        Returns:
            One request per prompt, in order, also for a single prompt. What fails while running has status FAILED and
            an `error`; with n > 1 all continuations are in `choices`.

        Raises:
            InvalidRequestError: a prompt or its params are wrong; nothing was started.
            EngineClosedError: it was shut down.
        """
        both = with_encoder_prompts(prompts, encoder_prompts)
        return self._mode.generate(both, sampling_params, show_progress=show_progress)

    def generate_stream(
        self,
        prompt: Prompt | None,
        sampling_params: SamplingParams | None = None,
        *,
        encoder_prompt: Prompt | None = None,
    ) -> Iterator[StreamItem]:
        """Yields one prompt's continuation as it grows; leaving the loop early aborts it. For prompts see `generate`.

        Raises:
            InvalidRequestError: the prompt or its params are wrong.
        """
        return self._mode.generate_stream(pair_prompt(prompt, encoder_prompt), sampling_params)

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

    def pause(self) -> None:
        """Stops all engines after the step at hand; requests are kept, and new ones wait. Idempotent.

        Raises:
            LifecycleError: there is no coordinator.
        """
        self._coordinator("pause").control("pause")

    def unpause(self) -> None:
        """Lets paused engines go on. Idempotent.

        Raises:
            LifecycleError: they are suspended, or there is no coordinator.
        """
        self._coordinator("unpause").control("unpause")

    def suspend(self, kv_mode: KVMode = "persist") -> int:
        """Gives memory of paused engines back; returns how many bytes.

        Args:
            kv_mode: persist keeps the KV cache, offload moves what is in use out of the way, recompute drops it all.

        Raises:
            LifecycleError: they are not paused, or there is no coordinator.
        """
        return self._coordinator("suspend").control("suspend", kv_mode)

    def resume(self) -> None:
        """Takes the memory again; the engines are paused then. Requests go on with the same tokens.

        Raises:
            LifecycleError: they are not suspended, or there is no coordinator.
        """
        self._coordinator("resume").control("resume")

    def serve(self, config: ServeConfig | None = None, *, blocking: bool = True) -> str:
        """Puts an OpenAI-compatible HTTP server in front of the engines.

        Args:
            config: where and how; the number of replicas in it does not count.
            blocking: return when the server has ended, by `shutdown` or Ctrl-C; otherwise as soon as it answers.

        Returns:
            Its URL.

        Raises:
            ConfigError: it cannot listen there, or it would be open to the world without a key.
            LifecycleError: there is no coordinator.
        """
        return self._coordinator("serve").serve(config or ServeConfig(), blocking=blocking)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Runs a coroutine in the event loop of the coordinator's client.

        Raises:
            LifecycleError: there is no coordinator.
        """
        return self._coordinator("submit").submit(coroutine)

    def run_sync(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The same, waiting for its result."""
        return self.submit(coroutine).result()

    def wait_for_shutdown(self) -> None:
        """Returns when the engines have ended.

        Raises:
            LifecycleError: there is no coordinator.
        """
        self._coordinator("wait_for_shutdown").wait()

    def shutdown(self) -> None:
        """Aborts what runs, ends processes of its own and gives all memory back. Idempotent."""
        self._mode.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
