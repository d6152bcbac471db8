"""A model folder's tokenizer as the JSON of a fast one: as it is saved, or made of the older files."""

from __future__ import annotations

from pathlib import Path

from codemill.errors import ModelError

__all__ = ["has_tokenizer", "read_tokenizer", "tokenizer_files"]

_FAST = "tokenizer.json"
_BPE = ("vocab.json", "merges.txt")
_WORDPIECE = ("vocab.txt",)
_SETTINGS = ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
"""What the older formats keep beside their vocabulary."""


def has_tokenizer(folder: Path) -> bool:
    """Whether there are files that a tokenizer can be read from."""
    return any(_has(folder, names) for names in ((_FAST,), _BPE, _WORDPIECE))


def _has(folder: Path, names: tuple[str, ...]) -> bool:
    return all((folder / name).is_file() for name in names)


def tokenizer_files(folder: Path) -> tuple[str, ...]:
    """The names of the files that `read_tokenizer` would read, some of which may be missing."""
    if _has(folder, (_FAST,)) or not has_tokenizer(folder):
        return (_FAST,)
    return (*(_BPE if _has(folder, _BPE) else _WORDPIECE), *_SETTINGS)


def read_tokenizer(folder: Path, rows: int) -> str:
    """The tokenizer's JSON, if it can be used with a table of `rows`. Raises ModelError."""
    from tokenizers import Tokenizer

    path = folder / tokenizer_files(folder)[0]
    try:
        text = path.read_text(encoding="utf-8") if path.name == _FAST else _converted(folder)
        vocabulary = Tokenizer.from_str(text).get_vocab(with_added_tokens=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    # tokenizers raises nothing more precise than Exception, and a panic of its own, which is none
    except BaseException as error:
        raise ModelError(f"{path} is not a tokenizer: {error}") from error
    highest = max(vocabulary.values(), default=-1)
    if not 0 <= highest < rows:
        raise ModelError(
            f"{path} has token ids up to {highest}, the model's table {rows:,} rows: "
            "one of them is another model's"
        )
    return text


def _converted(folder: Path) -> str:
    """The older files as the fast tokenizer of their kind, which their class names, not the config."""
    import transformers

    kind = (
        transformers.RobertaTokenizerFast if _has(folder, _BPE) else transformers.BertTokenizerFast
    )
    verbosity = transformers.logging.get_verbosity()
    # it warns where the folder names another class: CodeT5 is a T5 with RoBERTa's tokenizer
    transformers.logging.set_verbosity_error()
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
    finally:
        transformers.logging.set_verbosity(verbosity)
    text: str = tokenizer.backend_tokenizer.to_str()
    return text
