"""Decoders that complete code, as they are published: weights for export, a tokenizer, and what a prompt begins with.

Weights of a folder are read a tensor at a time, so that a large model is never held as a whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codemill.compress.models.decoders import check_gguf, gguf_in, load_whole
from codemill.compress.models.gguf_tokenizer import read_gguf_tokenizer
from codemill.compress.models.shape import read_config, weight_files
from codemill.compress.models.tokenizer_files import has_tokenizer, read_tokenizer
from codemill.errors import ModelError
from codemill.export.decoder.bundle import Prompting
from codemill.export.decoder.families import FAMILIES, of_module, weights_of
from codemill.export.decoder.shape import DecoderWeights

__all__ = ["CausalModel", "begin_of", "open_causal", "pieces_of", "prompting_of"]

# prefix, suffix, middle
_FILLS = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)
_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
_SHORTEST = 16
"""Tokens of a piece that is worth its run."""
_ENDS = (
    *("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "</s>", "<EOT>", "▁<EOT>"),
    *("<file_sep>", "<|file_sep|>", "<repo_name>", "<|repo_name|>", "<｜end▁of▁sentence｜>"),
)
"""Marks that stand between files of code: what follows is another text."""


@dataclass
class CausalModel:
    """A decoder whose weights are read when asked for."""

    weights: DecoderWeights
    tokenizer_json: str
    prompting: Prompting


def open_causal(folder: Path) -> CausalModel:
    """Open a folder of transformers with a tokenizer, or of one GGUF file (dequantized to float32).

    Raises ModelError for an unsupported family, missing or damaged files.
    """
    packed = gguf_in(folder)
    if packed is not None:
        check_gguf(packed)
        tokenizer = read_gguf_tokenizer(packed)
        model = load_whole(folder)
        prompting = prompting_of(tokenizer.json, tokenizer.begin, tokenizer.end)
        return CausalModel(of_module(model), tokenizer.json, prompting)
    from tokenizers import Tokenizer

    config = _config(folder)
    if not has_tokenizer(folder):
        raise ModelError(
            f"{folder} has no tokenizer.json; save the model's fast tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
        )
    text = read_tokenizer(folder, config.vocab_size)
    highest = max(Tokenizer.from_str(text).get_vocab().values(), default=-1)
    if highest >= config.vocab_size:
        raise ModelError(
            f"the tokenizer in {folder} has token ids up to {highest}, the model's table {config.vocab_size:,} rows; "
            "enlarge the table (resize_token_embeddings) or leave the added tokens out"
        )
    tensors, names = _tensors(folder)
    weights = weights_of(config, tensors)
    _check_layers(folder, names, weights.shape.layers)
    rows = len(weights.words())
    if rows != config.vocab_size:
        raise ModelError(
            f"config.json in {folder} says vocab_size {config.vocab_size:,}, the table has {rows:,} rows"
        )
    # -1, or the id of another tokenizer, is no id here
    ends = tuple(number for number in _end(folder) if 0 <= number < config.vocab_size)
    return CausalModel(weights, text, prompting_of(text, begin_of(text), ends))


def prompting_of(tokenizer_json: str, begin: tuple[int, ...], end: tuple[int, ...]) -> Prompting:
    """What a prompt is made of: the marks that this tokenizer has, of those that models of code have."""
    from tokenizers import Tokenizer

    find: Callable[[str], int | None] = Tokenizer.from_str(tokenizer_json).token_to_id
    ends = [*end, *(number for name in _ENDS if (number := find(name)) is not None)]
    fills = [tuple(map(find, names)) for names in _FILLS]
    fill: Any = next((found for found in fills if None not in found), None)
    return Prompting(begin, tuple(sorted(set(ends))), fill)


def pieces_of(
    texts: Sequence[str], tokenizer_json: str, tokens: int, begin: Sequence[int] = ()
) -> list[np.ndarray]:
    """Token ids of each text behind `begin`, as a prompt has them, cut; those that are too short are left out."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    found = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    cut = [np.asarray([*begin, *item.ids][:tokens], dtype=np.int32) for item in found]
    return [item for item in cut if len(item) >= _SHORTEST]


def _config(folder: Path) -> Any:
    import transformers

    family = read_config(folder).get("model_type")
    if family not in FAMILIES:
        raise ModelError(
            f"{folder} holds a model of type {family!r}; completion knows {', '.join(FAMILIES)}"
        )
    try:
        return transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    # odd values end in errors of every kind there
    except Exception as error:
        why = " ".join(str(error).split())[:500]
        raise ModelError(f"config.json in {folder} cannot be read: {why}") from error


def _check_layers(folder: Path, names: Iterable[str], layers: int) -> None:
    """ModelError where weights of more layers are there than the config has: half a model would be exported."""
    numbers = {int(found[1]) for name in names if (found := _LAYER.search(name))}
    if numbers and max(numbers) >= layers:
        raise ModelError(
            f"config.json in {folder} says {layers} layers, and its weights have {max(numbers) + 1}; correct the "
            "number, or save the model anew (save_pretrained)"
        )


def _tensors(folder: Path) -> tuple[Callable[[str], np.ndarray | None], Collection[str]]:
    """Tensors of the folder's weight files by name, each read when asked for, and all names; safetensors if any."""
    paths = weight_files(folder)
    if not paths:
        raise ModelError(
            f"the model in {folder} cannot be loaded: it has neither model.safetensors nor pytorch_model.bin"
        )
    where: dict[str, Path] = {}
    opened = {path: _open(path) for path in paths}
    for path in paths:
        with opened[path]() as file:
            where.update(dict.fromkeys(file.keys(), path))

    def tensor(name: str) -> np.ndarray | None:
        # checkpoints of a stack alone lack its name before theirs
        for known in (name, name.removeprefix("model."), name.removeprefix("transformer.")):
            if known in where:
                with opened[where[known]]() as file:
                    read = file.get_tensor(known)
                found: np.ndarray = read.float().numpy()
                return found
        return None

    return tensor, where.keys()


def _open(path: Path) -> Callable[[], AbstractContextManager[Any]]:
    """What opens a file of weights: one of safetensors for as long as a tensor is read, for what stays mapped stays in
    memory; one of torch's once, for all of it is unpickled each time.
    """
    kept: list[Any] = []

    @contextmanager
    def opened() -> Iterator[Any]:
        try:
            if path.suffix == ".safetensors":
                from safetensors import safe_open

                with safe_open(path, framework="pt") as file:
                    yield file
            else:
                if not kept:
                    kept.append(_Pickled(path))
                yield kept[0]
        except MemoryError:
            raise
        except Exception as error:
            why = " ".join(str(error).split())[:300]
            raise ModelError(f"{path} cannot be read: {why}") from error

    return opened


class _Pickled:
    """A file of torch's, as safetensors has its own."""

    def __init__(self, path: Path) -> None:
        import torch

        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        self.keys, self.get_tensor = state.keys, state.__getitem__


def begin_of(tokenizer_json: str) -> tuple[int, ...]:
    """What the tokenizer puts before a text by itself."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    with_marks = tokenizer.encode("a").ids
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    for count in range(len(with_marks) - len(plain) + 1):
        if with_marks[count : count + len(plain)] == plain:
            return tuple(with_marks[:count])
    return ()


def _end(folder: Path) -> tuple[int, ...]:
    """Ids after which the model's own settings say that nothing follows."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        try:
            value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue
        found += [
            item
            for item in (value if isinstance(value, list) else [value])
            if isinstance(item, int)
        ]
    return tuple(found)
