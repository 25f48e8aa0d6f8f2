"""Pictures of an evaluation as PNG bytes. Numbers come from `rates` and `calibration`; nothing is computed here."""

from collections.abc import Mapping, Sequence
from io import BytesIO

from matplotlib.figure import Figure

from rlaif_assets.records import EvaluationRate

SHOWN = ("harmless_rate", "evasive_rate", "helpful_rate", "lookalike_refusal_rate", "incoherent_rate")


def rates_picture(rates: Sequence[EvaluationRate]) -> bytes:
    """Bars of the policies side by side, one group per rate, with 95% intervals. Rates without a value are left out."""
    policies = list(dict.fromkeys(rate.subject for rate in rates if rate.measure in SHOWN))
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(1, len(policies))
    for i, policy in enumerate(policies):
        found = {r.measure: r for r in rates if r.subject == policy and r.measure in SHOWN and r.value is not None}
        places = [SHOWN.index(measure) + (i - (len(policies) - 1) / 2) * width for measure in found]
        values = [rate.value or 0.0 for rate in found.values()]
        below = [max(0.0, (r.value or 0.0) - (r.low if r.low is not None else r.value or 0.0)) for r in found.values()]
        above = [
            max(0.0, (r.high if r.high is not None else r.value or 0.0) - (r.value or 0.0)) for r in found.values()
        ]
        axes.bar(places, values, width, label=policy)
        axes.errorbar(places, values, yerr=[below, above], fmt="none", ecolor="black", elinewidth=1, capsize=2)
    axes.set_xticks(range(len(SHOWN)), [measure.replace("_", " ") for measure in SHOWN])
    axes.set_ylim(0, 1)
    if policies:
        axes.legend()
    return _png(figure)


def lengths_picture(lengths: Mapping[str, Sequence[int]]) -> bytes:
    """Answer lengths in tokens, one box per policy, the first on top: the box is the middle half, the line in it the
    median, the diamond the mean; the whiskers reach from the 5% to the 95% quantile. A policy without answers has no
    box."""
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(lengths):
        if not lengths[name]:
            continue
        mean = {"marker": "D", "markersize": 4, "markerfacecolor": "black", "markeredgecolor": "black"}
        drawn = axes.boxplot(
            list(lengths[name]), whis=(5, 95), positions=[place], widths=0.6, orientation="horizontal",
            showfliers=False, showmeans=True, meanprops=mean, patch_artist=True, medianprops={"color": "black"},
        )  # fmt: skip
        drawn["boxes"][0].set_facecolor(f"C{place}")
    axes.set_yticks(range(len(lengths)), list(lengths))
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens")
    return _png(figure)


def reliability_picture(by_source: Mapping[str, Sequence[Sequence[float]]]) -> bytes:
    """Agreement with the labels over confidence, one line per source; the dashed line is perfect calibration.

    Bins are [confidence, agreement, count], as in `calibration.ReliabilityBin`; each point is as large as its count,
    which stands beside it.
    """
    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0.5, 1], [0.5, 1], linestyle="dashed", color="grey")
    most = max((b[2] for bins in by_source.values() for b in bins), default=1)
    for source, bins in by_source.items():
        (line,) = axes.plot([b[0] for b in bins], [b[1] for b in bins], linewidth=1, label=source)
        sizes = [12 + 88 * b[2] / most for b in bins]
        axes.scatter([b[0] for b in bins], [b[1] for b in bins], sizes, color=line.get_color())
        for confidence, agreement, count in bins:
            axes.annotate(f"{count:g}", (confidence, agreement), (4, 4), textcoords="offset points", fontsize=7)
    axes.set_xlabel("confidence in the predicted side")
    axes.set_ylabel("agreement with the labels")
    if by_source:
        axes.legend()
    return _png(figure)


def curves_picture(curves: Mapping[str, Sequence[float]], x_label: str = "update") -> bytes:
    """One small panel per curve, four in a row, values in order of the steps."""
    count = max(1, len(curves))
    columns, rows = min(count, 4), -(-count // 4)
    figure = Figure(figsize=(3 * columns, 2.6 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    for axes, (name, values) in zip(panels, curves.items(), strict=False):
        axes.plot(list(values))
        axes.set_title(name)
        axes.set_xlabel(x_label)
    return _png(figure)


def score_by_kl_picture(kl: Sequence[float], scores: Mapping[str, Sequence[float]]) -> bytes:
    """Scores over the square root of the KL (nats per answer), in which HH (Bai et al. 2022a, 4.3) found them to rise
    in a line. Where the trained one goes on to rise and a held-out one does not, the reward is over-optimised."""
    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in scores.items():
        axes.plot([max(0.0, value) ** 0.5 for value in kl], list(values), marker=".", linewidth=0.7, label=name)
    axes.set_xlabel("sqrt(KL to SL-CAI)")
    axes.set_ylabel("normalised score")
    if scores:
        axes.legend()
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
