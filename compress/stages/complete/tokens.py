"""Stage `tokens` of completion: which of its tokens a decoder keeps whose layers are all kept.

Writes tokenizer.json and tokens.json (`fewer_tokens.py`), and growth.json.
"""

from __future__ import annotations

import json
from pathlib import Path

from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.complete.corpus import counted, read_texts
from codemill.compress.stages.complete.labels import model_identity, open_decoder_of

__all__ = ["VERSION", "stage"]

VERSION = 1
_FACTS = "growth.json"


def stage(recipe: Recipe) -> Stage:
    """Depends on the decoder, the corpus and how many are wanted."""
    settings = {"model": model_identity(recipe), "vocab_size": recipe.complete.vocab_size}

    def work(inputs: Folders, folder: Path, _: Report) -> None:
        _write(recipe, inputs["corpus"], folder)

    return Stage(
        "tokens", VERSION, ("corpus",), settings, ("tokenizers",), work, findings=_findings
    )


def _findings(folder: Path) -> str:
    found = json.loads((folder / _FACTS).read_text())
    return f"{found['kept']:,} of {found['of']:,} tokens kept: held-out texts are {found['growth']:.3f} times as long"


def _write(recipe: Recipe, corpus: Path, folder: Path) -> None:
    from codemill.compress.models.bpe import length_growth
    from codemill.compress.models.fewer_tokens import DecoderTokens, write_tokens

    model = open_decoder_of(recipe.model)
    text, prompting = model.tokenizer_json, model.prompting
    tokens = DecoderTokens(text, prompting, counted(corpus))
    kept = tokens.at(min(recipe.complete.vocab_size or tokens.most, tokens.most))
    write_tokens(folder, kept)
    growth = length_growth(text, kept.tokenizer_json, read_texts(corpus, "validation"))
    facts = {"kept": len(kept.ids), "of": tokens.most, "growth": growth}
    (folder / _FACTS).write_text(json.dumps(facts))
