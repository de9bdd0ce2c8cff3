"""How much of a result is the order in which the candidates stood?

The same users are asked again with the same candidates in other orders. A method that reads titles
and not places gives the same answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ilora.data.collation import RecommendationDataset
from ilora.evaluation.statistics import bootstrap_interval
from ilora.evaluation.titles import fold_title

Predict = Callable[[RecommendationDataset], list[dict[str, Any]]]


def measure_orders(
    predict: Predict,
    rows: RecommendationDataset,
    predictions: list[dict[str, Any]],
    orders: int,
    *,
    seed: int,
) -> dict[str, Any]:
    """Ask again in ``orders - 1`` shuffled orders; the first is the one that was measured already.

    Every line of ``predictions`` gets ``named_by_order``, the item chosen in each order.

    Returns:
        ``orders``; ``hit_ratio_at_1``: one for each; their ``mean``, ``sd`` (of the orders, with
        ``orders - 1`` in the denominator), ``min`` and ``max``; ``changed``: the share of rows
        whose answer is not the same title in all orders, ``changed_ci95`` its interval over rows.
    """
    asked = [predictions]
    asked += [predict(rows.reordered((seed, order))) for order in range(1, orders)]
    ratios = [float(np.mean([line["hit"] for line in lines])) for lines in asked]
    changed = []
    for index, line in enumerate(predictions):
        named = [lines[index]["named"] for lines in asked]
        line["named_by_order"] = named
        titles = {None if n is None else fold_title(rows.builder.titles[n]) for n in named}
        changed.append(float(len(titles) > 1))
    return {
        "orders": orders,
        "hit_ratio_at_1": ratios,
        "mean": float(np.mean(ratios)),
        "sd": float(np.std(ratios, ddof=1)),
        "min": min(ratios),
        "max": max(ratios),
        "changed": float(np.mean(changed)),
        "changed_ci95": list(bootstrap_interval(changed, seed=seed)),
    }
