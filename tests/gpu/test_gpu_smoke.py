"""The first thing to run on a GPU host: does the device compute what the CPU computes?"""

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU: nothing was tested on a device"),
]


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_matmul_on_the_gpu_agrees_with_the_cpu(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, 256, generator=generator)
    right = torch.randn(256, 128, generator=generator)

    on_gpu = (left.to("cuda") @ right.to("cuda")).cpu()

    torch.testing.assert_close(on_gpu, left @ right, rtol=1e-4, atol=1e-4)
