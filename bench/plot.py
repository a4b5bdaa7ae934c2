#!/usr/bin/env python3
"""Draws what bench/run.py or bench/idle.py wrote to a folder, as SVG, into the same folder. Needs matplotlib.

    bench/plot.py ratios DIR     results.json -> ratios-two-cores.svg, ratios-one-core.svg
    bench/plot.py idle DIR       idle.json -> idle.svg
"""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "penstock"  # the same numbers give the same file
import matplotlib.pyplot as pyplot  # noqa: E402

OURS, THEIRS, LIMIT = "#1f6fb4", "#a9b4bf", "#4d4d4d"


def colour(name):
    return OURS if name.startswith("penstock") else THEIRS


def save(figure, path):
    figure.savefig(path, metadata={"Date": None})
    print(f"wrote {path}", file=sys.stderr)


def draw_ratios(outcome, placement, path):
    """One panel per scenario: the median ratio, its 95 % interval as a line."""
    entries = [entry for entry in outcome["scenarios"] if entry["placement"] == placement]
    if not entries:
        return
    names = [name for name in outcome["servers"] if any(name in entry["summary"] for entry in entries) and name != "bare-epoll"]
    figure, panels = pyplot.subplots(1, len(entries), figsize=(2.7 * len(entries) + 1.2, 0.36 * len(names) + 1.5), sharey=True, squeeze=False,
                                     layout="constrained")
    for panel, entry in zip(panels[0], entries):
        for place, name in enumerate(names):
            row = entry["summary"].get(name)
            if row is None:
                panel.text(0.02, place, "—", va="center", transform=panel.get_yaxis_transform())
                continue
            low, high = row["ratio_interval_95"]
            panel.barh(place, row["ratio_median"], color=colour(name), height=0.66)
            panel.plot([low, high], [place, place], color="black", linewidth=1.2)
            panel.text(max(row["ratio_median"], high), place, f" {row['ratio_median']:.2f}", va="center", fontsize=8)
        panel.axvline(1.0, color=LIMIT, linewidth=1.0, linestyle="--")
        panel.set_title(entry["scenario"]["label"], fontsize=10)
        panel.set_xlim(0.0, 1.25 * panel.get_xlim()[1])
        panel.tick_params(labelsize=8)
    panels[0][0].set_yticks(range(len(names)), names, fontsize=9)
    panels[0][0].invert_yaxis()
    figure.suptitle(f"Server CPU, bare epoll = 1, less is better; {placement}", fontsize=11)
    save(figure, path)


def draw_idle(outcome, path):
    rows = outcome["summary"]
    names = list(rows)
    figure, panel = pyplot.subplots(figsize=(7.0, 0.36 * len(names) + 1.3), layout="constrained")
    values = [rows[name]["bytes_per_connection"] for name in names]
    panel.barh(range(len(names)), values, color=[colour(name) for name in names], height=0.66)
    for place, value in enumerate(values):
        panel.text(value, place, f" {value:,.0f}", va="center", fontsize=8)
    panel.set_yticks(range(len(names)), names, fontsize=9)
    panel.invert_yaxis()
    panel.margins(x=0.12)
    panel.set_title("Bytes of the server's memory per idle connection, less is better", fontsize=11)
    save(figure, path)


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in ("ratios", "idle"):
        print(__doc__, file=sys.stderr)
        return 2
    folder = pathlib.Path(sys.argv[2])
    if sys.argv[1] == "ratios":
        outcome = json.loads((folder / "results.json").read_text())
        for placement in outcome["environment"]["placements"]:
            draw_ratios(outcome, placement, folder / f"ratios-{placement.replace(' ', '-')}.svg")
    else:
        draw_idle(json.loads((folder / "idle.json").read_text()), folder / "idle.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
