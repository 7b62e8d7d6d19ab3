"""The chart of benchmarks/peers.py: how many times quicker Branchwork was, by workload and peer.

Knows: rows of figures, matplotlib. Must not know: how they were measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"llama.cpp": "#1b6ca8", "transformers": "#d9822b"}
TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100)


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
    labels = sorted(shown, key=lambda label: label.split(" ")[0] != "stream")  # its kinds of weights side by side
    low = min((ratio for ratios in shown.values() for ratio in ratios.values()), default=1.0)
    top = max((ratio for ratios in shown.values() for ratio in ratios.values()), default=1.0)
    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(labels) + 1.5), dpi=150)
    axes.set_xscale("log")
    height = 0.8 / max(len(peers), 1)
    for number, peer in enumerate(peers):
        places = [place + number * height for place, label in enumerate(labels) if peer in shown[label]]
        ratios = [shown[label][peer] for label in labels if peer in shown[label]]
        widths = [ratio - 1 for ratio in ratios]
        axes.barh(places, widths, height * 0.92, left=1.0, color=COLOURS[peer], label=f"against {peer}")
        for place, ratio in zip(places, ratios):
            side = {"x": ratio * 1.03, "ha": "left"} if ratio >= 1 else {"x": ratio / 1.03, "ha": "right"}
            text = f"{ratio:.1f}x" if ratio >= 1 else f"{ratio:.2f}x"
            axes.text(y=place, s=text, va="center", fontsize=8, color="#222222", **side)
    axes.axvline(1.0, color="#222222", linewidth=1)
    axes.set_xlim(min(0.5, low * 0.6), max(2.0, top * 1.6))
    shown_ticks = [tick for tick in TICKS if min(0.5, low * 0.6) <= tick <= max(2.0, top * 1.6)]
    axes.set_xticks(shown_ticks, [f"{tick:g}x" for tick in shown_ticks])
    axes.minorticks_off()
    axes.set_yticks([place + height * (len(peers) - 1) / 2 for place in range(len(labels))], labels)
    axes.invert_yaxis()
    axes.set_xlabel("time of the peer / time of Branchwork (to the right of 1x Branchwork is quicker)")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")
