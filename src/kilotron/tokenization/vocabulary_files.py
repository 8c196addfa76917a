"""Tokenizers of folders with bare vocabulary files and no configuration, as Megatron's trainings have them."""

from pathlib import Path

from kilotron.errors import TokenizerError
from kilotron.tokenization.fast_tokenizer import FastTokenizer
from kilotron.tokenization.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"


def load_vocabulary_files(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder that has GPT-2's files and no more; None where other files say what they mean.

    Raises:
        TokenizerError: the files are there, and broken.
    """
    if (folder / "tokenizer_config.json").exists():
        return None
    merges, vocabularies = sorted(folder.glob("*merges.txt")), sorted(folder.glob("*vocab*.json"))
    if len(merges) == len(vocabularies) == 1:
        return _load_gpt2(vocabularies[0], merges[0])
    return None


def _load_gpt2(vocabulary: Path, merges: Path) -> FastTokenizer:
    """Byte-level BPE; its end of a document is `<|endoftext|>`."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{vocabulary} and {merges.name} cannot be read by tokenizers: {error}") from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special_tokens = {}
    if backend.token_to_id(END_OF_TEXT) is not None:
        backend.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
        special_tokens = {"eos_token": END_OF_TEXT, "bos_token": END_OF_TEXT}
    return FastTokenizer(backend, special_tokens)
