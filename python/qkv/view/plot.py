"""The static twin of the page, drawn by matplotlib (extra `plot`)."""

from __future__ import annotations

from typing import Any

from .measures import entropy
from .sources import Array, Map

INK, ACCENT = "#1d2433", "#c2570c"
SCALE = ("#ffffff", "#dbe7f6", "#9dbfe6", "#4f8cd0", "#1f57a4", "#0a2456")  # lightness falls evenly
MOST_LABELS = 64


def draw(item: Map, title: str, layers: list[int], heads: list[int]) -> Any:
    """A matplotlib Figure: these heads of these layers as a grid, or one head of one layer large."""
    try:
        import matplotlib.figure
        from matplotlib import colors
    except ImportError:
        raise ImportError('figures need matplotlib: pip install "qkv[plot]"') from None
    colours = colors.LinearSegmentedColormap.from_list("qkv", SCALE)
    bits = entropy(item.weights)
    name = item.name if title == item.name else f"{title}: {item.name}"
    if len(layers) == len(heads) == 1:
        figure = matplotlib.figure.Figure(figsize=_size(item), layout="constrained")
        _large(figure, item, item.weights[layers[0], heads[0]], colours)
        what = f"layer {layers[0]}, head {heads[0]}, entropy {bits[layers[0], heads[0]]:.2f} bits"
        figure.suptitle(_plain(f"{name}, {what}"), color=INK, wrap=True)
        return figure
    size = 1 + 1.1 * len(heads), 0.9 + 1.2 * len(layers)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(layers), len(heads), squeeze=False)
    for i, of_layer in zip(layers, axes, strict=True):
        for j, ax in zip(heads, of_layer, strict=True):
            weights = item.weights[i, j]
            norm = colors.PowerNorm(0.5, vmin=0, vmax=float(weights.max()) or 1.0)  # small weights show too
            ax.imshow(weights, cmap=colours, norm=norm, aspect="auto", interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_xlabel(f"{bits[i, j]:.1f} bits", fontsize=7, color=INK, labelpad=2)
            ax.spines[:].set_color("#c5cbd6")
            if i == layers[0]:
                ax.set_title(f"head {j}", fontsize=8, color=INK)
            if j == heads[0]:
                ax.set_ylabel(f"layer {i}", fontsize=8, color=INK)
    figure.suptitle(_plain(name), color=INK, wrap=True)
    return figure


def _size(item: Map) -> tuple[float, float]:
    s, t = item.weights.shape[2:]
    return min(max(0.24 * t + 2.5, 4), 14), min(max(0.24 * s + 2, 3.5), 14)


def _large(figure: Any, item: Map, weights: Array, colours: Any) -> None:
    from matplotlib import colors

    ax = figure.add_subplot()
    most = float(weights.max()) or 1.0
    norm = colors.PowerNorm(0.5, vmin=0, vmax=most)
    shown = ax.imshow(weights, cmap=colours, norm=norm, aspect="equal", interpolation="nearest")
    s, t = weights.shape
    for axis, tokens, count, rotation in ((ax.xaxis, item.keys, t, 60), (ax.yaxis, item.queries, s, 0)):
        step = -(-count // MOST_LABELS)
        at = range(0, count, step)
        axis.set_ticks(
            list(at), [_plain(tokens[i][:24]) for i in at], rotation=rotation, fontsize=7 if count > 24 else 9
        )
    if ax.xaxis.get_ticklabels():
        for label in ax.xaxis.get_ticklabels():
            label.set(ha="right", rotation_mode="anchor")
    ax.tick_params(length=0, colors=INK)
    ax.spines[:].set_color("#c5cbd6")
    ax.set_xlabel("key", color=INK)
    ax.set_ylabel("query", color=INK)
    figure.colorbar(shown, ax=ax, label="weight", shrink=0.8, pad=0.02).outline.set_edgecolor("#c5cbd6")


def _plain(text: str) -> str:
    """Text that matplotlib shows as it is: no formulas, nothing that does not print."""
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text.replace("\\", "\\\\").replace("$", r"\$") if "$" in text else text
