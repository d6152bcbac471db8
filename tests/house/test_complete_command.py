"""From a decoder's folder to a completion: export, load, the command, and what each refuses."""

from __future__ import annotations

import io
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

import codemill
from codemill.cli import main
from codemill.errors import BundleError, IntegrityError
from codemill.export.decoder.bundle import calibrated
from codemill.runtime import Completer, read_manifest, verify_bundle

Compress = Callable[..., Any]
MARKS = ("<|endoftext|>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>")
SOURCE = "def add(a, b):\n    return a + b\n\nprint(add(1, 2))\n"


def tokenizer(marks: Sequence[str] = MARKS) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    found = Tokenizer(models.BPE({token: n for n, token in enumerate(alphabet)}, []))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens(list(marks))
    return found


def write_decoder(folder: Path, marks: Sequence[str] = MARKS, positions: int = 600) -> Path:
    """A Llama of bytes, of random weights."""
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer(marks).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("decoder") / "tiny")


@pytest.fixture(scope="module")
def bundle(decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "tiny"
    arguments = ["--task", "complete", "--precision", "fp32", "--out", str(out)]
    assert main(["export", str(decoder), *arguments]) == 0
    return out


@pytest.fixture
def model(bundle: Path) -> Iterator[Completer]:
    with codemill.load(bundle) as found:
        assert isinstance(found, Completer)
        yield found


def in_torch(decoder: Path, text: str, count: int) -> list[int]:
    """The likeliest tokens, by transformers, up to a mark that ends a file."""
    model = LlamaForCausalLM.from_pretrained(decoder).eval()
    ids = tokenizer().encode(text).ids
    found: list[int] = []
    with torch.inference_mode():
        while len(found) < count:
            token = int(model(torch.tensor([[*ids, *found]])).logits[0, -1].argmax())
            if token == 256:
                break
            found.append(token)
    return found


def test_completions_are_those_of_transformers(decoder: Path, model: Completer) -> None:
    for cut in range(5, len(SOURCE), 9):
        wanted = in_torch(decoder, SOURCE[:cut], 24)
        for drafts in (False, True):
            found = model.complete(SOURCE[:cut], max_tokens=24, drafts=drafts)
            assert list(found.tokens) == wanted
            assert found.finish_reason == ("length" if len(wanted) == 24 else "stop")
            assert set(found.layers_used) <= {2}


def test_what_was_read_is_not_read_again(model: Completer) -> None:
    first = model.complete(SOURCE, max_tokens=2)
    assert first.reused_tokens == 0
    again = model.complete(SOURCE + "x = 1", max_tokens=2)
    assert again.reused_tokens == first.prompt_tokens
    assert model.kept_bytes > 0
    model.forget()
    assert model.kept_bytes == 0
    assert model.complete(SOURCE, max_tokens=2) == first


def test_memory_of_kept_texts_has_a_limit(model: Completer) -> None:
    model.complete(SOURCE, max_tokens=1)
    one = model.kept_bytes
    model.memory_bytes = 2 * one
    for number in range(5):
        model.complete(f"# {number}\n" * 9, max_tokens=1)
        assert model.kept_bytes <= 2 * one


def test_a_stream_gives_what_complete_gives_and_may_be_left(model: Completer) -> None:
    wanted = model.complete(SOURCE, max_tokens=20)
    with model.stream(SOURCE, max_tokens=20) as stream:
        assert "".join(stream) == wanted.text
    assert stream.completion.tokens == wanted.tokens
    left = model.stream(SOURCE, max_tokens=20)
    next(left)
    left.close()
    left.close()
    assert left.completion.finish_reason == "cancelled"
    assert model.complete(SOURCE, max_tokens=20).tokens == wanted.tokens


def test_a_cancelled_completion_says_so(model: Completer) -> None:
    cancel = threading.Event()
    cancel.set()
    found = model.complete(SOURCE, cancel=cancel)
    assert (found.text, found.finish_reason) == ("", "cancelled")


class After:
    """A cancel that comes after so many looks at it."""

    def __init__(self, looks: int) -> None:
        self._looks = looks

    def is_set(self) -> bool:
        self._looks -= 1
        return self._looks < 0


def test_what_was_read_before_a_cancel_is_not_read_again(model: Completer) -> None:
    text = "x = 1234567\n" * 40
    assert model.complete(text, max_tokens=2, cancel=After(1)).finish_reason == "cancelled"
    # a quarter of it was read, a part that is run at once
    again = model.complete(text + "y", max_tokens=2)
    assert (again.prompt_tokens, again.reused_tokens) == (481, 128)


def test_a_text_of_which_nothing_was_read_is_not_kept(model: Completer) -> None:
    model.complete(SOURCE, cancel=After(0))
    assert model.kept_bytes == 0


def test_threads_get_what_one_gets(model: Completer) -> None:
    texts = [f"{SOURCE}# {n}\nvalue = " for n in range(6)]
    wanted = [model.complete(text, max_tokens=12).tokens for text in texts]
    found: dict[int, list[tuple[int, ...]]] = {}

    def work(number: int) -> None:
        found[number] = [model.complete(text, max_tokens=12).tokens for text in texts]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [wanted] * 4


def test_between_two_texts_the_model_s_own_marks_are_used(decoder: Path, model: Completer) -> None:
    assert model.fills
    prefix, suffix = "def f(x):\n    return ", "\n\nf(1)\n"
    ids = [257, *tokenizer().encode(prefix).ids, 258, *tokenizer().encode(suffix).ids, 259]
    whole = LlamaForCausalLM.from_pretrained(decoder).eval()
    with torch.inference_mode():
        wanted = int(whole(torch.tensor([ids])).logits[0, -1].argmax())
    found = model.complete(prefix, suffix, max_tokens=1)
    assert found.tokens == ((wanted,) if wanted != 256 else ())
    assert found.prompt_tokens == len(ids)


def test_marks_in_a_text_are_text(model: Completer) -> None:
    assert model.complete("<|endoftext|>", max_tokens=1).prompt_tokens == len("<|endoftext|>")


def test_a_prompt_that_is_too_long_keeps_its_end_and_says_so(model: Completer) -> None:
    found = model.complete("x" * 1000, max_tokens=10)
    assert found.truncated
    assert 590 * 3 / 4 <= found.prompt_tokens <= 590
    assert not model.complete("x" * 590, max_tokens=10).truncated
    both = model.complete("x" * 1000, "y" * 1000, max_tokens=10)
    assert both.truncated
    assert 590 / 2 <= both.prompt_tokens <= 590
    whole = model.complete("x" * 300, "y" * 287, max_tokens=10)
    assert (whole.truncated, whole.prompt_tokens) == (False, 590)


def test_no_more_of_a_prompt_is_read_than_is_asked_for(model: Completer) -> None:
    text = (SOURCE * 8)[:-5]
    whole = model.complete(text, max_tokens=4)
    found = model.complete(text, max_tokens=4, max_prompt_tokens=100)
    assert (whole.truncated, found.truncated) == (False, True)
    assert 75 <= found.prompt_tokens <= 100
    # it is the end, and an edit behind it reads what is new
    model.forget()
    assert model.complete(text[-found.prompt_tokens :], max_tokens=4).tokens == found.tokens
    model.complete(text, max_tokens=4, max_prompt_tokens=100)
    after = model.complete(text + "x", max_tokens=4, max_prompt_tokens=100)
    assert after.prompt_tokens - after.reused_tokens <= 2
    both = model.complete(text, text, max_tokens=4, max_prompt_tokens=100)
    assert both.prompt_tokens <= 100
    # more than the model takes is as much as it takes
    assert model.complete("x" * 1000, max_tokens=10, max_prompt_tokens=10**6).prompt_tokens <= 590


def test_a_text_longer_than_the_context_is_read_anew_once_in_a_while_only(
    model: Completer,
) -> None:
    text = SOURCE * 20
    reused = []
    for count in range(60):
        found = model.complete(text + "x" * count, max_tokens=4)
        assert found.truncated
        reused.append(found.prompt_tokens - found.reused_tokens <= 2)
    assert sum(reused) >= 58
    for count in range(30):
        found = model.complete(text + "x" * count, "\n" + text, max_tokens=4)
        reused.append(found.prompt_tokens - found.reused_tokens <= 400)
    # what is typed before a suffix moves the suffix
    assert sum(reused) >= 85


def test_an_edit_after_an_answer_moves_what_follows(model: Completer) -> None:
    body = SOURCE * 8
    model.complete("x = 1\n" + body, max_tokens=12)
    found = model.complete("x = 1234\n" + body, max_tokens=1)
    assert found.prompt_tokens - found.reused_tokens <= 4
    model.complete("def f(", body, max_tokens=12)
    found = model.complete("def f(a", body, max_tokens=12)
    assert found.prompt_tokens - found.reused_tokens <= 3
    # and back: what was moved twice is what the text is
    again = model.complete("def f(", body, max_tokens=1)
    assert again.prompt_tokens - again.reused_tokens <= 3


def test_files_that_begin_alike_keep_what_is_theirs(model: Completer) -> None:
    header = "# Licensed under a licence, and so on.\n"
    texts = [header + f"value_{n} = {n}\n" * 20 for n in range(3)]
    for text in texts:
        model.complete(text, max_tokens=2)
    model.complete("x", max_tokens=2)
    for text in texts:
        found = model.complete(text + "a", max_tokens=2)
        assert found.prompt_tokens - found.reused_tokens <= 1


def test_a_text_that_is_too_large_to_keep_pushes_nothing_out(model: Completer) -> None:
    model.complete(SOURCE, max_tokens=1)
    model.memory_bytes = model.kept_bytes
    model.complete("# other\n" * 60, max_tokens=1)
    assert model.complete(SOURCE, max_tokens=1).reused_tokens == len(SOURCE) - 1
    model.memory_bytes = -1
    model.complete(SOURCE * 2, max_tokens=1)
    assert model.kept_bytes == 0


def test_a_stream_that_is_dropped_gives_its_text_back(model: Completer) -> None:
    import gc

    gc.disable()
    try:
        for _ in range(5):
            stream = model.stream(SOURCE, max_tokens=20)
            next(stream)
            del stream
        assert model.complete(SOURCE, max_tokens=1).reused_tokens == len(SOURCE) - 1
    finally:
        gc.enable()


def test_a_text_is_not_kept_where_a_graph_failed(
    model: Completer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = model.complete(SOURCE, max_tokens=8)
    backend: Any = model._backend
    run = backend.segment

    def fails(number: int, inputs: Any, *rest: Any) -> Any:
        if len(inputs) == 1:
            raise MemoryError
        return run(number, inputs, *rest)

    model.forget()
    monkeypatch.setattr(backend, "segment", fails)
    with pytest.raises(MemoryError):
        model.complete(SOURCE, max_tokens=8)
    assert model.kept_bytes == 0
    monkeypatch.undo()
    assert model.complete(SOURCE, max_tokens=8).tokens == wanted.tokens


def test_nothing_to_go_on_begins_a_file(model: Completer) -> None:
    assert model.complete("", max_tokens=3).prompt_tokens == 1
    # half a surrogate pair, as in a file that is not UTF-8
    assert model.complete("a\udcff", max_tokens=3).prompt_tokens > 1


def test_values_out_of_range_are_refused(model: Completer) -> None:
    for values in (
        *({"max_tokens": 0}, {"max_tokens": 600}, {"max_prompt_tokens": 2}),
        *({"max_prompt_tokens": True}, {"temperature": -1}, {"stop": [""]}),
    ):
        with pytest.raises(ValueError, match=next(iter(values))):
            model.complete("x", **values)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="prefix should be str"):
        model.complete(b"x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="text should be str"):
        model.predictions(b"x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"cancel should be a threading\.Event"):
        model.complete("x", cancel=True)  # type: ignore[arg-type]
    for exits in (1, "no", None):
        with pytest.raises(ValueError, match="exits should be True"):
            model.complete("x", exits=exits)  # type: ignore[arg-type]


def test_a_closed_model_says_so_and_gives_its_memory_back(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = codemill.load(bundle)
    assert isinstance(model, Completer)
    given: list[None] = []
    monkeypatch.setattr(
        "codemill.runtime.completion.completer.give_back_freed", lambda: given.append(None)
    )
    model.close()
    model.close()
    assert len(given) == 1
    with pytest.raises(RuntimeError, match="closed"):
        model.complete("x")


def test_rounded_weights_take_less_room_and_complete(
    decoder: Path, bundle: Path, compress: Compress
) -> None:
    sizes = {}
    forms = {"symmetric": ("int4", "--symmetric"), "int4": ("int4",), "int8": ("int8",)}
    for name, options in forms.items():
        ended = compress(
            *("export", decoder, "--task", "complete", "--precision", *options),
            *("--out", name, "--json"),
        )
        assert ended.code == 0
        sizes[name] = ended.document["size_bytes"]
        verify_bundle(name)
        with codemill.load(name) as model:
            assert isinstance(model, Completer)
            assert model.complete(SOURCE, max_tokens=5).prompt_tokens == len(SOURCE)
    assert (
        sizes["symmetric"]
        < sizes["int4"]
        < sizes["int8"]
        < sum(f.stat().st_size for f in bundle.rglob("*") if f.is_file())
    )


def test_one_file_holds_it_all(decoder: Path, model: Completer, compress: Compress) -> None:
    arguments = ("--task", "complete", "--precision", "fp32", "--out", "tiny.mill")
    assert compress("export", decoder, *arguments).code == 0
    with codemill.load("tiny.mill") as packed:
        assert isinstance(packed, Completer)
        assert packed.complete(SOURCE, max_tokens=9) == model.complete(SOURCE, max_tokens=9)


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def test_the_command_completes_stdin(
    bundle: Path, model: Completer, compress: Compress, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--mode", "all", "--max-tokens", "12")
    wanted = model.complete(SOURCE, max_tokens=12).text
    stdin(monkeypatch, SOURCE.encode())
    assert compress("complete", bundle, "-", *options).out == wanted + "\n"
    stdin(monkeypatch, SOURCE.encode())
    assert compress("complete", bundle, "--stream", *options).out == wanted + "\n"
    stdin(monkeypatch, SOURCE.encode())
    found = compress("complete", bundle, "--json", *options).document
    assert found["text"] == wanted
    assert found["prompt_tokens"] == len(SOURCE)


def test_the_command_completes_at_a_place(
    bundle: Path, model: Completer, compress: Compress
) -> None:
    Path("a.py").write_text(SOURCE)
    options = ("--file", "a.py", "--mode", "all", "--max-tokens", "9", "--json")
    at = SOURCE.index("return a") + len("return")
    wanted = model.complete(SOURCE[:at], SOURCE[at:], max_tokens=9)
    found = compress("complete", bundle, "--line", 2, "--column", 11, *options).document
    assert found["text"] == wanted.text
    at = SOURCE.index("\n")
    wanted = model.complete(SOURCE[:at], SOURCE[at:], max_tokens=9)
    assert compress("complete", bundle, "--line", 1, *options).document["text"] == wanted.text


def test_ngrams_count_where_a_bundle_is_calibrated_for_them(
    bundle: Path,
    tmp_path: Path,
    compress: Compress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    # a model without sense is outvoted
    before = calibrated(copy, read_manifest(copy), escapes=[0.01] * 4)
    assert before.output["ngrams"] == {"escapes": [0.01] * 4}
    verify_bundle(copy)
    text = "one = 1\ntwo = 2\none = 1\ntwo = 2\none = 1\ntwo"
    with codemill.load(bundle) as model, codemill.load(copy) as counting:
        assert isinstance(model, Completer)
        assert isinstance(counting, Completer)
        found = counting.complete(text, max_tokens=12)
        assert found.text == " = 2\none = 1"
        for drafts in (False, True):
            assert counting.complete(text, max_tokens=12, drafts=drafts).text == found.text
        alone = model.complete(text, max_tokens=12)
        assert alone.text != found.text
        assert counting.complete(text, max_tokens=12, ngrams=False).text == alone.text
        # as in a completion, so of a text's own tokens
        ids, said = counting.predictions(text)
        assert (said[-9:-1] == ids[-8:]).all()
        assert (counting.predictions(text, ngrams=False)[1] == model.predictions(text)[1]).all()
        # and of another open file
        elsewhere = counting.complete("three", max_tokens=4, buffers=["three = 3\n"])
        assert elsewhere.text == " = 3"
    for option, wanted in ((), found.text), (("--no-ngrams",), alone.text):
        stdin(monkeypatch, text.encode())
        ended = compress("complete", copy, "--mode", "all", "--max-tokens", 12, "--json", *option)
        assert ended.document["text"] == wanted
    assert "weigh beside the model" in compress("inspect", copy).out
    assert calibrated(copy, before, escapes=[]).output["ngrams"] is None
    shown = compress("inspect", copy).out
    assert "weigh beside the model" not in shown
    assert [line.split() for line in shown.splitlines() if line.startswith(("fills", "exits"))] == [
        ["fills", "gaps", "yes"],
        ["exits", "none"],
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--file", "none.py"), 1, "none.py cannot be read"),
        (("--file", "a.py", "--line", "9"), 1, "a.py has 5 lines"),
        (("--file", "a.py", "--line", "1", "--column", "99"), 1, "so 15 at most"),
        (("--line", "1"), 2, "give --file"),
        (("--file", "a.py", "-"), 2, "not both"),
        (("--file", "a.py", "--stream", "--json"), 2, "leave out --json"),
        (("--file", "a.py", "--variant", "rtx"), 1, "no variant 'rtx'"),
        (("--file", "a.py", "--max-tokens", "9999"), 1, "from 1 to 592, found 9999"),
        (("--file", "a.py", "--speculate"), 1, "speculate is by exits"),
    ],
)
def test_mistakes_are_told(
    bundle: Path, compress: Compress, arguments: tuple[str, ...], code: int, said: str
) -> None:
    Path("a.py").write_text(SOURCE)
    ended = compress("complete", bundle, *arguments)
    assert ended.code == code
    assert said in " ".join(ended.err.split())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--task", "encode", "--precision", "int4"), 2, "int4 is for --task complete"),
        (("--task", "complete", "--labels", "a,b"), 2, "--labels are of a head"),
        (("--task", "encode", "--calibration", "installed"), 2, "is of --task complete"),
        (
            ("--task", "complete", "--precision", "int8", "--rounding-loss", "0.1"),
            2,
            "at --precision int4",
        ),
        (
            ("--task", "complete", "--precision", "int8", "--symmetric"),
            2,
            "--symmetric is of --task complete at --precision int4",
        ),
        (("--task", "complete", "--calibration", "nowhere"), 1, "there is no nowhere"),
        (("--task", "complete", "--calibration", "."), 1, ". has no code"),
        (("--task", "complete", "--rounding-loss", "much"), 2, "expected a share from 0"),
        (("--task", "complete", "--calibration", " "), 2, "--calibration is empty"),
        (
            ("--task", "complete", "--calibration", "none", "--rounding-loss", "1"),
            2,
            "leave --calibration none out",
        ),
        (("--task", "complete", "--max-tokens", "601"), 1, "takes 600 tokens at most"),
        (("--task", "complete", "--max-tokens", "8"), 1, "take 32 at least"),
    ],
)
def test_mistakes_of_export_are_told(
    decoder: Path, compress: Compress, arguments: tuple[str, ...], code: int, said: str
) -> None:
    ended = compress("export", decoder, *arguments, "--out", "new")
    assert ended.code == code
    assert said in " ".join(ended.err.split())
    assert not Path("new").exists()


def test_a_changed_weight_is_found(bundle: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    path = copy / "variants/cpu-fp32/weights.bin"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"weights.bin was changed"):
        codemill.load(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["output"].update(kind="labels"), "should be 'tokens'"),
        (lambda m: m["output"].update(end=[999]), "token id from 0 to 259"),
        (lambda m: m["output"].update(fill={"prefix": 1}), "prefix, suffix and middle"),
        (
            lambda m: m["architecture"].update(rotary={"frequencies": []}),
            "frequencies and interleaved",
        ),
        (lambda m: m["output"].update(ngrams=[1.0]), "should have escapes only"),
        (lambda m: m["output"].update(ngrams={"escapes": []}), "a list of 1 to 16 numbers"),
        (lambda m: m["output"].update(ngrams={"escapes": [0]}), "a number above 0"),
        (lambda m: m["output"].update(ngrams={"escapes": [1, float("nan")]}), "NaN|above 0"),
        (lambda m: m.update(exits=[{"layer": 1, "exit": 0.5, "stop": None}]), "should be 5 graphs"),
        (lambda m: m["architecture"].update(layers=3), "takes"),
        (
            lambda m: m["architecture"].update(hidden_size=32),
            "numbers of shape|failed while running",
        ),
        (lambda m: m["architecture"].update(kv_heads=1), "failed while running"),
        (lambda m: m["architecture"].update(kv_heads=4), "failed while running"),
        (lambda m: m["architecture"].update(head_size=8), "frequencies|failed while running"),
        (lambda m: m["architecture"].update(head_size=32), "failed while running"),
        (lambda m: m["output"].update(vocab_size=100, end=[]), "should be a token id|260 tokens"),
    ],
)
def test_a_manifest_that_lies_is_found(
    bundle: Path, tmp_path: Path, change: Callable[[Any], None], said: str
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))

    def use() -> None:
        with codemill.load(copy) as model:
            assert isinstance(model, Completer)
            model.complete(SOURCE, max_tokens=3)

    with pytest.raises(BundleError, match=said):
        use()


def damaged(decoder: Path, folder: Path, **values: Any) -> Path:
    import shutil

    shutil.copytree(decoder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    return folder


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"vocab_size": 400}, "says vocab_size 400, the table has 260 rows"),
        ({"vocab_size": 258}, "token ids up to 259, the model's table 258 rows"),
        ({"num_hidden_layers": 1}, "says 1 layers, and its weights have 2"),
        ({"partial": 1, "head_dim": 12}, "failed while running|should|shape"),
    ],
)
def test_a_model_that_could_not_be_run_is_not_exported(
    decoder: Path, compress: Compress, values: dict[str, Any], said: str
) -> None:
    import re

    folder = damaged(decoder, Path("model"), **values)
    ended = compress("export", folder, "--task", "complete", "--out", "new")
    assert ended.code == 1
    assert re.search(said, " ".join(ended.err.split()))
    assert not Path("new").exists()


def test_ids_that_are_none_of_the_model_end_nothing(decoder: Path, compress: Compress) -> None:
    folder = damaged(decoder, Path("model"), eos_token_id=[-1, 50256])
    assert compress("export", folder, "--task", "complete", "--out", "new").code == 0


def test_a_line_of_windows_ends_before_its_return(bundle: Path, compress: Compress) -> None:
    Path("w.py").write_bytes(SOURCE.replace("\n", "\r\n").encode())
    found = compress("complete", bundle, "--file", "w.py", "--line", 1, "--json").document
    Path("u.py").write_bytes((SOURCE[: SOURCE.index("\n")]).encode())
    assert found["prompt_tokens"] == 3 + len(SOURCE) + SOURCE.count("\n")


def test_variants_for_other_engines_are_added(
    compress: Compress, bundle: Path, own_folder: Path
) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("tensorrt_rtx")
    # weights are rounded: the likeliest token of a model that was never trained may be another one
    any_loss = ("--max-loss", "1")
    targets = ("--target", "laptop-intel", "--target", "laptop-rtx")
    ended = compress("export", bundle, *targets, *any_loss, "--out", "more", "--json")
    assert ended.code == 0
    verify_bundle(own_folder / "more", expect=ended.document["digest"])
    intel, rtx = ended.document["targets"]
    assert (intel["variant"], intel["precision"]) == ("laptop-intel", "int8")
    assert intel["not_run"] is None
    assert intel["agreement"] > 0.8
    assert intel["lost"] is None or intel["lost"] <= 1
    assert (rtx["variant"], rtx["precision"]) == ("laptop-rtx", "fp16")
    if rtx["agreement"] is None:
        assert "GPU" in rtx["not_run"]
    (own_folder / "source.py").write_text(SOURCE)
    ended = compress("complete", "more", "--variant", "laptop-intel", "--file", "source.py")
    assert ended.code == 0
    shown = compress("export", bundle, "--target", "laptop-intel", *any_loss, "--out", "again")
    assert "decides as cpu-fp32" in shown.out


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("laptop-cpu", "a processor runs its variant cpu-fp32 as it is"),
        (
            "browser",
            "no decoder is made for onnxruntime-web yet; there are gpu-datacenter, laptop-",
        ),
        ("windows", "no decoder is made for DmlExecutionProvider yet"),
    ],
)
def test_targets_without_a_decoder_are_refused_with_the_reason(
    compress: Compress, bundle: Path, own_folder: Path, target: str, said: str
) -> None:
    ended = compress("export", bundle, "--target", target, "--out", "more")
    assert ended.code != 0
    assert said in ended.err
    assert not (own_folder / "more").exists()


def test_a_target_of_a_decoder_takes_a_bundle(compress: Compress, decoder: Path) -> None:
    ended = compress("export", decoder, "--task", "complete", "--target", "laptop-rtx")
    assert ended.code == 2
    assert "--target of a decoder takes a bundle" in ended.err


def test_a_bundle_that_was_changed_gets_no_variants(
    compress: Compress, bundle: Path, own_folder: Path
) -> None:
    pytest.importorskip("openvino")
    changed = Path(shutil.copytree(bundle, own_folder / "changed"))
    file = next(changed.glob("variants/*/*.onnx"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    ended = compress("export", changed, "--target", "laptop-intel", "--out", "more")
    assert ended.code == 1
    assert f"{file} was changed" in ended.err
    assert not (own_folder / "more").exists()
