"""TransformerLayer and TransformerBlock: attention and MLP with their norms and residuals, and the stack of them."""

from collections.abc import Callable
from itertools import groupby
from typing import Any, NamedTuple

from torch import Tensor, nn

from kilotron.kernels.interface import DecoderLayer, KernelBackend, PackedLayers, Rotation
from kilotron.models.inference_batch import InferenceBatch
from kilotron.models.layers.attention import SelfAttention
from kilotron.models.layers.feed_forward import MLP
from kilotron.models.layers.latent_attention import LatentSelfAttention
from kilotron.models.layers.layer import Layer
from kilotron.models.layers.mixture_of_experts import MixtureOfExperts
from kilotron.models.layers.normalization import make_norm
from kilotron.models.transformer_config import TransformerConfig


class Rotations(NamedTuple):
    """The rotations of one step; layers with a window use the local one. None where the model does not rotate."""

    everywhere: Rotation | None
    local: Rotation | None
    nowhere: None = None
    """That of layers which leave their queries and keys as they are in a model that rotates others."""


class TransformerLayer(Layer):
    """hidden + attention, then + MLP, each normed before, after or both."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend, layer: int) -> None:
        super().__init__()
        norms_before = config.norm_placement in ("pre", "sandwich")
        self.norms_after = config.norm_placement in ("post", "sandwich")
        self.rotation = Rotations._fields.index(_rotation_of(config, layer))
        self.input_layernorm: Any = make_norm(config, kernels) if norms_before else nn.Identity()
        attention_class = SelfAttention if config.latent_attention is None else LatentSelfAttention
        self.self_attention = attention_class(config, kernels, layer)
        self.post_self_attn_layernorm = make_norm(config, kernels) if self.norms_after else nn.Identity()
        self.pre_mlp_layernorm: Any = make_norm(config, kernels) if norms_before else nn.Identity()
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
        rotation = rotations[self.rotation]
        return self.self_attention(self.input_layernorm(hidden), batch, rotation, residual)

    def describe(self) -> DecoderLayer | None:
        """The packed layer as a plain value, or None where it is of another form than that value has."""
        attention, mlp = self.self_attention, self.mlp
        if self.norms_after or not isinstance(mlp, MLP):
            return None
        if not isinstance(attention, SelfAttention) or attention.norms_outside_kernel:
            return None
        return DecoderLayer(
            input_norm=self.input_layernorm.describe(),
            linear_qkv=attention.linear_qkv.packed,
            head_norms=attention.head_norms(),
            rotation=self.rotation,
            kv_layer=attention.layer,
            attention=attention.options,
            linear_proj=attention.linear_proj.packed,
            mlp_norm=self.pre_mlp_layernorm.describe(),
            linear_fc1=mlp.linear_fc1.packed,
            linear_fc2=mlp.linear_fc2.packed,
        )


def _rotation_of(config: TransformerConfig, layer: int) -> str:
    """The name of a layer's rotation among `Rotations`."""
    if not config.uses_rope(layer):
        return "nowhere"
    return "local" if config.uses_local_rope(layer) else "everywhere"


class ParallelTransformerLayer(TransformerLayer):
    """GPT-NeoX: attention and MLP both read the layer's input, and both are added to it."""

    def forward(self, hidden: Tensor, batch: InferenceBatch, rotations: Rotations) -> Tensor:
        """[T, hidden] -> [T, hidden]"""
        attended = self.attend(hidden, batch, rotations, residual=hidden)
        return self.mlp(self.pre_mlp_layernorm(hidden), residual=attended)

    def describe(self) -> None:
        """None: what it adds to the MLP's output is not what the MLP read."""


class LayersAsOne:
    """Layers that the kernels run in one call."""

    def __init__(self, packed: PackedLayers) -> None:
        self.packed = packed

    def __call__(self, hidden: Tensor, batch: InferenceBatch, rotations: Rotations) -> Tensor:
        """[T, hidden] -> [T, hidden]"""
        return self.packed.run(hidden, rotations, batch.kv_layers, batch.kv_slots, batch.attention)


class TransformerBlock(Layer):
    """All layers, and the norm that follows the last."""

    def __init__(self, config: TransformerConfig, kernels: KernelBackend) -> None:
        super().__init__()
        self.kernels = kernels
        layer_class = ParallelTransformerLayer if config.use_parallel_residual else TransformerLayer
        self.layers = nn.ModuleList(layer_class(config, kernels, layer) for layer in range(config.num_layers))
        self.final_layernorm = make_norm(config, kernels)
        self.parts: list[Callable[[Tensor, InferenceBatch, Rotations], Tensor]] = []
        self.unpack()

    def forward(self, hidden: Tensor, batch: InferenceBatch, rotations: Rotations) -> Tensor:
        """[T, hidden] -> [S + P, hidden]: normed, and only where the batch asks for logits."""
        for part in self.parts:
            hidden = part(hidden, batch, rotations)
        return self.final_layernorm(hidden[batch.logits_index])

    def pack(self) -> None:
        """Hands layers that follow each other to the kernels as one, once all of their weights are packed."""
        layers: list[Any] = list(self.layers)
        self.parts = []
        described = ((layer, layer.describe()) for layer in layers)
        for is_described, pairs in groupby(described, lambda pair: pair[1] is not None):
            modules, values = zip(*pairs, strict=True)
            packed = self.kernels.pack_layers(values) if is_described else None
            self.parts += modules if packed is None else (LayersAsOne(packed),)

    def unpack(self) -> None:
        """Lets layers run by themselves again: new weights are about to come, and the old ones must go."""
        self.parts = list(self.layers)
