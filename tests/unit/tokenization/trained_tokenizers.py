# ruff: noqa: RUF001  texts in several scripts
"""Small tokenizers of the kinds that models use, trained on the spot. Shared by unit and parity tests."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Hello world, hello again!",
    "def main():\n    print('hello, world')\n\n\treturn 0  # done",
    "Die Wärme der Größe, naïve café; 12345 and 67890",
    "你好，世界。今天天气很好。こんにちは世界",
    "emoji 🎉🚀 family 👩‍👩‍👧‍👦 flags 🇩🇪",
] * 4

TEXTS = [
    "",
    " ",
    "Hello world",
    "  leading and  double blanks ",
    "line\n\nbreaks\r\n\ttabs",
    "你好，世界 mixed with English",
    "🎉🚀👩‍👩‍👧‍👦 é ü ﬁ",
    "<s>Hello</s> world</s>",
    "text with <|im_end|> inside<|im_end|>",
    "rare: ꙮ ᚠ \x00 end",
    "▁ is a real character",
]

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>"]
KINDS = ["byte_level", "byte_level_with_template", "unigram", "llama", "mistral", "word_piece"]


@cache
def trained(kind: str) -> str:
    """The tokenizer.json of one kind."""
    return {
        "byte_level": _byte_level,
        "byte_level_with_template": _byte_level_with_template,
        "unigram": _unigram,
        "llama": _llama,
        "mistral": _mistral,
        "word_piece": _word_piece,
    }[kind]().to_str()


def write_folder(folder: Path, kind: str, config: dict[str, Any] | None = None, **files: str) -> Path:
    """A model folder with this tokenizer; `files` are further files by name, with `__` for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(trained(kind), encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def token_names(**more: Any) -> dict[str, Any]:
    """A tokenizer_config.json as today's models have it."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **names, **more}


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=SPECIAL_TOKENS
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return tokenizer


def _byte_level_with_template() -> Tokenizer:
    tokenizer = _byte_level()
    tokenizer.post_processor = _begin_with_bos()
    return tokenizer


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL_TOKENS, unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return tokenizer


def _sentencepiece_like_bpe(decoder_steps: list[Any]) -> Tokenizer:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trained_on = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained_on.pre_tokenizer = pre_tokenizers.Metaspace()
    characters = ["▁", *sorted({character for character in "".join(CORPUS[:3]) if not character.isspace()})]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*SPECIAL_TOKENS, *bytes_], initial_alphabet=characters, limit_alphabet=90
    )
    trained_on.train_from_iterator(CORPUS[:3], trainer)
    description = json.loads(trained_on.to_str())
    # Bytes are ordinary pieces, as in a converted SentencePiece model.
    description["added_tokens"] = [token for token in description["added_tokens"] if token["id"] < 4]
    tokenizer = Tokenizer.from_str(json.dumps(description))
    tokenizer.decoder = decoders.Sequence(decoder_steps)
    tokenizer.post_processor = _begin_with_bos()
    return tokenizer


def _llama() -> Tokenizer:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer = _sentencepiece_like_bpe(steps)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def _mistral() -> Tokenizer:
    """The same vocabulary, with blanks marked by a pre-tokenizer and none stripped from the text."""
    tokenizer = _sentencepiece_like_bpe([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    return tokenizer


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL_TOKENS)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _begin_with_bos() -> processors.PostProcessor:
    return processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
