"""Stage `teacher-graphs`: the teaching teacher as a bundle that labels, the unmodified one as a reference."""

from __future__ import annotations

from pathlib import Path

from codemill.compress.models.export import export_bundle
from codemill.compress.models.load import TeacherModel, load_teacher, resolve_model
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.finetune import teaching_model

__all__ = ["REFERENCE", "TEACHING", "VERSION", "stage"]

VERSION = 2
TEACHING = "teaching"
REFERENCE = "reference"


def stage(recipe: Recipe) -> Stage:
    """Depends on the teacher, which of both teaches, and the lengths."""
    settings = {
        "label_precision": recipe.teacher.label_precision,
        "label_tokens": recipe.data.max_tokens,
        "max_tokens": recipe.teacher.max_tokens,
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        report(0.0, "exporting the teacher that labels")
        teaching = teaching_model(recipe, inputs["teacher"])
        _write(teaching, folder / TEACHING, recipe.data.max_tokens, recipe.teacher.label_precision)
        report(0.6, "exporting the unmodified teacher")
        original = load_teacher(resolve_model(recipe.model))
        _write(original, folder / REFERENCE, recipe.teacher.max_tokens, "fp32")

    libraries = ("torch", "transformers", "optimum-onnx", "onnx", "onnxruntime")
    return Stage("teacher-graphs", VERSION, ("teacher",), settings, libraries, work)


def _write(teacher: TeacherModel, folder: Path, max_tokens: int, precision: str) -> None:
    export_bundle(
        teacher.model,
        folder,
        heads=teacher.model.config.num_attention_heads,
        tokenizer_json=teacher.tokenizer_json,
        max_tokens=max_tokens,
        precisions=(precision,),
        name=folder.name,
    )
