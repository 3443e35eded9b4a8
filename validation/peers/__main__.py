"""Other people's calculators held against the recorded runs, on the quantities, engines and formats that they claim.

    python validation/peers      prints the table and writes validation/peers.json

Nothing here imports `calculator`: the peers can't borrow from it, nor it from them.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
sys.path.insert(0, str(HERE))

from peers.claims import PEERS, UNAVAILABLE  # noqa: E402
from peers.runs import asked, measured, model_buffers, records  # noqa: E402

METHOD = (
    "Error = |peer / record - 1|, in percent; exact counts equal bytes; p95 is the value at index int(0.95 n). Rows are those "
    "of the families llama, mistral and qwen2, where our formulas answer too; kinds of evidence are never pooled. A peer is asked "
    "only what it claims. A decode pass holds one token more than its context. Total of a transformers pass = weights + KV cache + "
    "activations; of llama.cpp on a CUDA device = model buffer (llama-cpp-buffers, same model and format) + KV cache + compute "
    "buffer. No record holds the CUDA context: a peer's separate allowance for it is left out."
)


def document() -> dict[str, Any]:
    """Every peer's errors, by quantity, engine, suite and kind of evidence."""
    runs = records()
    buffers = model_buffers(runs)
    errors: dict[tuple[str, str, str, str, int], list[float]] = {}
    for record in runs:
        run = asked(record)
        for quantity, value in measured(record, buffers):
            for place, peer in enumerate(PEERS):
                claim = peer.claims.get(quantity)
                answer = claim.formula(run) if claim else None
                if answer is not None:
                    key = (quantity, record["engine"], record["suite"], record["evidence"], place)
                    errors.setdefault(key, []).append(abs(round(answer) / value - 1) * 100)
    return {
        "method": METHOD,
        "rows": [_row(key, sorted(found)) for key, found in sorted(errors.items())],
        "unavailable": [{"peer": name, "reason": reason} for name, reason in UNAVAILABLE.items()],
    }


def _row(key: tuple[str, str, str, str, int], errors: list[float]) -> dict[str, Any]:
    quantity, engine, suite, evidence, place = key
    peer, n = PEERS[place], len(errors)
    return {
        "peer": peer.name, "source": peer.source, "quantity": quantity, "engine": engine, "suite": suite, "evidence": evidence,
        "n": n, "exact_percent": _rounded(100 * errors.count(0.0) / n), "median_percent": _rounded(statistics.median(errors)),
        "p95_percent": _rounded(errors[min(n - 1, int(0.95 * n))]), "worst_percent": _rounded(errors[-1]),
        "not_counted": peer.claims[quantity].not_counted,
    }  # fmt: skip


def _rounded(percent: float) -> float:
    return round(percent, 6)


def text() -> str:
    """validation/peers.json."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    written = text()
    (HERE / "peers.json").write_text(written, encoding="utf-8")
    for row in json.loads(written)["rows"]:
        shown = " ".join(f"{row[name]:>10.2f}" for name in ("exact_percent", "median_percent", "p95_percent", "worst_percent"))
        place = f"{row['quantity']:<15}{row['engine']:<14}{row['suite']:<20}{row['evidence']:<6}"
        print(f"{place}{row['peer']:<28}{row['n']:>6} {shown}")
