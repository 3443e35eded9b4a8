"""`make oracle`: random configs of every modelled family, the closed forms against the real model code under FakeTensor."""

from __future__ import annotations

import argparse
import random
import sys
import time
from typing import Any

from calculator.catalog import Model
from calculator.checks import tracing
from calculator.estimate import Estimate, estimate
from calculator.readers.hf_config import model_from_config
from tests.real.draws import MODELLED, QUANTS, draw

TOLERANCE = 4096  # bytes


def predicted(config: dict[str, Any], run: dict[str, Any]) -> Estimate:
    """The same pass by formula."""
    model = Model(model_from_config(config, id="random"), {"name": "random", "family": config["model_type"], "sources": {"config": "drawn"}})
    settings = {"phase": run["phase"], "attn_implementation": run["attn"], "logits_to_keep": run["logits_to_keep"], "cache_implementation": run["cache"]}
    return estimate(model, quant=QUANTS[run["dtype"]], context=run["seq"], sequences=run["batch"], engine="transformers", settings=settings)


def differences(said: Estimate, traced: dict[str, Any]) -> dict[str, int]:
    """Predicted less traced: activations, weights and their buffers, cache [bytes]."""
    component = said.ledger.component_bytes
    return {"activations": component("activations") - traced["act_bytes"], "weights": component("weights") - traced["weights_bytes"],
            "kv_cache": component("kv_cache") - traced["kv_bytes"]}  # fmt: skip


def main() -> int:
    """Exit 1 unless 99 % of each family are within 4 KiB."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", type=int, default=20, help="of each family")
    parser.add_argument("--seed", type=int, default=20261125)
    parser.add_argument("--families", nargs="*", default=MODELLED)
    parser.add_argument("--show", type=int, default=2, help="misses of a family to print")
    asked = parser.parse_args()
    start, failed = time.monotonic(), []
    for family in asked.families:
        rng, within, exact = random.Random(f"{asked.seed} {family}"), 0, 0
        for i in range(asked.configs):
            config, run = draw(rng, family)
            traced = tracing.trace(config, backend="fake_cuda", snapshots=True, **run)
            said = predicted(config, run)
            off = differences(said, traced)
            good = all(abs(nbytes) <= TOLERANCE for nbytes in off.values())
            within, exact = within + good, exact + (not any(off.values()))
            if not good and i - within < asked.show:
                print(f"off by {off}, activations {traced['act_bytes']:,}: {run} {config}")
                print("  traced", traced["peak_op"], traced["peak_module"], [(n, op) for n, op, _ in traced["peak_sizes"] if op != "weights"][:20])
                print("  said  ", said.peak.step.name, sorted(((b.nbytes, b.name) for b in said.peak.step.buffers), reverse=True)[:20])
        print(f"{family:16} {within} of {asked.configs} within 4 KiB, {exact} exact", flush=True)
        failed += [family] if within < 0.99 * asked.configs else []
    print(f"{len(asked.families)} families in {time.monotonic() - start:.0f} s; below 99 %: {', '.join(failed) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
