"""AbstractModelInferenceWrapper: what a controller needs of a model, whatever the model is."""

from abc import ABC, abstractmethod

from torch import Tensor

from kilotron.models.inference_batch import InferenceBatch


class AbstractModelInferenceWrapper(ABC):
    """Runs one step of a model. Subclass it to serve a model of your own."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Columns of the logits that are real tokens; any beyond are padding."""

    def prep_model_for_inference(self) -> None:  # noqa: B027 - an optional hook of Megatron's
        """Called once before the first step."""

    @abstractmethod
    def run_one_forward_step(self, batch: InferenceBatch) -> Tensor:
        """Computes the step and writes its keys and values.

        Returns:
            Logits [len(batch.logits_index), padded vocabulary] float32, on the batch's device; may be overwritten.
        """
