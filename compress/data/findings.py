"""What a labelled corpus looks like, in lines for people; the figures are those of `corpus.json`."""

from __future__ import annotations

from typing import Any

from codemill.compress.data.sources import SPLITS

__all__ = ["findings", "warnings_of"]

_FEW_TEST_ROWS = 100
_LOPSIDED = 0.95
_MANY_SKIPPED = 0.01


def findings(report: dict[str, Any]) -> list[str]:
    """One line a finding: sizes and balance, skipped rows, repeats, leakage, and at the end the warnings."""
    lines = [f"splits: {report['splits_drawn']}"]
    for name in SPLITS:
        lines.append(f"{name}: {report['counts'][name]:,} rows ({_balance(report, name)})")
    for name, found in report["teacher"].items():
        if found["rows"]:
            judged = f", right in {found['right']:,} of {found['with_label']:,} that have a label"
            lines.append(
                f"{name}: {found['rows']:,} rows have a teacher's label{judged if found['with_label'] else ''}"
            )
    for kind, count in sorted(report["skipped"]["counts"].items()):
        lines.append(f"skipped: {kind}: {count:,} rows")
        lines += [f"  {example}" for example in report["skipped"]["examples"][kind]]
    unknown = report["unknown_ids"]
    if unknown["rows"]:
        lines.append(
            f"{unknown['rows']:,} pairs name {unknown['ids']:,} ids that have no function; "
            f"the first: {', '.join(unknown['first'])}"
        )
    for name, found in report["repeats"].items():
        lines += _repeats(name, found)
    lines += _leakage(report["leakage"])
    lines += _groups_shared(report)
    return lines + [f"warning: {warning}" for warning in report["warnings"]]


def _balance(report: dict[str, Any], split: str) -> str:
    counts, total = report["balance"][split], max(1, report["counts"][split])
    shown = [f"{name} {count / total:.1%}" for name, count in counts.items()]
    more = f", and {len(shown) - 10} more labels" if len(shown) > 10 else ""
    return ", ".join(shown[:10]) + more


def _repeats(name: str, found: dict[str, Any]) -> list[str]:
    rows = "all rows" if name == "all" else name
    lines = []
    if found["duplicates"]:
        done = "removed" if found["removed"] else "kept: a test that is given stays whole"
        lines.append(
            f"{rows}: {found['duplicates']:,} duplicates of {found['rows']:,} ({done})"
            + _examples(found["duplicate_examples"])
        )
    if found["conflicting_texts"]:
        done = f"{found['dropped_for_conflict']:,} removed" if found["removed"] else "kept"
        lines.append(
            f"{rows}: {found['conflicting_rows']:,} rows contradict each other over {found['conflicting_texts']:,} "
            f"texts ({done}; the label of more than half of them counts)"
            + _examples(found["conflict_examples"])
        )
    return lines


def _leakage(leakage: dict[str, Any]) -> list[str]:
    lines = []
    for name, found in leakage.items():
        if "same_pair" not in found:
            if found["same_text"] or found["similar_text"]:
                lines.append(
                    f"leakage: {found['same_text']:,} same and {found['similar_text']:,} similar texts of "
                    f"{found['checked']:,} were removed from {name}, a held-out split has them"
                    + _examples(found["examples"])
                )
        elif found["same_pair"] or found["one_text"] or found["both_texts"]:
            total = sum(found[key] for key in ("neither", "one_text", "both_texts", "same_pair"))
            both = found["both_texts"] + found["same_pair"]
            lines.append(
                f"leakage: of {total:,} {name} pairs {both:,} have both texts in train too "
                f"({found['same_pair']:,} as the same pair), {found['one_text']:,} have one; they are kept"
                + (f" (e.g. {', '.join(found['examples'][:2])})" if found["examples"] else "")
            )
    return lines


def _groups_shared(report: dict[str, Any]) -> list[str]:
    lines = []
    for name, found in report.get("groups_shared", {}).items():
        if found["groups"]:
            lines.append(
                f"leakage: {found['groups']:,} of the {report['groups'][name]:,} groups in {name} are in train too, "
                f"with {found['rows']:,} of its {report['counts'][name]:,} rows; they are kept"
                + _examples(found["examples"])
            )
    return lines


def _examples(pairs: list[list[str]]) -> str:
    shown = "; ".join(" = ".join(pair) for pair in pairs[:2])
    return f": {shown}" if shown else ""


def warnings_of(report: dict[str, Any]) -> list[str]:
    """What the figures warn of."""
    warnings = []
    for name in SPLITS:
        counts, total = report["balance"][name], report["counts"][name]
        absent = [label for label, count in counts.items() if not count]
        taught = report["teacher"][name]["rows"]
        labelled = total - counts.get("(unlabelled)", 0)
        if absent and labelled and not (name == "train" and taught):
            warnings.append(f"{name} has no row labelled {', '.join(absent[:10])}")
        if labelled and max(counts.values()) > _LOPSIDED * total and not absent:
            warnings.append(f"{name} is lopsided: {_balance(report, name)}")
    if report["counts"]["test"] < _FEW_TEST_ROWS:
        warnings.append(
            f"test has only {report['counts']['test']:,} rows: its figures will be uncertain"
        )
    bad = sum(report["skipped"]["counts"].values())
    if bad > _MANY_SKIPPED * (bad + report["rows_read"]):
        warnings.append(f"{bad:,} of {bad + report['rows_read']:,} rows were skipped")
    return warnings
