"""Tokenizers of bare vocabulary files, without a configuration, as Megatron's trainings have them."""

import json
from pathlib import Path

from kilotron.errors import TokenizerError
from kilotron.tokenization.fast_tokenizer import FastTokenizer
from kilotron.tokenization.tokenizer_json import BYTE_LEVEL, added_tokens, parse_description, read_vocabulary

END_OF_TEXT = "<|endoftext|>"
MERGES_FILES, VOCABULARY_FILES, MODEL_FILES = "*merges.txt", "*vocab*.json", "*.model"


def load_vocabulary_files(folder: Path) -> FastTokenizer | None:
    """The tokenizer of a folder with the files of one and no more; None where other files say what they mean.

    Raises:
        TokenizerError: the files are there, and broken.
    """
    if (folder / "tokenizer_config.json").exists():
        return None
    merges, vocabularies, models = (
        sorted(folder.glob(pattern)) for pattern in (MERGES_FILES, VOCABULARY_FILES, MODEL_FILES)
    )
    if len(merges) == len(vocabularies) == 1:
        return _load_gpt2(vocabularies[0], merges[0])
    if len(models) == 1 and not vocabularies:
        return load_vocabulary_file(models[0])
    if len(vocabularies) == 1 and not merges:
        return load_vocabulary_file(vocabularies[0])
    return None


def load_vocabulary_file(file: Path) -> FastTokenizer | None:
    """The tokenizer of one file: a model of SentencePiece, or tiktoken's vocabulary as JSON; None for another kind.

    Raises:
        TokenizerError: it is broken.
    """
    if file.suffix == ".model":
        from kilotron.tokenization.sentencepiece_model import load_sentencepiece_model

        return load_sentencepiece_model(file)
    if file.suffix == ".json" and file.name != "tokenizer.json" and not any(file.parent.glob(MERGES_FILES)):
        from kilotron.tokenization.tiktoken_vocabulary import load_tiktoken_vocabulary

        return load_tiktoken_vocabulary(file)
    return None


def _load_gpt2(vocabulary_file: Path, merges_file: Path) -> FastTokenizer:
    """Byte-level BPE; its end of a document is `<|endoftext|>`."""
    try:
        vocabulary = json.loads(read_vocabulary(vocabulary_file))
        lines = read_vocabulary(merges_file).decode().split("\n")
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{vocabulary_file} or {merges_file.name} cannot be read: {error}") from error
    if not isinstance(vocabulary, dict):
        raise TokenizerError(f"{vocabulary_file} must map tokens to ids, not be a {type(vocabulary).__name__}")
    merges = [line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    end_id = vocabulary.get(END_OF_TEXT)
    description = {
        "added_tokens": added_tokens([] if end_id is None else [(end_id, END_OF_TEXT, True)]),
        "pre_tokenizer": BYTE_LEVEL,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }
    names = {} if end_id is None else {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    return FastTokenizer(parse_description(description, vocabulary_file), names)
