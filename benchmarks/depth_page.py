"""The tables of docs/depth.md, from results/depth.json and results/depth_example.json.

    python benchmarks/depth_page.py

Writes between the page's markers.
"""

from __future__ import annotations

import json
import textwrap

from pages import ROOT, filled, markdown

from entropi.device.files import write_atomically

PAGE = ROOT / "docs" / "depth.md"
WITHIN = (1, 5)  # points of test accuracy below a method's own whole network


def result(name: str) -> dict:
    return json.loads((ROOT / "results" / f"{name}.json").read_bytes())


def millions(value: float) -> str:
    return f"{value / 1e6:.2f} M"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def costs(row: dict) -> tuple[str, ...]:
    """The columns of COSTS."""
    return (
        str(row["layers"]), millions(row["dense_macs"]), millions(row["nonzero_macs"]), f"{row['flash']:,}",
        f"{row['ram']:,}", millions(row["instructions"]),
    )  # fmt: skip


COSTS = (">layers", ">MACs", ">non-zero", ">flash, bytes", ">RAM, bytes", ">instructions")


def command(text: str) -> str:
    """A command as a block of code, in lines that fit a page."""
    return (
        "    " + " \\\n        ".join(textwrap.wrap(text, 108, break_long_words=False, break_on_hyphens=False)) + "\n"
    )


def example(content: dict) -> str:
    """Every step, the best in bold."""
    columns = (">step", ">removed", ">valid.", ">test", *COSTS)
    lines = (
        (
            f"**{row['step']}**" if row["step"] == content["best"] else str(row["step"]),
            str(row["removed"]), percent(row["validation_accuracy"]), percent(row["accuracy"]), *costs(row),
        )
        for row in content["rows"]
    )  # fmt: skip
    return markdown(columns, lines)


def groups(rows: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """The points of every (network, method)."""
    found: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        found.setdefault((row["arch"], row["method"]), []).append(row)
    return found


def points(rows: list[dict]) -> str:
    """Of every method the whole network, and its cheapest points within so many points of that."""
    lines = []
    for (arch, method), found in groups(rows).items():
        whole = found[0]
        chosen = [("", whole)]
        for within in WITHIN:
            near = [row for row in found if row["accuracy"] >= whole["accuracy"] - within / 100]
            chosen.append((f"within {within}", min(near, key=lambda row: row["instructions"])))
        for what, row in chosen:
            removed = str(row.get("removed", ""))
            lines.append((arch, method, what, str(row["step"]), removed, percent(row["accuracy"]), *costs(row)))
    return markdown(("network", "method", "", ">step", ">removed", ">test", *COSTS), lines)


def at_equal_cost(content: dict, cost: str) -> str:
    """The best accuracy within every budget by method, the best of all in bold, and who is as good."""
    found = [row for row in content["at_equal_cost"] if row["cost"] == cost]
    methods = list(dict.fromkeys(name for row in found for name in row["points"]))
    lines = []
    for row in found:
        cells = []
        for method in methods:
            point = row["points"].get(method)
            text = percent(point["accuracy"]) if point else ""
            cells.append(f"**{text}**" if method == row["best"] else text)
        others = ", ".join(name for name in row["as_good"] if name != row["best"])
        lines.append((row["arch"], f"{row['budget']:,}", *cells, others))
    return markdown(("network", f">{cost}, at most", *(f">{name}" for name in methods), "as good"), lines)


def published(content: dict) -> str:
    """The papers' accuracies beside ours: by rectifiers removed, and of LaCoOT's table by method, within a point."""
    found = groups(content["rows"])
    lines = []
    for arch, table in content["published"]["easier"].items():
        ours = {row["removed"]: row["accuracy"] for row in reversed(found.get((arch, "easier"), []))}
        for removed, accuracy in table.items():
            mine = ours.get(int(removed))
            lines.append((arch, "easier", f"{removed} removed", f"{accuracy:.2f} %", percent(mine) if mine else ""))
    for arch, table in content["published"]["lacoot"].items():
        for method, accuracy in table.items():
            ours, note = found.get((arch, method), []), "reduced"
            if method == "whole":
                ours, note = found.get((arch, "egp"), [])[:1], ""
            near = [row for row in ours if row["accuracy"] >= ours[0]["accuracy"] - 0.01]
            text = f"{percent(near[-1]['accuracy'])}, {near[-1]['removed']} removed" if near else ""
            lines.append((arch, method, note, f"{accuracy:.2f} %", text))
    return markdown(("network", "method", "", ">published", ">ours"), lines)


def tables() -> dict[str, str]:
    """The page's tables, by marker."""
    content, small = result("depth"), result("depth_example")
    return {
        "command": command(small["command"]),
        "example": example(small),
        "points": points(content["rows"]),
        "equal instructions": at_equal_cost(content, "instructions"),
        "equal flash": at_equal_cost(content, "flash"),
        "published": published(content),
    }


def main() -> None:
    write_atomically(PAGE, filled(PAGE.read_text(), tables()).encode())


if __name__ == "__main__":
    main()
