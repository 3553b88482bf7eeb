"""The tables of docs/learning.md, from what the benchmarks of learning left in results/.

    python benchmarks/learning_page.py

Reads learning_cost.json, head_modes.json, head_peers.json, head_bits.json, head_recipe.json and new_classes.json;
writes between the page's markers.
"""

from __future__ import annotations

import json

from pages import ROOT, filled, markdown

from entropi.device.files import write_atomically

PAGE = ROOT / "docs" / "learning.md"
CORES = ("cortex-m0plus", "cortex-m3", "cortex-m4f", "cortex-m7", "cortex-m33")


def result(name: str) -> dict:
    return json.loads((ROOT / "results" / f"{name}.json").read_bytes())


def target(spec: str) -> str:
    """A data set's short name, from the stem of its file."""
    return spec.partition(":")[2].partition(",")[0].partition("_")[0].removesuffix(".npz").upper()


def encoder(name: str) -> str:
    return name.partition("-")[0]


def mean(spread: dict) -> str:
    return f"{spread['mean']:.2f} ± {spread['deviation']:.2f}"


def cost(content: dict) -> str:
    """Instructions by mode, batch and core."""
    rows: dict[tuple[int, int], dict[str, dict]] = {}
    for row in content["rows"]:
        rows.setdefault((row["head"]["bytes_per_parameter"], row["head"]["batch"]), {})[row["core"]] = row
    columns = ("bytes a parameter", "batch", ">arena, bytes", *(f">{core}" for core in CORES), ">predict, cortex-m4f")
    lines = (
        (
            *map(str, mode),
            f"{cores['cortex-m4f']['arena']['total']:,}",
            *(f"{cores[core]['learn']['mean']:,.0f}" for core in CORES),
            f"{cores['cortex-m4f']['predict']['mean']:,.0f}",
        )
        for mode, cores in rows.items()
    )
    return markdown(columns, lines)


def table_2(content: dict) -> str:
    """The paper's figure, its rule, and ours by mode with batches of four."""
    columns = (
        *("head of 5 classes", "bytes a parameter", ">paper, MB", ">its rule, bytes", ">parameters, bytes"),
        *(">head, bytes", ">arena with encoder", ">learn, instructions", ">at most"),
    )
    lines = (
        (
            f"{row['network']}, {row['features']} features",
            str(mode["bytes_per_parameter"]),
            f"{row['paper_megabytes']:.2f}",
            f"{row['bytes']:,}",
            f"{mode['parameter_bytes']:,}",
            f"{mode['head_bytes']:,}",
            f"{mode['arena']['total']:,}",
            f"{mode['instructions']['learn']['mean']:,.0f}",
            f"{mode['instructions']['learn']['max']:,}",
        )
        for row in content["table_2"].values()
        for mode in row["modes"]
        if mode["batch"] == 4
    )
    return markdown(columns, lines)


def modes(content: dict) -> str:
    """Accuracy by mode, and what 4 and 2 bytes lose."""
    columns = ("encoder", "target", *(f">{mode} bytes" for mode in (12, 8, 4, 2)), ">4 loses", ">2 loses")
    lines = (
        (
            encoder(row["encoder"]),
            target(row["target"]),
            *(mean(row["accuracy"][mode]) for mode in ("12", "8", "4", "2")),
            *(mean(row["lost_against_12"][mode]) for mode in ("4", "2")),
        )
        for row in content["targets"]
    )
    return markdown(columns, lines)


def peers(content: dict) -> str:
    """Accuracy of every way on every target, then what it costs on the target named last."""
    rows = list(content["targets"].values())
    names = list(rows[0]["ways"])
    last = rows[-1]
    columns = (
        "",
        *(f">{encoder(row['encoder'])}, {target(row['target'])}" for row in rows),
        *(">bytes", ">multiply-adds a sample", ">time / ours, 8 bytes"),
    )
    lines = []
    for name in names:
        way = last["ways"][name]
        times = way["time_ratio"]
        lines.append(
            (
                name,
                *(mean(row["ways"][name]["accuracy"]) for row in rows),
                f"{way['bytes']['total']:,}",
                f"{way['multiply_adds_a_sample']:,.0f}",
                f"{times['median']:.2f} ({times['least']:.2f} to {times['most']:.2f})",
            )
        )
    ours, chosen = "ours, 8 bytes a parameter", "ours, 8 bytes a parameter, rate chosen for the target"
    losses = {
        "ours, 8 bytes, loses to PyTorch's best": ("lost_against_it", ours),
        "and with a rate chosen for the target": ("lost_against_it", chosen),
        "and that to PyTorch's highest on the test split": ("lost_against_that", chosen),
    }
    for name, (key, way) in losses.items():
        lines.append((name, *(f"{row[key][way]:.2f}" for row in rows), "", "", ""))
    return markdown(columns, lines)


def bits(content: dict) -> str:
    """The CRC-32 of every mode's head, and on how many builds it was found."""
    lines = []
    for head in content["heads"]:
        rows = [row for row in content["rows"] if row["bytes_per_parameter"] == head["bytes_per_parameter"]]
        crcs = ", ".join(sorted({row["head_crc32"] for row in rows}))
        counts = [str(sum(row["on"] == on for row in rows)) for on in ("host", "Unicorn", "QEMU")]
        lines.append((str(head["bytes_per_parameter"]), crcs, *counts))
    return markdown(
        ("bytes a parameter", "CRC-32 of the head", ">builds on the host", ">on Unicorn", ">on QEMU"), lines
    )


def recipes(content: dict) -> str:
    """Mean accuracy on the validation samples by learning rate and the samples after which it is half or 0."""
    means = {(row["rate"], row["halved_after"]): f"{row['mean_accuracy']:.2f}" for row in content["grid"]}
    rates = sorted({rate for rate, _ in means})
    halved = sorted({h for _, h in means if h})
    lines = ((f"{rate:g}", *(means.get((rate, h), "") for h in (*halved, None))) for rate in rates)
    return markdown(("rate", *(f">half after {h:,}" for h in halved), ">0 at the end"), lines)


def new_classes(content: dict) -> str:
    """Every sample once: in a random order, in runs of one class, and new classes after the others."""
    columns = (
        *("encoder", "target", ">samples kept", ">random order", ">runs of one class", ">new classes last"),
        *(">of old ones", ">of new ones"),
    )
    lines = []
    for row in content["targets"]:
        ways = {(way["order"], way["replay"]): way["accuracy"] for way in row["ways"]}
        for kept in sorted({kept for _, kept in ways}):
            found = [ways[order, kept]["all"] for order in ("random", "runs", "new")]
            found += [ways["new", kept][part] for part in ("old", "new")]
            lines.append((encoder(row["encoder"]), target(row["target"]), str(kept), *map(mean, found)))
    return markdown(columns, lines)


def tables() -> dict[str, str]:
    """The page's tables, by marker."""
    return {
        "cost": cost(result("learning_cost")),
        "table 2": table_2(result("head_modes")),
        "modes": modes(result("head_modes")),
        "peers": peers(result("head_peers")),
        "bits": bits(result("head_bits")),
        "recipe": recipes(result("head_recipe")),
        "new classes": new_classes(result("new_classes")),
    }


def main() -> None:
    write_atomically(PAGE, filled(PAGE.read_text(), tables()).encode())


if __name__ == "__main__":
    main()
