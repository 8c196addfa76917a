"""A model of one's own behind kilotron's engines: first through Megatron's three methods, then through kilotron's one.

The model is a table of which byte follows which, counted in this very file.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kilotron import AbstractModelInferenceWrapper, MCoreEngine, SamplingParams, TextGenerationController
from kilotron.tokenization import ByteTokenizer

VOCAB_SIZE = 259


class BigramModel(nn.Module):
    """[batch, length] token ids -> [batch, length, vocabulary] logits."""

    def __init__(self, text: str) -> None:
        super().__init__()
        tokens = torch.tensor(ByteTokenizer().tokenize(text))
        counts = torch.full((VOCAB_SIZE, VOCAB_SIZE), 1e-3)
        counts.index_put_((tokens[:-1], tokens[1:]), torch.ones(len(tokens) - 1), accumulate=True)
        self.table = nn.Parameter(counts.log(), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table[tokens]


class WindowedWrapper:
    """Megatron's way, for any module: a whole sequence is prepared, and windows of it are run."""

    vocab_size = VOCAB_SIZE

    def __init__(self, model: BigramModel) -> None:
        self.model = model

    def prep_model_for_inference(self, prompts_tokens: Tensor) -> None:
        self.prompts_tokens = prompts_tokens

    def get_batch_for_context_window(self, context_start_position: int, context_end_position: int) -> list[Any]:
        return [self.prompts_tokens[:, context_start_position:context_end_position]]

    def run_one_forward_step(self, inference_input: list[Any]) -> Tensor:
        return self.model(*inference_input)


class BatchWrapper(AbstractModelInferenceWrapper):
    """kilotron's way: one method for the tokens of all rows, concatenated. This model needs to see only the last."""

    def __init__(self, model: BigramModel) -> None:
        self.model = model

    @property
    def vocab_size(self) -> int:
        return VOCAB_SIZE

    def run_one_forward_step(self, batch: Any) -> Tensor:
        return self.model(batch.token_ids[batch.logits_index])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-tokens-to-generate", type=int, default=60)
    args = parser.parse_args()

    model = BigramModel(Path(__file__).read_text(encoding="utf-8"))
    params = SamplingParams(num_tokens_to_generate=args.num_tokens_to_generate, seed=7, top_k=5)
    texts = []
    for wrapper in (WindowedWrapper(model), BatchWrapper(model)):
        controller = TextGenerationController(inference_wrapped_model=wrapper, tokenizer=ByteTokenizer())
        engine = MCoreEngine(text_generation_controller=controller, max_batch_size=2)
        results = engine.generate(prompts=["class ", "def ", "import "], common_inference_params=params)
        texts.append([result.prompt + result.generated_text for result in results])
        print(f"{type(wrapper).__name__}: {texts[-1]}")
    print("both ways give the same tokens" if texts[0] == texts[1] else "the two ways differ")


if __name__ == "__main__":
    main()
