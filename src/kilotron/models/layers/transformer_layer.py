"""TransformerLayer and TransformerBlock: attention and MLP with their norms and residuals, and the stack of them."""

from typing import NamedTuple

from torch import Tensor, nn

from kilotron.kernels.interface import KernelBackend, Rotation
from kilotron.models.inference_batch import InferenceBatch
from kilotron.models.layers.attention import SelfAttention
from kilotron.models.layers.feed_forward import MLP
from kilotron.models.layers.layer import Layer
from kilotron.models.layers.mixture_of_experts import MixtureOfExperts
from kilotron.models.layers.normalization import make_norm
from kilotron.models.transformer_config import TransformerConfig


class Rotations(NamedTuple):
    """The rotations of one step; layers with a window use the local one. None where the model does not rotate."""

    everywhere: Rotation | None
    local: Rotation | None


class TransformerLayer(Layer):
    """hidden + attention, then + MLP, each normed before, after or both."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend, layer: int) -> None:
        super().__init__()
        norms_before = config.norm_placement in ("pre", "sandwich")
        self.norms_after = config.norm_placement in ("post", "sandwich")
        self.uses_local_rope = config.uses_local_rope(layer)
        self.input_layernorm = make_norm(config, kernels) if norms_before else nn.Identity()
        self.self_attention = SelfAttention(config, kernels, layer)
        self.post_self_attn_layernorm = make_norm(config, kernels) if self.norms_after else nn.Identity()
        self.pre_mlp_layernorm = make_norm(config, kernels) if norms_before else nn.Identity()
        self.mlp = MixtureOfExperts(config, kernels) if config.is_moe_layer(layer) else MLP(config, kernels)
        self.post_mlp_layernorm = make_norm(config, kernels) if self.norms_after else nn.Identity()

    def forward(self, hidden: Tensor, batch: InferenceBatch, rotations: Rotations) -> Tensor:
        """[T, hidden] -> [T, hidden]"""
        if self.norms_after:
            hidden = hidden + self.post_self_attn_layernorm(self.attend(hidden, batch, rotations))
            return hidden + self.post_mlp_layernorm(self.mlp(self.pre_mlp_layernorm(hidden)))
        hidden = self.attend(hidden, batch, rotations, residual=hidden)
        return self.mlp(self.pre_mlp_layernorm(hidden), residual=hidden)

    def attend(
        self, hidden: Tensor, batch: InferenceBatch, rotations: Rotations, residual: Tensor | None = None
    ) -> Tensor:
        """The attention of the layer's normed input; `residual` is added."""
        rotation = rotations.local if self.uses_local_rope else rotations.everywhere
        return self.self_attention(self.input_layernorm(hidden), batch, rotation, residual)


class ParallelTransformerLayer(TransformerLayer):
    """GPT-NeoX: attention and MLP both read the layer's input, and both are added to it."""

    def forward(self, hidden: Tensor, batch: InferenceBatch, rotations: Rotations) -> Tensor:
        """[T, hidden] -> [T, hidden]"""
        attended = self.attend(hidden, batch, rotations, residual=hidden)
        return self.mlp(self.pre_mlp_layernorm(hidden), residual=attended)


class TransformerBlock(Layer):
    """All layers, and the norm that follows the last."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend) -> None:
        super().__init__()
        layer_class = ParallelTransformerLayer if config.use_parallel_residual else TransformerLayer
        self.layers = nn.ModuleList(layer_class(config, kernels, layer) for layer in range(config.num_layers))
        self.final_layernorm = make_norm(config, kernels)

    def forward(self, hidden: Tensor, batch: InferenceBatch, rotations: Rotations) -> Tensor:
        """[T, hidden] -> [S + P, hidden]: normed, and only where the batch asks for logits."""
        for layer in self.layers:
            hidden = layer(hidden, batch, rotations)
        return self.final_layernorm(hidden[batch.logits_index])
