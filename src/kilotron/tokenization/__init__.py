"""Text to token ids and back: tokenizers, streaming detokenizers, stop strings and chat templates.

Knows nothing of models, requests or engines. `tokenizers`, `jinja2` and `transformers` are imported on first use.
"""

from kilotron.tokenization.byte_tokenizer import ByteTokenizer
from kilotron.tokenization.chat_template import ChatTemplate
from kilotron.tokenization.fast_tokenizer import FastTokenizer
from kilotron.tokenization.incremental_detokenizer import IncrementalDetokenizer
from kilotron.tokenization.loading import load_tokenizer
from kilotron.tokenization.null_tokenizer import NullTokenizer
from kilotron.tokenization.stop_strings import StopStringMatcher
from kilotron.tokenization.tokenizer import Tokenizer

__all__ = [
    "ByteTokenizer",
    "ChatTemplate",
    "FastTokenizer",
    "IncrementalDetokenizer",
    "NullTokenizer",
    "StopStringMatcher",
    "Tokenizer",
    "load_tokenizer",
]
