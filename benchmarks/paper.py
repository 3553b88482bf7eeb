"""The paper's tables and the study of estimators, from the surveys that `entropi reproduce` leaves in its folder.

    python benchmarks/paper.py [REGIME=RUN ...]

Keeps RUN/surveys/*.json as results/paper/REGIME/*.json, then makes results/paper/ anew from all surveys kept there:
table1-REGIME.json, fig3-REGIME-NETWORK.json and .png, regret.json; and writes the tables of docs/results.md, between
its markers. Without arguments it only makes these anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

from pages import ROOT, filled, markdown

from entropi.device.files import write_atomically, write_json
from entropi.host.paper import regret, results

KEPT = ROOT / "results" / "paper"
PAGE = ROOT / "docs" / "results.md"
FIG_3 = "CIFAR-100"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="REGIME=RUN", help="such as short=runs/paper")
    for run in parser.parse_args().runs:
        regime, _, folder = run.partition("=")
        (KEPT / regime).mkdir(parents=True, exist_ok=True)
        for file in sorted(Path(folder).glob("surveys/*.json")):
            shutil.copyfile(file, KEPT / regime / file.name)

    rows, tables = [], {}
    for folder in sorted(path for path in KEPT.iterdir() if path.is_dir()):
        surveys = [json.loads(file.read_bytes()) for file in sorted(folder.glob("*.json"))]
        table = results.table_1(surveys)
        write_json(KEPT / f"table1-{folder.name}.json", table)
        tables[f"table1 {folder.name}"] = table_1(table)
        tables[f"ladders {folder.name}"] = ladders(surveys)
        for arch in dict.fromkeys(survey["ladder"]["arch"] for survey in surveys):
            curves = results.curves(surveys, arch, FIG_3)
            write_json(KEPT / f"fig3-{folder.name}-{arch}.json", curves)
            results.figure_3(curves, KEPT / f"fig3-{folder.name}-{arch}.png")
        found = [{"regime": folder.name, **row} for survey in surveys for row in regret.regrets(survey)]
        tables[f"regret {folder.name}"] = regrets(found)
        rows += found
    write_json(KEPT / "regret.json", {"rows": rows, "all": regret.summary(rows), "few": regret.few_summary(rows)})
    tables |= {"regret": regrets(rows), "few": few(rows), "picks": picks(rows)}
    write_atomically(PAGE, filled(PAGE.read_text(), tables).encode())


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Mean, and the deviation where there is more than one."""
    text = format(statistics.fmean(values), form)
    return text + (f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else "")


def table_1(rows: Sequence[dict]) -> str:
    columns = (
        "encoder", "target", "head", ">seeds", ">dense", ">selected", ">gain", ">gain / deviation", ">alpha",
        ">paper: dense", ">pruned",
    )  # fmt: skip
    lines = (
        (
            row["arch"], row["target"], row["head"], str(len(row["dense"])), spread(row["dense"]),
            spread(row["selected"]), f"{statistics.fmean(row['selected']) - statistics.fmean(row['dense']):+.2f}",
            f"{row['deviations']:.1f}" if row["deviations"] is not None else "",
            ", ".join(f"{alpha:.4f}" for alpha in row["alpha"]),
            *(("{:.2f} ± {:.2f}".format(*row["paper"][cell]) if row["paper"] else "") for cell in ("dense", "pruned")),
        )
        for row in rows
    )  # fmt: skip
    return markdown(columns, lines)


def ladders(surveys: Sequence[dict]) -> str:
    columns = (
        "encoder",
        ">seed",
        ">rungs",
        ">dense, source",
        ">best rung, source",
        ">last alpha",
        ">hours",
        "precision",
    )
    lines = []
    for survey in surveys:
        rungs, settings = survey["rungs"], survey["ladder"]
        accuracies = [rung["source_accuracy"] for rung in rungs]
        lines.append(
            (
                settings["arch"], str(settings["seed"]), str(len(rungs)), f"{accuracies[0]:.1%}",
                f"{max(accuracies):.1%}", f"{rungs[-1]['alpha']:.4f}",
                f"{sum(rung['seconds'] for rung in rungs) / 3600:.2f}", settings["precision"],
            )
        )  # fmt: skip
    return markdown(columns, lines)


def regrets(rows: Sequence[dict]) -> str:
    columns = ("picked by", ">mean regret", ">largest", ">cases")
    found = sorted(regret.summary(rows).items(), key=lambda item: item[1]["mean"])
    return markdown(columns, ((r, f"{s['mean']:.2f}", f"{s['worst']:.2f}", str(s["cases"])) for r, s in found))


def few(rows: Sequence[dict]) -> str:
    found = regret.few_summary(rows)
    rules = next(iter(found.values()))
    columns = ("picked by", *(f">{count} a class" for count in found))
    lines = (
        (rule, *(f"{by[rule]['mean']:.2f} (largest {by[rule]['worst']:.2f})" for by in found.values()))
        for rule in rules
    )
    return markdown(columns, lines)


def picks(rows: Sequence[dict]) -> str:
    rules = [rule for rule in rows[0]["picks"] if rule not in (regret.DENSE, regret.LAST)]
    columns = ("training", "encoder", ">seed", "target", ">best rung", ">± (test set)", *(f">{rule}" for rule in rules))
    lines = (
        (
            row["regime"], row["arch"], str(row["seed"]), row["target"],
            f"{row['best']}: {row['best_accuracy']:.1%}", f"{row['standard_error']:.1f}",
            *(f"{row['picks'][rule]} (−{row['regret'][rule]:.1f})" for rule in rules),
        )
        for row in rows
    )  # fmt: skip
    return markdown(columns, lines)


if __name__ == "__main__":
    main()
