"""Small whole numbers out of 32-bit words, the lowest bits first.

Words are looked at as bytes, so the machine has to be a little-endian one, as safetensors files are.
"""

import torch
from torch import Tensor


def num_words(count: int, bits: int) -> int:
    """Words that hold so many numbers."""
    return -(-count * bits // 32)


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """[n, words] int32 -> the first `count` numbers of each row, [n, count] uint8 within [0, 2 ** bits).

    `bits` is 4 or 8.
    """
    packed = words.contiguous().view(torch.uint8)
    if bits == 8:
        return packed[:, :count].contiguous()
    numbers = torch.empty((*packed.shape, 2), dtype=torch.uint8, device=words.device)
    torch.bitwise_and(packed, 15, out=numbers[..., 0])
    torch.bitwise_right_shift(packed, 4, out=numbers[..., 1])
    return numbers.flatten(1)[:, :count].contiguous()
