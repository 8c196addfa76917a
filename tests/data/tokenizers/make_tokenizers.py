"""Makes the vocabularies in this folder with the projects that own their formats, and what these make of some texts.

python make_tokenizers.py, with sentencepiece 0.2.3 and tiktoken 0.14.0 installed. The results are in version control.
"""

import base64
import json
from pathlib import Path

import sentencepiece
import tiktoken
from tiktoken._educational import bpe_train

HERE = Path(__file__).parent
CORPUS = HERE.parents[2] / "docs" / "architecture.md"
TEXTS = [
    "Hello world",
    "  two  blanks  ",
    "A running request goes first.\nThen: waiting",
    "naïve café ünïcode 漢字",
    "",
    " ",
    "a<user>b <user> c",
    "x = 1;\t\ty",
    "The scheduler (see `scheduling/scheduler.py`) decides 1234567.",
    "🙂 emoji",
    "<s>hello</s>",
]
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NUM_SPECIAL_TOKENS = 1000  # Megatron's


def make_sentencepiece(name: str, **options: object) -> list[list[int]]:
    sentencepiece.SentencePieceTrainer.train(
        input=str(CORPUS),
        model_prefix=str(HERE / name),
        vocab_size=340,
        normalization_rule_name="identity",
        minloglevel=2,
        **options,
    )
    (HERE / f"{name}.vocab").unlink()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(HERE / f"{name}.model"))
    return [processor.encode(text) for text in TEXTS]


def make_tiktoken() -> list[list[int]]:
    text = CORPUS.read_text(encoding="utf-8")[:8000]
    ranks = bpe_train(data=text, vocab_size=300, pat_str=PATTERN, visualise=None)
    entries = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": token.decode("utf-8", "replace")}
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
    ]
    (HERE / "tiktoken.vocab.json").write_text(json.dumps(entries, indent=0) + "\n")
    shifted = {token: rank + NUM_SPECIAL_TOKENS for token, rank in ranks.items()}
    encoding = tiktoken.Encoding("small", pat_str=PATTERN, mergeable_ranks=shifted, special_tokens={})
    return [encoding.encode_ordinary(text) for text in TEXTS]


def main() -> None:
    ids = {
        "bpe.model": make_sentencepiece(
            "bpe",
            model_type="bpe",
            byte_fallback=True,
            remove_extra_whitespaces=False,
            user_defined_symbols=["<user>"],
        ),
        "unigram.model": make_sentencepiece("unigram", model_type="unigram", pad_id=3),
        "tiktoken.vocab.json": make_tiktoken(),
    }
    (HERE / "expected.json").write_text(json.dumps({"texts": TEXTS, "ids": ids}) + "\n")


if __name__ == "__main__":
    main()
