"""GPTInferenceWrapper: decoder-only models."""

from torch import Tensor

from kilotron.model_inference_wrappers.abstract_model_inference_wrapper import AbstractModelInferenceWrapper
from kilotron.models.gpt_model import GPTModel
from kilotron.models.inference_batch import InferenceBatch


class GPTInferenceWrapper(AbstractModelInferenceWrapper):
    """One forward step of a `GPTModel`."""

    def __init__(self, model: GPTModel) -> None:
        self.model = model

    @property
    def vocab_size(self) -> int:
        """Columns of the logits that are real tokens."""
        return self.model.config.vocab_size

    def prep_model_for_inference(self) -> None:
        """Switches training-only behaviour off."""
        self.model.eval()

    def run_one_forward_step(self, batch: InferenceBatch) -> Tensor:
        """Hidden states through all layers, logits for `batch.logits_index` only."""
        return self.model.compute_logits(self.model(batch))
