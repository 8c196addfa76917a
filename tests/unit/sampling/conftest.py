"""One thread for every test here (the machine is shared, and the tensors are small), and both backends."""

from collections.abc import Iterator

import pytest
import torch

from kilotron.errors import KernelError
from kilotron.kernels.interface import KernelBackend
from kilotron.kernels.registry import choose_backend


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=["reference", "cpu"])
def kernels(request: pytest.FixtureRequest) -> KernelBackend:
    """Each backend that runs on this machine."""
    try:
        return choose_backend(request.param, "cpu").backend
    except KernelError as error:
        pytest.skip(str(error))
