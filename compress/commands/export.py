"""`compress export`: a model as it is -> a bundle. Nothing is trained or cut."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from codemill.compress.commands.output import (
    NumberIn,
    in_bytes,
    is_given,
    json_option,
    plain_name,
    print_json,
    quiet_stdout,
    require_extra,
    shown_path,
    table,
)
from codemill.errors import InputError, ModelError

_MOST_TOKENS = 512
_NONE = "none"
_PIECES, _PIECE_TOKENS = 24, 256
"""Of code that rounding is fitted to; as many again say what is lost."""
_CHARACTERS = 4
"""Of a token of code, about."""
_MOST_CONTEXT, _LEAST_CONTEXT = 8192, 32


@click.command("export")
@click.argument("model")
@click.option(
    "--task",
    type=click.Choice(["encode", "classify", "complete"]),
    default="encode",
    show_default=True,
    help="encode: embeddings, for a search. classify: with the head that the model was saved with. complete: a "
    "decoder, to complete code.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "int8", "int4"]),
    help="int4 is for --task complete, where only the weights are rounded. [default: fp32; complete: int4]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The bundle's folder, or a file ending in .mill. [default: ./NAME-bundle]",
)
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="A tokenizer.json in the model's place."
)
@click.option("--labels", help="Names of the head's labels, in order, with commas between them.")
@click.option(
    "--max-tokens",
    type=click.IntRange(8),
    help="Longest input, the special tokens included; of complete: prompt and completion together. [default: the "
    "model's own, 512 at most; complete: 8192 at most]",
)
@click.option(
    "--calibration",
    metavar="CODE",
    help="Of complete at int4: code that rounding is fitted to. `installed` (Python packages here), a folder, a .jsonl "
    "file with `code`, or `none`: each weight is rounded as it is. [default: installed]",
)
@click.option(
    "--block",
    type=click.Choice(["16", "32", "64", "128"]),
    help="Of complete at int4 and int8: weights that share a scale; more are faster and smaller, and rounded more "
    "coarsely. [default: 64]",
)
@click.option(
    "--symmetric",
    is_flag=True,
    help="Of complete at int4: no zero points; faster on processors with AVX2 alone, and rounded more coarsely.",
)
@click.option(
    "--rounding-loss",
    metavar="SHARE",
    help="Of complete at int4: by which perplexity on other such code may be above that at int8; matrices stay at 8 "
    "bits until it is met, what wins most a byte first. `none`: all are at 4. [default: 0.2]",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="Make variants for kinds of machine (`compress targets`), called as they are; may be given several times. "
    "MODEL may be a bundle that `compress run` made, or any that completes: they are added to it.",
)
@click.option(
    "--evaluation",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="With --target: what variants are compared with fp32 on, and activations are seen on. [default: the bundle's "
    "validation.jsonl.gz; without one activations are seen on code that is installed here, and only decoders are "
    "compared, on such code]",
)
@click.option(
    "--max-loss",
    type=NumberIn(0, 1),
    default=0.02,
    show_default=True,
    help="With --target: share of fp32's MRR or accuracy, or of the next tokens that a decoder gets right as it ships, "
    "that a variant which runs here may lose; one that loses more is refused.",
)
@click.option("--name", help="The bundle's name. [default: the model's]")
@click.option("--license", "licence", help="Licence of the weights, as an SPDX id.")
@json_option
def export_command(
    model: str,
    task: str,
    precision: str | None,
    out: Path | None,
    tokenizer: Path | None,
    labels: str | None,
    max_tokens: int | None,
    calibration: str | None,
    block: str | None,
    symmetric: bool,
    rounding_loss: str | None,
    targets: tuple[str, ...],
    evaluation: Path | None,
    max_loss: float,
    name: str | None,
    licence: str | None,
    as_json: bool,
) -> None:
    """Make a bundle of MODEL as it is.

    MODEL is a folder, a Hugging Face id (owner/name) or package:NAME; of a decoder also a folder with one GGUF file.
    """
    require_extra("compress", "`compress export`")
    from codemill.compress.places import check_bundle_out, put_bundle, scratch_beside
    from codemill.export.quantize.blocks import BLOCK
    from codemill.runtime import size_bytes, verify_bundle
    from codemill.runtime.bundle import update_bundle

    chosen = plain_name(
        name or model.removeprefix("package:").rstrip("/").rsplit("/", 1)[-1], "model"
    )
    target = out or Path(f"{chosen}-bundle")
    if targets:
        given = _given_beside(click.get_current_context())
        from codemill.compress.commands.bundle import is_bundle
        from codemill.compress.commands.export_targets import export_targets

        for option in ("name", "task"):
            if option in given and is_bundle(model):
                raise click.UsageError(
                    f"--{option} is of a model: {model} is a bundle, whose {option} stays as it is"
                )
        asked = task if "task" in given else None
        export_targets(
            model, targets, target, evaluation, chosen, asked, licence, max_loss, as_json
        )
        return
    if evaluation is not None:
        raise click.UsageError("--evaluation goes with --target")
    if is_given("max_loss"):
        raise click.UsageError("--max-loss goes with --target")
    rounds = task == "complete" and precision in (None, "int4")
    for option, value in (("--calibration", calibration), ("--rounding-loss", rounding_loss)):
        if value is not None and not rounds:
            raise click.UsageError(f"{option} is of --task complete at --precision int4")
    if symmetric and not rounds:
        raise click.UsageError("--symmetric is of --task complete at --precision int4")
    if block is not None and (task != "complete" or precision == "fp32"):
        raise click.UsageError("--block is of --task complete at --precision int4 or int8")
    if calibration is not None and not calibration.strip():
        raise click.UsageError("--calibration is empty: name code, `installed` or `none`")
    if calibration == _NONE and rounding_loss is not None:
        raise click.UsageError("--rounding-loss is measured on code: leave --calibration none out")
    check_bundle_out(target, target.parent / ".codemill")
    with quiet_stdout(), scratch_beside(target) as scratch:
        made = scratch / "bundle"
        if task == "complete":
            precision = precision or "int4"
            code = (calibration or "installed") if rounds else _NONE
            lost = None if code == _NONE else _loss(rounding_loss)
            _export_decoder(
                model,
                precision,
                made,
                tokenizer,
                labels,
                max_tokens,
                chosen,
                code,
                lost,
                BLOCK if block is None else int(block),
                symmetric,
            )
        else:
            precision = precision or "fp32"
            export_encoder_bundle(
                model, task, precision, made, tokenizer, labels, max_tokens, chosen
            )
        update_bundle(made, name=chosen, license=licence)
        digest, variant = verify_bundle(made), f"cpu-{precision}"
        size = size_bytes(made, variant)
        put_bundle(made, target, scratch)
    found = {"bundle": str(target), "digest": digest, "variant": variant, "size_bytes": size}
    if as_json:
        print_json(found)
        return
    rows = [("bundle", shown_path(target)), ("variant", variant), ("size", in_bytes(size))]
    click.echo(table([*rows, ("digest", digest)]))


_WITH_TARGETS = {
    "model",
    "targets",
    "out",
    "evaluation",
    "max_loss",
    "as_json",
    "name",
    "licence",
    "task",
}


def _given_beside(context: click.Context) -> set[str]:
    """The options that were given; UsageError for one that does not go with --target."""
    given = {option for option in context.params if is_given(option)}
    for option in sorted(given - _WITH_TARGETS):
        raise click.UsageError(f"--{option.replace('_', '-')} does not go with --target")
    if context.params["task"] == "complete":
        raise click.UsageError(
            "--target of a decoder takes a bundle: leave it out here, then give the bundle that this makes as MODEL"
        )
    return given


def _loss(asked: str | None) -> float | None:
    """The share of perplexity that rounding may cost; None: whatever it does."""
    from codemill.export.decoder.mixed import ROUNDING_LOSS

    if asked is None:
        return ROUNDING_LOSS
    if asked == _NONE:
        return None
    try:
        value = float(asked)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise click.UsageError(
            f"--rounding-loss {asked!r}: expected a share from 0, as 0.2, or none"
        )
    return value


def export_encoder_bundle(
    model: str,
    task: str,
    precision: str,
    folder: Path,
    tokenizer: Path | None = None,
    labels: str | None = None,
    max_tokens: int | None = None,
    name: str = "model",
) -> None:
    """Write a bundle of an encoder as it is, with its head where `task` is classify; see the command."""
    from codemill.compress.models.classifier import Classifier
    from codemill.compress.models.export import export_bundle, export_classifier
    from codemill.compress.models.load import load_teacher, read_shape, resolve_model
    from codemill.compress.models.surgery import architecture_of

    if labels is not None and task == "encode":
        raise click.UsageError("--labels are of a head: give --task classify")
    if precision == "int4":
        raise click.UsageError(
            "--precision int4 is for --task complete; an encoder has fp32 and int8"
        )
    source = resolve_model(model)
    loaded = load_teacher(source, head=task == "classify")
    positions = read_shape(source).positions
    longest = min(positions, _MOST_TOKENS) if max_tokens is None else max_tokens
    if longest > positions:
        raise InputError(
            f"--max-tokens {longest}: {model} takes inputs of {positions} tokens at most"
        )
    common: dict[str, Any] = {
        "heads": loaded.model.config.num_attention_heads,
        "tokenizer_json": _tokenizer(tokenizer, loaded.tokenizer_json),
        "max_tokens": longest,
        "precisions": (precision,),
        "name": name,
        "architecture": architecture_of(loaded, longest).to_json(),
    }
    if task == "encode":
        export_bundle(loaded.model, folder, **common)
        return
    if loaded.head is None:
        raise ModelError(
            f"{model} was saved without a classification head; save the whole model "
            "(...ForSequenceClassification) there, or give --task encode"
        )
    names = (
        loaded.head.labels if labels is None else tuple(name.strip() for name in labels.split(","))
    )
    if len(names) != len(loaded.head.labels) or len(set(names)) != len(names) or not all(names):
        raise InputError(
            f"--labels {labels!r}: expected {len(loaded.head.labels)} distinct names, as many as the head has outputs"
        )
    classifier = Classifier(loaded.model, loaded.head, 1, loaded.pooling).eval()
    export_classifier(classifier, folder, labels=names, **common)


def _export_decoder(
    model: str,
    precision: str,
    folder: Path,
    tokenizer: Path | None,
    labels: str | None,
    max_tokens: int | None,
    name: str,
    calibration: str,
    rounding_loss: float | None,
    block: int,
    symmetric: bool,
) -> None:
    from codemill.compress.data.code import pieces_from
    from codemill.compress.models.causal import open_causal, pieces_of
    from codemill.compress.models.decoders import resolve_decoder
    from codemill.compress.progress import shown_stage
    from codemill.export.decoder.bundle import PRECISIONS, write_completion
    from codemill.export.decoder.mixed import round_decoder
    from codemill.runtime import load_completer

    if labels is not None:
        raise click.UsageError("--labels are of a head: give --task classify")
    # before a large model is read
    code = (
        []
        if calibration == _NONE
        else pieces_from(calibration, 2 * _PIECES, _PIECE_TOKENS * _CHARACTERS)
    )
    opened = open_causal(resolve_decoder(model))
    positions = opened.weights.shape.max_tokens
    longest = min(positions, _MOST_CONTEXT) if max_tokens is None else max_tokens
    if longest > positions:
        raise InputError(f"--max-tokens {longest}: {model} takes {positions} tokens at most")
    if longest < _LEAST_CONTEXT:
        raise InputError(
            f"--max-tokens {longest}: prompt and completion together take {_LEAST_CONTEXT} at least"
        )
    text = _tokenizer(tokenizer, opened.tokenizer_json)
    most = min(_PIECE_TOKENS, positions)
    pieces = pieces_of(code, text, most, opened.prompting.begin)
    enough = 2 if rounding_loss is not None else 1
    if calibration != _NONE and len(pieces) < enough:
        raise InputError(
            f"--calibration {calibration}: {len(pieces)} files of code are long enough, {enough} or more are "
            "needed; name more code, or --calibration none"
        )
    with shown_stage("rounding" if pieces else "writing") as report:
        rounding = round_decoder(
            opened.weights,
            PRECISIONS[precision],
            pieces[::2],
            pieces[1::2],
            rounding_loss,
            block,
            folder.parent,
            report=report,
            symmetric=symmetric,
        )
        write_completion(
            opened.weights,
            folder,
            name=name,
            tokenizer_json=text,
            prompting=opened.prompting,
            max_tokens=longest,
            precisions=(precision,),
            roundings={precision: rounding},
        )
    # what only ONNX Runtime knows, of head sizes and the like, is better said now than in an app
    with load_completer(folder) as made:
        made.complete("def ", max_tokens=1)


def _tokenizer(path: Path | None, own: str) -> str:
    if path is None:
        return own
    from tokenizers import Tokenizer

    try:
        text = path.read_text(encoding="utf-8")
        highest = max(Tokenizer.from_str(text).get_vocab().values(), default=-1)
        most = max(Tokenizer.from_str(own).get_vocab().values(), default=-1)
    except (KeyboardInterrupt, SystemExit):
        raise
    # tokenizers raises nothing more precise than Exception, and a panic of its own, which is none
    except BaseException as error:
        raise InputError(f"--tokenizer {path}: not a tokenizer.json: {error}") from error
    if highest > most:
        raise InputError(
            f"--tokenizer {path} has token ids up to {highest}, the model's own up to {most}: it is another model's"
        )
    return text
