"""How long ranking the candidates of a user takes, each way, on the same rows in turn.

    python -m benchmarks.ranking --data data/movielens --preset small --rows 4

The model is as it was initialised, with a tokenizer made from the data's titles: what it says is
worthless, and how long it takes to say it is not. All ways are timed in every round, in turn; the
figure is the median over the rounds, after one that does not count.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ilora.base_llm import build_base_llm
from ilora.config import AdapterSettings
from ilora.data.collation import Collator, RecommendationDataset
from ilora.data.folder import DataFolder
from ilora.data.synthetic import build_synthetic
from ilora.devices import choose_device
from ilora.encoders import build_encoder
from ilora.evaluation.ranking import WAYS, Way, score_candidates
from ilora.model import ILoRARecommender
from ilora.model_folder import load_llm
from ilora.tokens import load_tokenizer


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a data folder; default: made-up users")
    parser.add_argument("--preset", default="tiny", choices=("tiny", "small"))
    parser.add_argument("--rows", type=int, default=32, help="users of the test split")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = (
            build_synthetic(Path(place) / "data", seed=0)
            if options.data is None
            else DataFolder.open(options.data)
        )
        build_base_llm([folder], Path(place) / "llm", preset=options.preset)
        model = _model(folder, Path(place) / "llm")
    print(json.dumps(_measure(model, folder, options), indent=2))


def _model(folder: DataFolder, llm: Path) -> ILoRARecommender:
    device = choose_device(None)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    base = load_llm(str(llm), dtype, device)
    encoder = build_encoder("sasrec", len(folder.catalog), window=folder.window)
    return ILoRARecommender(base, load_tokenizer(llm), encoder, AdapterSettings()).eval()


def _measure(
    model: ILoRARecommender, folder: DataFolder, options: argparse.Namespace
) -> dict[str, Any]:
    builder = model.prompt_builder(folder.catalog, folder.domain, folder.window)
    rows = RecommendationDataset(folder, "test", builder, min_history=3, answer=False)
    del rows.rows[options.rows :]
    collator = Collator(model.tokenizer, len(folder.catalog), folder.window, "left")
    seconds: dict[Way, list[float]] = {way: [] for way in WAYS}
    sums: dict[Way, np.ndarray] = {}
    for _ in range(1 + options.rounds):
        for way in WAYS:
            scores = score_candidates(model, rows, collator, batch_size=options.batch_size, way=way)
            started = time.perf_counter()
            told = list(islice(scores, len(rows)))
            seconds[way].append(time.perf_counter() - started)
            sums[way] = np.stack([one.sum for one in told])
    medians = {way: statistics.median(times[1:]) for way, times in seconds.items()}
    lengths = [len(rows[i].input_ids) for i in range(len(rows))]
    tokens = [len(builder.answer_ids(c)) for i in range(len(rows)) for c in rows.candidates(i)]
    device = model.llm.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "model": options.preset,
        "data": folder.name,
        "rows": len(rows),
        "batch_size": options.batch_size,
        "tokens of a prompt, mean": round(float(np.mean(lengths)), 1),
        "tokens of a candidate, mean": round(float(np.mean(tokens)), 1),
        "seconds a row": {way: round(median / len(rows), 4) for way, median in medians.items()},
        "spread of the seconds": {
            way: [round(end(times[1:]) / len(rows), 4) for end in (min, max)]
            for way, times in seconds.items()
        },
        "times faster than separate passes": {
            way: round(medians[WAYS[-1]] / median, 2) for way, median in medians.items()
        },
        "largest difference to separate passes, nats": {
            way: float(np.abs(sums[way] - sums[WAYS[-1]]).max()) for way in WAYS[:-1]
        },
    }


if __name__ == "__main__":
    main()
