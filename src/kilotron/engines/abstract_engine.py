"""AbstractEngine: what an API needs of an engine."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from kilotron.inference_request import InferenceRequest
from kilotron.sampling_params import SamplingParams


class AbstractEngine(ABC):
    """Takes prompts and gives finished requests. Subclass it to put another engine behind kilotron's APIs."""

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[InferenceRequest]:
        """Generates for all prompts and returns one request per prompt, in order."""
