"""A token's rotation depends on its own position alone."""

import torch

from kilotron.models.layers.rotary_embedding import RotaryEmbedding, make_local_rotary_embedding, make_rotary_embedding
from kilotron.models.transformer_config import RopeScaling, RopeScalingKind, TransformerConfig


def rotary(kind: RopeScalingKind | None, max_sequence_length: int = 1000, **fields: object) -> RotaryEmbedding:
    scaling = RopeScaling(
        kind=kind or "linear",
        factor=4.0,
        original_max_position_embeddings=32,
        short_factor=(1.0,) * 4,
        long_factor=(2.0,) * 4,
    )
    config = TransformerConfig(
        num_layers=1,
        hidden_size=32,
        ffn_hidden_size=32,
        num_attention_heads=4,
        num_query_groups=4,
        kv_channels=8,
        vocab_size=16,
        max_position_embeddings=128,
        rope_scaling=scaling if kind else None,
        local_rotary_base=100.0,
    )
    if fields.get("local"):
        local = make_local_rotary_embedding(config, torch.device("cpu"))
        assert local is not None
        return local
    return make_rotary_embedding(config, torch.device("cpu"), max_sequence_length)


def test_dynamic_rotation_is_the_same_alone_and_among_others() -> None:
    embedding = rotary("dynamic")
    together = embedding.rotation_at(torch.arange(100))
    for position in (0, 31, 32, 99):
        alone = embedding.rotation_at(torch.tensor([position]))
        assert torch.equal(alone.cos[0], together.cos[position])
        assert torch.equal(alone.sin[0], together.sin[position])


def test_dynamic_rotation_is_the_plain_one_up_to_the_original_length() -> None:
    plain, dynamic = rotary(None).rotation_at(torch.arange(64)), rotary("dynamic").rotation_at(torch.arange(64))
    assert torch.equal(plain.cos[:32], dynamic.cos[:32])
    assert not torch.allclose(plain.cos[32:], dynamic.cos[32:], atol=1e-3)


def test_longrope_is_chosen_once_by_the_longest_sequence() -> None:
    short, long = rotary("longrope", 32).frequencies, rotary("longrope", 33).frequencies
    assert torch.equal(short, 2 * long)


def test_linear_scaling_divides_positions() -> None:
    plain, linear = rotary(None), rotary("linear")
    torch.testing.assert_close(
        plain.rotation_at(torch.tensor([5])).cos, linear.rotation_at(torch.tensor([20])).cos, rtol=1e-5, atol=1e-6
    )


def test_local_rotation_has_its_own_base_and_no_scaling() -> None:
    expected = 100.0 ** -(torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(rotary("linear", local=True).frequencies, expected)
