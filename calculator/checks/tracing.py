"""Exact live bytes of a real transformers forward pass: executed, or under FakeTensor on a pretend device.

Needs torch and transformers only, and imports nothing of this package: `validation/probe.py` loads it from its file on
machines that have no more. Every tensor's storage is followed from the operator that makes it to its release,
so the peak is what an allocator is asked for: no rounding, no cached blocks, no scratch inside a kernel.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import weakref
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
BACKENDS = ("fake_cuda", "fake_cpu", "cpu", "cuda")


def tensors_in(thing: Any, depth: int = 9) -> Iterator[torch.Tensor]:
    """Plain tensors inside containers, objects and tensor subclasses."""
    if isinstance(thing, torch.Tensor):
        if is_traceable_wrapper_subclass(thing):
            for name in thing.__tensor_flatten__()[0]:
                yield from tensors_in(getattr(thing, name), depth)
        else:
            yield thing
            for name in ("SCB", "CB", "quant_state"):  # bitsandbytes keeps its scales beside the tensor
                yield from tensors_in(thing.__dict__.get(name), depth - 1)
    elif depth and isinstance(thing, dict):
        for value in thing.values():
            yield from tensors_in(value, depth - 1)
    elif depth and isinstance(thing, (list, tuple)):
        for value in thing:
            yield from tensors_in(value, depth - 1)
    elif depth and type(thing).__module__.split(".")[0] in ("transformers", "bitsandbytes"):
        yield from tensors_in(getattr(thing, "__dict__", {}), depth - 1)


def storage_bytes(thing: Any, device: str) -> int:
    """Bytes of the distinct storages on one kind of device."""
    found = {id(s): s for s in (t.untyped_storage() for t in tensors_in(thing) if t.device.type == device)}
    return sum(storage.nbytes() for storage in found.values())


class Tracker(TorchDispatchMode):
    """Follows live storages of one kind of device: live and peak bytes, the operator and the module at the peak."""

    def __init__(self, device: str, *, snapshots: bool = False) -> None:
        super().__init__()
        self.device, self.snapshots = device, snapshots
        self.live = self.peak = self.operators = 0
        self.peak_op = self.peak_module = ""
        self.peak_sizes: list[tuple[int, str, str]] = []
        self.modules: list[str] = []
        self._known: dict[int, tuple[weakref.ref[Any], int, str]] = {}

    def add(self, tensor: torch.Tensor, label: str) -> None:
        """Count a tensor's storage once, until it is released."""
        if tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        key, nbytes = id(storage), storage.nbytes()
        if key in self._known:
            ref, before, first = self._known[key]
            if before != nbytes:  # resized in place
                self.live += nbytes - before
                self._known[key] = (ref, nbytes, first)
            return
        self._known[key] = (weakref.ref(storage, functools.partial(self._release, key)), nbytes, label)
        self.live += nbytes

    def _release(self, key: int, _: Any) -> None:
        self.live -= self._known.pop(key)[1]

    def hold(self, thing: Any, label: str) -> None:
        """Count what exists before the pass."""
        for tensor in tensors_in(thing):
            self.add(tensor, label)

    def start(self) -> None:
        """Forget the peak so far."""
        self.peak, self.peak_op, self.peak_module = self.live, "", ""

    def watch(self, model: torch.nn.Module) -> None:
        """Keep a stack of module names while the model runs."""
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: self.modules.append(name))
            module.register_forward_hook(lambda *_: self._leave(), always_call=True)

    def _leave(self) -> None:
        self.modules.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # a quantized subclass first: its inner operators come back here
        out = func(*args, **(kwargs or {}))
        self.operators += 1
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                for tensor in tensors_in(leaf, 0):
                    self.add(tensor, str(func) if self.snapshots else "")
        if self.live > self.peak:
            self.peak, self.peak_op = self.live, str(func)
            self.peak_module = self.modules[-1] if self.modules else ""
            if self.snapshots:
                self.peak_sizes = [(n, label, str(func)) for _, n, label in self._known.values()]
        return out


class _WithoutCuda(TorchFunctionMode):
    """Methods that ask for a CUDA device guard, which a CPU build of torch lacks, written as plain operators."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.__getitem__ and args[0].device.type == "cuda":
            return _index(*args)
        if func is torch.Tensor.contiguous and args[0].device.type == "cuda" and not kwargs:
            return args[0] if args[0].is_contiguous() else aten.clone(args[0], memory_format=torch.contiguous_format)
        if func is torch.Tensor.__setitem__ and args[0].device.type == "cuda" and isinstance(args[1], torch.Tensor):
            return aten.index_put_(args[0], [args[1]], args[2])
        if func is torch.Tensor.__setitem__ and args[0].device.type == "cuda" and isinstance(args[1], tuple) and isinstance(args[1][-1], torch.Tensor):
            return aten.index_put_(args[0], [*(None for _ in args[1][:-1]), args[1][-1]], args[2])
        if func is torch.Tensor.copy_ and args[0].device.type == "cuda":
            return aten.copy_(*args)
        if func is torch.Tensor.__invert__ and args[0].device.type == "cuda":
            return aten.bitwise_not(*args)
        return func(*args, **kwargs)


def _index(tensor: torch.Tensor, key: Any) -> torch.Tensor:
    """`tensor[key]` for integers, slices, None, ... and index tensors."""
    keys = list(key) if isinstance(key, tuple) else [key]
    taken = sum(1 for k in keys if k is not None and k is not Ellipsis)
    if Ellipsis in [k for k in keys if not isinstance(k, torch.Tensor)]:
        at = next(i for i, k in enumerate(keys) if k is Ellipsis)
        keys[at : at + 1] = [slice(None)] * (tensor.dim() - taken)
    out, dim, picks = tensor, 0, {}
    for k in keys:
        if k is None:
            out, dim = aten.unsqueeze(out, dim), dim + 1
        elif isinstance(k, slice):
            if k != slice(None):
                out = aten.slice(out, dim, k.start, k.stop, k.step or 1)
            dim += 1
        elif isinstance(k, int):
            out = aten.select(out, dim, k)
        else:
            picks[dim], dim = torch.as_tensor(k, device=tensor.device), dim + 1
    return aten.index(out, [picks.get(i) for i in range(max(picks) + 1)]) if picks else out


def _cuda_sdpa(query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
               is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> Any:  # fmt: skip
    """scaled_dot_product_attention with the kernel that CUDA would choose: flash, memory-efficient, math.

    Source: pytorch v2.13 aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, attention.cpp.
    """
    half, dim, same = query.element_size() == 2, query.shape[-1], query.shape[1] == key.shape[1]
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        zero = torch.zeros((), dtype=query.dtype, device=query.device)
        attn_mask = torch.where(attn_mask, zero, torch.full_like(zero, float("-inf")))
    square = not is_causal or query.shape[2] == key.shape[2]
    if half and attn_mask is None and dim == value.shape[-1] <= 256 and (same or enable_gqa) and square:
        pad = -dim % 8
        scale = dim**-0.5 if scale is None else scale
        q, k, v = (aten.constant_pad_nd(t, [0, pad]) if pad else t for t in (query, key, value))
        out = aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, False, scale=scale)[0]
        return aten.slice(out, -1, 0, dim) if pad else out
    if same and dim % (8 if half else 4) == 0 and value.shape[-1] % (8 if half else 4) == 0:
        if attn_mask is not None:
            if any(stride % 16 for stride in attn_mask.stride()[:-1]):
                length = attn_mask.shape[-1]
                attn_mask = aten.slice(aten.constant_pad_nd(attn_mask, [0, 16 - length % 16]), -1, 0, length)
            attn_mask = attn_mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        return aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, False, dropout_p, is_causal, scale=scale
        )[0]
    return aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]


@contextlib.contextmanager
def backend_of(name: str) -> Iterator[str]:
    """Enter a backend; gives the device type that tensors are made on."""
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is unknown; one of {', '.join(BACKENDS)}")
    device = "cuda" if name.endswith("cuda") else "cpu"
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if name.startswith("fake"):
            from torch._subclasses.fake_tensor import FakeTensorMode

            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            if name == "fake_cuda":
                if not torch.backends.cuda.is_built():
                    stack.enter_context(_WithoutCuda())
                    asked = torch.cuda.get_device_capability  # experts ask which grouped product there is
                    torch.cuda.get_device_capability = lambda *_: (8, 0)
                    stack.callback(setattr, torch.cuda, "get_device_capability", asked)
                true_sdpa, F.scaled_dot_product_attention = F.scaled_dot_product_attention, _cuda_sdpa
                stack.callback(setattr, F, "scaled_dot_product_attention", true_sdpa)
        yield device


def build(config: dict[str, Any], *, layers: int | None = None, dtype: str = "bfloat16", attn: str = "sdpa",
          device: str = "cpu") -> Any:  # fmt: skip
    """A causal language model from a config alone, its weights not initialized (random bits of fresh memory)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        from transformers.initialization import no_init_weights
    except ImportError:
        from transformers.modeling_utils import no_init_weights

    # a copy, because transformers writes into the nested dicts that it is given
    settings = {k: copy.deepcopy(v) for k, v in config.items() if k not in ("architectures", "torch_dtype", "dtype")}
    if layers:
        settings["num_hidden_layers"] = layers
        settings.pop("layer_types", None)
    with no_init_weights(), torch.device(device):
        made = AutoConfig.for_model(**settings)
        model = AutoModelForCausalLM.from_config(made, dtype=DTYPES[dtype], attn_implementation=attn)
    model.tie_weights()
    return model.eval()


def make_cache(config: Any, kind: str, length: int) -> Any:
    """An empty KV cache: dynamic, static (of `length` tokens), or quantized as backend-bits, such as quanto-4."""
    from transformers import DynamicCache, QuantizedCache, StaticCache

    if kind == "dynamic":
        return DynamicCache(config=config)
    if kind == "static":
        return StaticCache(config=config, max_cache_len=length)
    backend, bits = kind.split("-")
    axis = 1 if backend == "hqq" else 0
    return QuantizedCache(backend=backend, config=config, nbits=int(bits), axis_key=axis, axis_value=axis)


def fill_cache(config: Any, cache: Any, batch: int, tokens: int, dtype: torch.dtype, device: str) -> None:
    """Put `tokens` tokens of each sequence in every layer."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    widths = (dim, dim)
    if latent := getattr(config, "kv_lora_rank", None):  # one compressed row and a rotary key for all heads
        heads, widths = 1, (latent, config.qk_rope_head_dim)
    for layer in range(config.num_hidden_layers):
        cache.update(*(torch.zeros(batch, heads, tokens, width, dtype=dtype, device=device) for width in widths), layer)


def trace(config: dict[str, Any], *, phase: str = "prefill", batch: int = 1, seq: int = 1024, attn: str = "sdpa",
          logits_to_keep: int = 1, dtype: str = "bfloat16", cache: str = "dynamic", backend: str = "fake_cuda",
          layers: int | None = None, snapshots: bool = False) -> dict[str, Any]:  # fmt: skip
    """Bytes of one forward pass: `seq` tokens at once (prefill), or one beside `seq` cached ones (decode).

    act_bytes = peak - weights - input ids - KV cache at the end. No attention mask is given: fake tensors make
    transformers keep one that a real run drops.
    """
    with backend_of(backend) as device:
        model = build(config, layers=layers, dtype=dtype, attn=attn, device=device)
        return trace_model(model, device, phase=phase, batch=batch, seq=seq, logits_to_keep=logits_to_keep,
                           cache=cache, snapshots=snapshots)  # fmt: skip


def trace_model(model: Any, device: str, *, phase: str, batch: int, seq: int, logits_to_keep: int = 1,
                cache: Any = "dynamic", snapshots: bool = False) -> dict[str, Any]:  # fmt: skip
    """The same of a model that exists; call it inside `backend_of`. `cache` may be an empty cache of any kind."""
    new = seq if phase == "prefill" else 1
    ids = torch.zeros(batch, new, dtype=torch.long, device=device)
    held = make_cache(model.config, cache, seq if phase == "prefill" else seq + 1) if isinstance(cache, str) else cache
    if phase != "prefill":
        fill_cache(model.config, held, batch, seq, model.dtype, device)
    weights = [*model.parameters(), *model.buffers()]
    tracker = Tracker(device, snapshots=snapshots)
    tracker.hold(weights, "weights")
    tracker.hold(ids, "input ids")
    tracker.hold(held, "kv cache")
    tracker.watch(model)
    with tracker:
        tracker.start()
        out = model(input_ids=ids, past_key_values=held, use_cache=True, logits_to_keep=logits_to_keep)
    del out
    weights_bytes, kv = storage_bytes(weights, device), storage_bytes(held, device)
    result = {
        "weights_bytes": weights_bytes, "input_bytes": ids.untyped_storage().nbytes(), "kv_bytes": kv,
        "peak_bytes": tracker.peak, "act_bytes": tracker.peak - weights_bytes - 8 * batch * new - kv,
        "peak_op": tracker.peak_op, "peak_module": tracker.peak_module, "operators": tracker.operators,
    }  # fmt: skip
    if snapshots:
        result["peak_sizes"] = sorted(tracker.peak_sizes, reverse=True)
    return result
