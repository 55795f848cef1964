"""From measured cases to the table: means with bootstrap intervals, paired differences, Markdown and a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["METRICS", "PAIRED", "markdown", "save_figure", "tabulate"]

METRICS = (
    "true_psnr",
    "true_ssim",
    "perceptual",
    "inside_psnr",
    "outside_psnr",
    "background_psnr",
    "background_perceptual",
    "guided_psnr",
    "present",
    "temporal",
    "clip",
    "clip_temporal",
    "mask_iou",
    "rank",
    "seconds",
    "peak_mib",
)
PAIRED = (
    *("true_psnr", "true_ssim", "perceptual", "inside_psnr", "outside_psnr", "background_psnr"),
    *("background_perceptual", "guided_psnr", "temporal", "clip", "clip_temporal"),
)
OURS = "freemask"
TABLE_2 = ("fatezero-mmc", "fatezero")  # FreeMask's Table 2: MMC's masks better FateZero in all four figures
DIRECTED = "videodirector"
AGAINST = (
    "plain",
    *(f"{DIRECTED}-{part}" for part in ("shared", "no-stdg", "vanilla", "fast", "oracle", "everywhere")),
)


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and the bootstrap's 95 % interval of it."""
    from scipy.stats import bootstrap

    mean = low = high = float(values.mean())
    if len(values) > 1:
        low, high = bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=0).confidence_interval
    return round(mean, 4), round(float(low), 4), round(float(high), 4)


def tabulate(cases: Sequence[Mapping[str, Any]], metrics: Sequence[str] = METRICS) -> dict[str, Any]:
    """`rows`: for each task and method the mean of every metric and its 95 % interval (`_low`, `_high`) over the `n`
    cases where the method found a mask, `failed` being the others; None where a metric has no value. `paired`: freemask
    minus another method, `TABLE_2`, and videodirector minus those of `AGAINST`, over the cases that both have.

    Each case is {"task", "rows": {method: {metric: number or None}}}.
    """
    found: dict[tuple[str, str], list[Mapping[str, float | None]]] = {}
    pairs: dict[tuple[str, str, str, str], list[float]] = {}
    for case in cases:
        rows = case["rows"]
        for method, row in rows.items():
            found.setdefault((case["task"], method), []).append(row)
        told = [(OURS, other) for other in rows if OURS in rows and other != OURS]
        wanted = (TABLE_2, *((DIRECTED, other) for other in AGAINST))
        for ours, other in (*told, *(pair for pair in wanted if rows.keys() >= set(pair))):
            for metric in PAIRED:
                both = rows[ours].get(metric), rows[other].get(metric)
                if all(map(_finite, both)):
                    pairs.setdefault((case["task"], ours, other, metric), []).append(both[0] - both[1])
    table = []
    for (task, method), each in found.items():
        found_mask = sum(1 for row in each if row)
        line: dict[str, Any] = {"task": task, "method": method, "n": found_mask, "failed": len(each) - found_mask}
        for metric in metrics:
            values = [row[metric] for row in each if _finite(row.get(metric))]
            mean, low, high = _interval(np.array(values, float)) if values else (None, None, None)
            line |= {metric: mean, f"{metric}_low": low, f"{metric}_high": high}
        table.append(line)
    paired = []
    for (task, method, against, metric), differences in pairs.items():
        mean, low, high = _interval(np.array(differences))
        line = {"task": task, "method": method, "against": against, "metric": metric}
        paired.append(line | {"mean": mean, "low": low, "high": high})
    return {"rows": table, "paired": paired}


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _cell(line: Mapping[str, Any], metric: str) -> str:
    if line[metric] is None:
        return ""
    digits = {
        "true_ssim": 3,
        "perceptual": 3,
        "background_perceptual": 3,
        "clip_temporal": 3,
        "present": 2,
        "clip": 2,
        "mask_iou": 2,
        "rank": 2,
        "peak_mib": 0,
    }
    style = f".{digits.get(metric, 1)}f"
    mean, low, high = (format(line[name], style) for name in (metric, f"{metric}_low", f"{metric}_high"))
    return mean if metric in ("seconds", "peak_mib") else f"{mean} ({low} to {high})"


def markdown(table: Mapping[str, Any]) -> str:
    """The table for people, a section a task; then how far freemask is from the others in PSNR to the truth, and what
    MMC's masks change of FateZero."""
    parts = []
    for task in dict.fromkeys(line["task"] for line in table["rows"]):
        parts += [f"## {task}\n", "| method | " + " | ".join(METRICS) + " |", "|" + "---|" * (len(METRICS) + 1)]
        for line in table["rows"]:
            if line["task"] == task:
                name = f"{line['method']} (no mask in {line['failed']})" if line["failed"] else line["method"]
                parts.append(f"| {name} | " + " | ".join(_cell(line, metric) for metric in METRICS) + " |")
        parts += ["", "freemask minus the other, in dB, with 95 % intervals:\n"]
        parts += ["| against | true | inside | outside |", "|---|---|---|---|"]
        found = {(p["method"], p["against"], p["metric"]): p for p in table["paired"] if p["task"] == task}
        for against in dict.fromkeys(other for ours, other, _ in found if ours == OURS):
            cells = [
                _difference(found.get((OURS, against, m)), 2) for m in ("true_psnr", "inside_psnr", "outside_psnr")
            ]
            parts.append(f"| {against} | " + " | ".join(cells) + " |")
        parts.append("")
        if any((ours, other) == TABLE_2 for ours, other, _ in found):
            parts += ["fatezero-mmc minus fatezero (FreeMask's Table 2), with 95 % intervals:\n"]
            parts += [f"- {metric}: {_difference(found.get((*TABLE_2, metric)), 3)}" for metric in PAIRED]
            parts.append("")
        if against := [other for other in AGAINST if (DIRECTED, other, "true_psnr") in found]:
            parts += [
                f"{DIRECTED} minus the other, in dB, with 95 % intervals; guided: the source under guidance:\n",
                "| against | true | kept | guided |",
                "|---|---|---|---|",
            ]
            for other in against:
                cells = [
                    _difference(found.get((DIRECTED, other, m)), 2)
                    for m in ("true_psnr", "background_psnr", "guided_psnr")
                ]
                parts.append(f"| {other} | " + " | ".join(cells) + " |")
            parts.append("")
    return "\n".join(parts)


def _difference(paired: Mapping[str, Any] | None, digits: int) -> str:
    return "{mean:+.{0}f} ({low:+.{0}f} to {high:+.{0}f})".format(digits, **paired) if paired else ""


def save_figure(path: Path, table: Mapping[str, Any]) -> None:
    """PSNR to the true edit by method, whole and inside the objects, with intervals: one panel a task."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(line["task"] for line in table["rows"]))
    methods = list(dict.fromkeys(line["method"] for line in table["rows"]))[::-1]
    figure = Figure(figsize=(3.6 * len(tasks) + 1.2, 5.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        lines = [line for line in table["rows"] if line["task"] == task]
        for metric, colour, shift in (("true_psnr", "#2c6fb7", 0.14), ("inside_psnr", "#d9480f", -0.14)):
            drawn = [line for line in lines if line[metric] is not None]
            mean = np.array([line[metric] for line in drawn])
            spread = np.array(
                [[line[metric] - line[f"{metric}_low"], line[f"{metric}_high"] - line[metric]] for line in drawn]
            ).T
            at = [methods.index(line["method"]) + shift for line in drawn]
            axes.errorbar(mean, at, xerr=spread, fmt="o", color=colour, markersize=4, label=metric.replace("_", " "))
        axes.set_yticks(range(len(methods)), methods)
        axes.set_title(task, loc="left")
        axes.set_xlabel("dB to the true edit")
        axes.grid(True, alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(loc="lower left", fontsize=8)
    figure.savefig(path)
