"""The chart of benchmarks/peers.py: how many times quicker Branchwork was, by workload and peer.

Knows: rows of figures, matplotlib. Must not know: how they were measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"llama.cpp": "#1b6ca8", "transformers": "#d9822b"}


def draw(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Bars of ratios as PNG, bf16 only but for `stream`. Raises ImportError where matplotlib is not installed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["ratio"] is not None and (row["bits"] == "bf16" or row["workload"] == "stream"):
            label = row["workload"] if row["bits"] == "bf16" else f"{row['workload']} {row['bits']}"
            shown.setdefault(label, {})[row["peer"]] = row["ratio"]
    peers = [peer for peer in COLOURS if any(peer in ratios for ratios in shown.values())]
    labels = sorted(shown, key=lambda label: (not label.startswith("stream "), label == "start"), reverse=False)
    labels = [*(x for x in shown if x == "stream"), *(x for x in labels if x != "stream")]
    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(labels) + 1.5), dpi=150)
    height = 0.8 / max(len(peers), 1)
    for number, peer in enumerate(peers):
        places = [place + number * height for place, label in enumerate(labels) if peer in shown[label]]
        ratios = [shown[label][peer] for label in labels if peer in shown[label]]
        axes.barh(places, ratios, height * 0.92, color=COLOURS[peer], label=f"against {peer}")
        for place, ratio in zip(places, ratios):
            axes.text(ratio * 1.03, place, f"{ratio:.1f}x", va="center", fontsize=8, color="#222222")
    axes.axvline(1.0, color="#222222", linewidth=1)
    axes.set_xscale("log")
    top = max((ratio for ratios in shown.values() for ratio in ratios.values()), default=1.0)
    axes.set_xlim(0.4, top * 1.6)
    ticks = [tick for tick in (0.5, 1, 2, 3, 5, 10, 20, 50, 100) if tick <= top * 1.6]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks([place + height * (len(peers) - 1) / 2 for place in range(len(labels))], labels)
    axes.invert_yaxis()
    axes.set_xlabel("time of the peer / time of Branchwork (longer is better for Branchwork)")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")
