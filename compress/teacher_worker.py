"""A torch model as a benchmark engine: `python -m codemill.compress.teacher_worker MODEL`.

Encodes as sentence-transformers does: tokenize, mean of the last hidden states, L2-normalise. `targets`
starts it as a process and talks JSON with it, so that no benchmark needs torch in its own process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from codemill.targets.engine import Engine
from codemill.targets.worker import Loaded, serve

if TYPE_CHECKING:
    import numpy as np

__all__ = ["main", "teacher_engine"]

_MAX_TOKENS = 256


def teacher_engine(
    model: str,
    name: str,
    max_tokens: int = _MAX_TOKENS,
    threads: int | None = None,
    weights: Path | None = None,
) -> Engine:
    """The engine that runs a torch model in this worker; its size is that of weights, tokenizer and config.

    weights: safetensors laid over the model's own, as a fine-tuned teacher's are.
    """
    from codemill.compress.models.load import resolve_model

    folder = resolve_model(model)
    files = [*folder.glob("*.safetensors")] or [*folder.glob("*.bin")]
    files += [folder / file for file in ("tokenizer.json", "config.json")]
    argv = [sys.executable, "-m", "codemill.compress.teacher_worker", str(folder), "--name", name]
    argv += ["--max-tokens", str(max_tokens)]
    if threads is not None:
        argv += ["--threads", str(threads)]
    if weights is not None:
        argv += ["--weights", str(weights)]
    size = sum(file.stat().st_size for file in files if file.is_file())
    return Engine(name, tuple(argv), "teacher", size)


def _load(model: str, max_tokens: int, threads: int | None, weights: str | None) -> Loaded:
    import torch
    from tokenizers import Tokenizer

    from codemill.compress.models.load import load_teacher, resolve_model
    from codemill.compress.models.pooling import embed

    if threads is not None:
        torch.set_num_threads(threads)
    teacher = load_teacher(resolve_model(model))
    if weights is not None:
        from safetensors.torch import load_file

        teacher.model.load_state_dict(load_file(weights))
    tokenizer = Tokenizer.from_str(teacher.tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    cutting = Tokenizer.from_str(teacher.tokenizer_json)
    cutting.enable_truncation(max_tokens)
    cutting.enable_padding(pad_id=teacher.model.config.pad_token_id or 0)

    def encode(texts: Sequence[str]) -> np.ndarray:
        batch = cutting.encode_batch(list(texts))
        ids = torch.tensor([encoding.ids for encoding in batch])
        mask = torch.tensor([encoding.attention_mask for encoding in batch])
        with torch.inference_mode():
            embeddings: np.ndarray = embed(teacher.model, ids, mask).numpy()
        return embeddings

    def count(texts: Sequence[str]) -> list[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]

    details = {"provider": "PyTorch CPU", "precision": "fp32", "threads": torch.get_num_threads()}
    return Loaded(encode, count, details)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to close; the exit code."""
    parser = argparse.ArgumentParser(prog="codemill.compress.teacher_worker", description=__doc__)
    parser.add_argument("model", help="folder, Hugging Face id or package:NAME")
    parser.add_argument("--name", default="teacher")
    parser.add_argument("--max-tokens", type=int, default=_MAX_TOKENS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--weights", help="safetensors laid over the model's own")
    chosen = parser.parse_args(arguments)
    return serve(
        chosen.name,
        lambda: _load(chosen.model, chosen.max_tokens, chosen.threads, chosen.weights),
        threads=chosen.threads,
    )


if __name__ == "__main__":
    sys.exit(main())
