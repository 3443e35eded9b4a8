"""Start-up, one warm estimate, a large sweep: `make bench`. Peers' figures were taken on another 2-core machine."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from calculator.catalog import load_model
from calculator.estimate import estimate
from calculator.quantization import CATALOG
from calculator.sweep import add, sweep

MODELS = ("llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "llama-3.3-70b", "tinyllama-1.1b", "qwen2.5-0.5b", "qwen2.5-7b")


def best(run: Callable[[], object], repeats: int) -> float:
    """Shortest of several runs [s]."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def process_cpu_ms() -> float:
    """CPU time of `vram estimate llama-3.2-1b --json` as a whole process, the median of nine [ms]."""
    command = [sys.executable, "-c", "from calculator.cli import main; main()", "estimate", "llama-3.2-1b", "--json"]
    times = []
    for _ in range(9):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3)
    return sorted(times)[4]


def main() -> None:
    """Print the figures beside their limits."""
    print(f"vram estimate llama-3.2-1b --json   {process_cpu_ms():7.0f} ms CPU   limit 150   (gguf-parser-go 43, whichllm 230, hf-mem 270, llmfit 340, accelerate 4,500)")
    for quant in ("bf16", "Q4_K_M"):
        estimate("llama-3.2-1b", quant=quant)
        warm = best(lambda q=quant: [estimate("llama-3.2-1b", quant=q) for _ in range(200)], 10) / 200
        print(f"one warm estimate, {quant:8}         {warm * 1e6:7.0f} us       limit 200   (LLM-Viewer 104, llm-analysis 243)")
    models, contexts, sequences = [load_model(m) for m in MODELS], range(1024, 131_073, 1024), [2**i for i in range(8)]
    start = time.perf_counter()
    grid = sweep(models, CATALOG[:45], contexts, sequences)
    print(f"sweep of {grid.cells:,} cells             {time.perf_counter() - start:7.2f} s        limit 1")
    adding = best(lambda: add(grid.parts.static, grid.parts.dynamic, grid.parts.kind), 30)
    one = np.stack([table[0] for table in grid.parts.dynamic])[:, None]
    bare = best(lambda: grid.parts.static[:, :, None, None] + one, 30)
    print(f"its adding stage                    {adding * 1e3:7.2f} ms       {adding / bare:.1f} x a bare broadcast add, limit 3")


if __name__ == "__main__":
    main()
