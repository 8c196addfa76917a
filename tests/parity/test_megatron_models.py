"""A model in the form of a Megatron checkpoint gives the logits of the same model in transformers."""

from collections.abc import Iterator

import pytest
import torch

from parity.megatron_twins import TWINS
from parity.model_runner import ModelRunner
from parity.tiny_models import VOCAB_SIZE, make_random_model
from unit.kernels.cpu_backends import ISAS

TOLERANCE = 1e-4  # of the largest logit, in float32
KERNELS = ("cpu", "reference") if ISAS else ("reference",)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", TWINS)
def test_a_model_in_megatrons_form_gives_the_logits_of_transformers(name: str, kernels: str) -> None:
    twin = TWINS[name]
    model = make_random_model(twin.case, name)
    runner = ModelRunner.of(twin.convert(model), kernels=kernels)
    tokens = torch.randint(3, VOCAB_SIZE, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0]
    logits = runner.run_in_chunks(0, tokens, [9, 1, 6])
    error = (logits - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE, f"relative error {error:.2e}"
