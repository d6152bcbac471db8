"""What runs on the machine being measured: target profiles, metrics, benchmark, report. No torch.

Importing this package imports nothing else: names are fetched from their modules when first used,
because a worker process is an import of this package too, and its start is part of what is timed.
The function `benchmark` is in the module of that name: `from codemill.targets.benchmark import
benchmark`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codemill.targets.benchmark import Progress
    from codemill.targets.engine import Engine, EngineProcess, bundle_engine
    from codemill.targets.evaluation import (
        Evaluation,
        read_evaluation,
        texts_of_length,
        write_evaluation,
    )
    from codemill.targets.figures import BenchmarkResult, Comparison, EngineResult
    from codemill.targets.metrics import Ratio, mrr, paired_ratio, percentile, ranks, recall_at
    from codemill.targets.page import render
    from codemill.targets.profile import (
        Precision,
        Shape,
        TargetSpec,
        all_targets,
        availability,
        buildable,
        target_named,
    )
    from codemill.targets.report import (
        BundleSummary,
        Limit,
        Report,
        SearchPoint,
        Stage,
        TrainingPoint,
        bundle_summary,
        limit,
        make_report,
        read_report,
        write_report,
    )
    from codemill.targets.worker import Loaded, serve

__all__ = [
    "BenchmarkResult",
    "BundleSummary",
    "Comparison",
    "Engine",
    "EngineProcess",
    "EngineResult",
    "Evaluation",
    "Limit",
    "Loaded",
    "Precision",
    "Progress",
    "Ratio",
    "Report",
    "SearchPoint",
    "Shape",
    "Stage",
    "TargetSpec",
    "TrainingPoint",
    "all_targets",
    "availability",
    "buildable",
    "bundle_engine",
    "bundle_summary",
    "limit",
    "make_report",
    "mrr",
    "paired_ratio",
    "percentile",
    "ranks",
    "read_evaluation",
    "read_report",
    "recall_at",
    "render",
    "serve",
    "target_named",
    "texts_of_length",
    "write_evaluation",
    "write_report",
]

_HOMES = {
    "benchmark": ("Progress",),
    "engine": ("Engine", "EngineProcess", "bundle_engine"),
    "evaluation": ("Evaluation", "read_evaluation", "texts_of_length", "write_evaluation"),
    "figures": ("BenchmarkResult", "Comparison", "EngineResult"),
    "metrics": ("Ratio", "mrr", "paired_ratio", "percentile", "ranks", "recall_at"),
    "page": ("render",),
    "profile": (
        "Precision",
        "Shape",
        "TargetSpec",
        "all_targets",
        "availability",
        "buildable",
        "target_named",
    ),
    "report": (
        "BundleSummary",
        "Limit",
        "Report",
        "SearchPoint",
        "Stage",
        "TrainingPoint",
        "bundle_summary",
        "limit",
        "make_report",
        "read_report",
        "write_report",
    ),
    "worker": ("Loaded", "serve"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
