"""Finds the architecture of a checkpoint by the name in its configuration, or says which ones there are."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from kilotron.checkpoints.encoder_decoder_weight_names import MEGATRON_T5, MEGATRON_T5_OWN_POSITIONS
from kilotron.checkpoints.megatron_args import KEPT_CONFIG, kept_object
from kilotron.checkpoints.megatron_weight_names import MEGATRON_GPT
from kilotron.errors import CheckpointError, UnknownArchitectureError
from kilotron.models.architectures import ARCHITECTURES, Architecture
from kilotron.models.config_fields import ConfigFields
from kilotron.models.encoder_decoder_architectures import ENCODER_DECODER_NAMES, find_encoder_decoder, tie_as_stored
from kilotron.models.kept_config import read_kept_config
from kilotron.models.megatron_config import SOURCE, read_megatron_gpt
from kilotron.models.megatron_t5_config import read_megatron_t5
from kilotron.models.transformer_config import TransformerConfig


def read_megatron(fields: ConfigFields) -> TransformerConfig:
    """A Megatron checkpoint's arguments, and what they keep of the config.json that it was converted from."""
    config = read_megatron_gpt(fields)
    return read_kept_config(fields.values, config) or config


def read_megatron_encoder_decoder(fields: ConfigFields) -> TransformerConfig:
    """The same for models with an encoder, whose arguments alone describe only those of Megatron itself.

    Raises:
        CheckpointError: the arguments contradict the config.json that they keep.
    """
    config = read_megatron_t5(fields)
    if KEPT_CONFIG not in fields:
        return config
    kept = read_kept_config(fields.values, config)
    if kept is None:
        raise CheckpointError(
            f"{SOURCE} contradict {KEPT_CONFIG}, the config.json that they keep. Megatron has no arguments for T5 and "
            "BART as Hugging Face has them, so that the model is not known: convert the original again"
        )
    return kept


# What the reader of Megatron checkpoints calls their models.
MEGATRON_ARCHITECTURES = {
    "MegatronGPT": Architecture(read_megatron, MEGATRON_GPT),
    "MegatronT5": Architecture(read_megatron_encoder_decoder, MEGATRON_T5),
}
# Encoder-decoders whose positions Megatron has no place for.
WITH_OWN_POSITIONS = ("BartForConditionalGeneration", "UMT5ForConditionalGeneration")
ALL_ARCHITECTURES = ARCHITECTURES | MEGATRON_ARCHITECTURES


def find_architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a configuration names first in `architectures`."""
    names = ConfigFields(config).texts("architectures")
    all_names = sorted([*ARCHITECTURES, *ENCODER_DECODER_NAMES])
    known = ", ".join(all_names)
    if not names:
        raise UnknownArchitectureError(f"config.json has no 'architectures'. Known: {known}")
    encoder_decoder = find_encoder_decoder(names[0], ConfigFields(config))
    if encoder_decoder is not None:
        return encoder_decoder
    if names[0] not in ALL_ARCHITECTURES:
        similar = difflib.get_close_matches(names[0], all_names, n=1)
        hint = f" Did you mean {similar[0]}?" if similar else ""
        raise UnknownArchitectureError(f"architecture {names[0]} is not implemented.{hint} Known: {known}")
    architecture = ALL_ARCHITECTURES[names[0]]
    if names[0] == "MegatronT5" and _first_kept_name(config) in WITH_OWN_POSITIONS:
        return architecture._replace(weight_names=MEGATRON_T5_OWN_POSITIONS)
    return architecture


def _first_kept_name(args: Mapping[str, Any]) -> str | None:
    """The architecture that a Megatron checkpoint was converted from."""
    kept = kept_object(args, KEPT_CONFIG)
    return None if kept is None else next(iter(ConfigFields(kept, KEPT_CONFIG).texts("architectures")), None)


def read_transformer_config(config: Mapping[str, Any], tensor_names: Collection[str] = ()) -> TransformerConfig:
    """A configuration's dictionary as a TransformerConfig; `tensor_names` are those of the checkpoint's tensors."""
    return tie_as_stored(find_architecture(config).read_config(ConfigFields(config)), tensor_names)
