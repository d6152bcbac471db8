"""One engine that completes, in a process and an environment of its own, answering JSON lines.

    python completion_engine.py codemill|llama.cpp|onnxruntime-genai MODEL [--threads N] [--option KEY=VALUE ...]

    -> {"op": "prefill", "text": ..., "tokens": [...]}                     <- {"s": 0.8}
    -> {"op": "decode", "text": ..., "tokens": [...], "count": 64}         <- {"s": 0.5, "tokens": [...]}
    -> {"op": "complete", "text": ..., "tokens": [...], "count": 32, "ends": [...]}
                                                                            <- {"s": 0.1, "tokens": [...], ...}

prefill: from nothing to the first token. decode: `count` tokens, greedy, behind a prompt that was read. complete: the
prompt is in the engine's cache already, as while typing; then the time to the end of the line (a token of `ends`) or to
`count` tokens. `text` and `tokens` are the same prompt: codemill takes the text, and its time holds tokenizing it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

Answer = dict[str, Any]


class _Codemill:
    """Through the public interface. option exits=0, drafts=0, ngrams=0: without them."""

    def __init__(self, model: str, threads: int, options: dict[str, str]) -> None:
        import codemill

        self._model: Any = codemill.load(model, threads=threads)
        names = ("exits", "drafts", "ngrams")
        self._asked = {name: options.get(name, "1") == "1" for name in names}

    def prefill(self, request: Answer) -> Answer:
        self._model.forget()
        started = time.perf_counter()
        self._model.complete(request["text"], max_tokens=1, drafts=False)
        return {"s": time.perf_counter() - started}

    def decode(self, request: Answer) -> Answer:
        return self._timed(request, None)

    def complete(self, request: Answer) -> Answer:
        return self._timed(request, "line")

    def _timed(self, request: Answer, mode: str | None) -> Answer:
        # as the timed one reads it: room is left for as many tokens
        with self._model.stream(
            request["text"], max_tokens=request["count"], **self._asked
        ) as stream:
            next(stream, None)
        started = time.perf_counter()
        found = self._model.complete(
            request["text"], max_tokens=request["count"], mode=mode, **self._asked
        )
        return {
            "s": time.perf_counter() - started,
            "tokens": list(found.tokens),
            "text": found.text,
            "layers": list(found.layers_used),
            "drafted": found.drafted,
            "reason": found.finish_reason,
        }


class _LlamaCpp:
    """option lookup=N: its own prompt look-up, N tokens a draft."""

    def __init__(self, model: str, threads: int, options: dict[str, str]) -> None:
        from llama_cpp import Llama
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        tokens = int(options.get("lookup", 0))
        draft = LlamaPromptLookupDecoding(num_pred_tokens=tokens) if tokens else None
        self._model = Llama(
            model_path=model,
            n_ctx=2048,
            n_threads=threads,
            n_threads_batch=threads,
            draft_model=draft,
            # its buffer of scores has a batch's rows otherwise, whatever the draft model needs
            logits_all=draft is not None,
            verbose=False,
        )

    def prefill(self, request: Answer) -> Answer:
        self._model.reset()
        started = time.perf_counter()
        next(self._generated(request["tokens"]))
        return {"s": time.perf_counter() - started}

    def decode(self, request: Answer) -> Answer:
        return self.complete({**request, "ends": []})

    def complete(self, request: Answer) -> Answer:
        # all but the last token, as with the others: a prompt it has read to the end it would not read again
        next(self._generated(request["tokens"][:-1]))
        started = time.perf_counter()
        tokens = _until(self._generated(request["tokens"]), request)
        return {"s": time.perf_counter() - started, "tokens": tokens}

    def _generated(self, tokens: list[int]) -> Iterator[int]:
        return iter(self._model.generate(tokens, temp=0.0, repeat_penalty=1.0))


class _Genai:
    def __init__(self, model: str, threads: int, _: dict[str, str]) -> None:
        import onnxruntime_genai as genai

        self._genai = genai
        config = genai.Config(model)
        config.overlay(
            json.dumps(
                {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
            )
        )
        self._model = genai.Model(config)

    def _generator(self, tokens: int) -> Any:
        params = self._genai.GeneratorParams(self._model)
        # its buffers of keys and values are of that length
        params.set_search_options(max_length=tokens, do_sample=False)
        return self._genai.Generator(self._model, params)

    def prefill(self, request: Answer) -> Answer:
        import numpy as np

        generator = self._generator(len(request["tokens"]) + 8)
        started = time.perf_counter()
        generator.append_tokens(np.array([request["tokens"]], np.int32))
        generator.generate_next_token()
        return {"s": time.perf_counter() - started}

    def decode(self, request: Answer) -> Answer:
        return self.complete({**request, "ends": []})

    def complete(self, request: Answer) -> Answer:
        import numpy as np

        tokens = request["tokens"]
        generator = self._generator(len(tokens) + request["count"] + 8)
        generator.append_tokens(np.array([tokens[:-1]], np.int32))
        started = time.perf_counter()
        generator.append_tokens(np.array([tokens[-1:]], np.int32))

        def one_by_one() -> Iterator[int]:
            while not generator.is_done():
                generator.generate_next_token()
                yield int(generator.get_next_tokens()[0])

        found = _until(one_by_one(), request)
        return {"s": time.perf_counter() - started, "tokens": found}


def _until(tokens: Iterator[int], request: Answer) -> list[int]:
    ends, found = set(request["ends"]), []
    for token in tokens:
        found.append(int(token))
        if token in ends or len(found) == request["count"]:
            break
    return found


_ENGINES: dict[str, Callable[[str, int, dict[str, str]], Any]] = {
    "codemill": _Codemill,
    "llama.cpp": _LlamaCpp,
    "onnxruntime-genai": _Genai,
}


def main() -> None:
    """Load, say so, and answer until the end of stdin."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=_ENGINES)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--option", action="append", default=[])
    asked = parser.parse_args()
    # what libraries print is not the protocol
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    options = dict(item.split("=", 1) for item in asked.option)
    engine = _ENGINES[asked.engine](asked.model, asked.threads, options)

    def say(answer: Answer) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    say({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        say(getattr(engine, request["op"])(request))


if __name__ == "__main__":
    main()
