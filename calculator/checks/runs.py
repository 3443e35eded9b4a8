"""Exact live bytes of more than one pass: generate(), and training steps, full or LoRA, with or without checkpointing.

Like tracing.py beside it, this needs torch and transformers (peft for LoRA) and nothing of this package. On CPU devices
only: generate() looks at values, which fake tensors lack, and autograd of a pretend CUDA tensor asks for a device guard
that a CPU build of torch lacks.
"""

from __future__ import annotations

from typing import Any

import torch
import tracing  # type: ignore[import-not-found]  # beside this file

METHODS = ("full", "lora")
LORA = {"r": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def trace_generate(config: dict[str, Any], *, prompt: int, tokens: int = 8, batch: int = 1, attn: str = "sdpa",
                   dtype: str = "bfloat16") -> dict[str, Any]:  # fmt: skip
    """Peak of greedy generation of `tokens` tokens after a prompt, really executed, its default cache included."""
    with tracing.backend_of("cpu") as device:
        model = tracing.build(config, dtype=dtype, attn=attn)
        for parameter in model.parameters():
            parameter.zero_()  # the bits of fresh memory may be no numbers
        ids = torch.ones(batch, prompt, dtype=torch.long)
        tracker = tracing.Tracker(device)
        tracker.hold([*model.parameters(), *model.buffers()], "weights")
        tracker.hold(ids, "input ids")
        tracker.watch(model)
        with tracker:
            tracker.start()
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        return {"peak_bytes": tracker.peak, "peak_op": tracker.peak_op}


def build(config: dict[str, Any], *, method: str, checkpointing: bool, dtype: str, attn: str) -> Any:
    """The model as a trainer prepares it, on the meta device. peft keeps adapters in float32 beside 16-bit weights."""
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; one of {', '.join(METHODS)}")
    model = tracing.build(config, dtype=dtype, attn=attn, device="meta")
    model.config.use_cache = False
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(**LORA))
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if method == "lora":  # else nothing before the first checkpoint asks for a gradient
            model.enable_input_require_grads()
    return model


def materialize(model: Any, device: str) -> None:
    """Give every meta parameter and buffer memory on a device; tied ones stay tied, buffers keep their values' size only."""
    made: dict[int, tuple[Any, Any]] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, old in store.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new: Any = torch.zeros(old.shape, dtype=old.dtype, device=device)
                    if isinstance(old, torch.nn.Parameter):
                        new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
                    made[id(old)] = (old, new)
                store[name] = made[id(old)][1]


def trace_training(config: dict[str, Any], *, method: str = "full", checkpointing: bool = False, batch: int = 1, seq: int = 1024,
                   attn: str = "sdpa", dtype: str = "bfloat16", backend: str = "fake_cpu") -> dict[str, Any]:  # fmt: skip
    """Bytes of the second step, when the optimizer's states exist. Gradients are dropped after each step.

    act_bytes = peak of forward and backward - weights - optimizer states - input ids, so gradients are in it as far as
    they exist at the peak; step_bytes the same for the optimizer's step.
    """
    model = build(config, method=method, checkpointing=checkpointing, dtype=dtype, attn=attn)
    with tracing.backend_of(backend) as device, torch.enable_grad():
        materialize(model, device)
        weights = [*model.parameters(), *model.buffers()]
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        ids = torch.zeros(batch, seq, dtype=torch.long, device=device)
        tracker = tracing.Tracker(device)
        tracker.hold(weights, "weights")
        tracker.hold(ids, "input ids")
        tracker.watch(model)
        with tracker:
            for _ in range(2):
                tracker.start()
                model(input_ids=ids, labels=ids).loss.backward()
                gradients = tracing.storage_bytes([p.grad for p in trained], device)
                peak = (tracker.peak, tracker.peak_op)
                tracker.start()
                optimizer.step()
                step = (tracker.peak, tracker.peak_op)
                optimizer.zero_grad(set_to_none=True)
        states = tracing.storage_bytes(dict(optimizer.state), device)
        held_weights, ids_bytes = tracing.storage_bytes(weights, device), tracing.storage_bytes(ids, device)
        held = held_weights + states + ids_bytes
        return {
            "weights_bytes": held_weights, "trained_bytes": tracing.storage_bytes(trained, device), "gradient_bytes": gradients, "optimizer_bytes": states,
            "input_bytes": ids_bytes, "peak_bytes": max(peak[0], step[0]), "act_bytes": peak[0] - held, "step_bytes": step[0] - held,
            "peak_op": peak[1], "step_op": step[1],
        }  # fmt: skip
