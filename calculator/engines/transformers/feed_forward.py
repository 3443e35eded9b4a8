"""Feed-forward layers: gated or not, of one product or two, and experts with their routers.

Source: transformers v5.23.0, the MLP and the sparse block of each family's modeling file, named in families.py;
integrations/moe.py grouped_mm_experts_forward.
"""

from __future__ import annotations

from calculator.engines.transformers.run import Run
from calculator.engines.transformers.tape import Tensor


def gated(run: Run, width: str = "f") -> Tensor:
    """down(act(gate(x)) up(x))."""
    run.at("mlp")
    gate = run.new("gate", "n" + width + "e")
    active = run.new("act(gate)", "n" + width + "e")
    del gate
    up = run.new("up", "n" + width + "e")
    product = run.new("act(gate) × up", "n" + width + "e")
    del active, up
    out = run.new("feed-forward output", "nhe")
    del product
    return out


def gated_fused(run: Run, width: str = "f") -> Tensor:
    """Gate and up in one product, of which both parts keep it alive."""
    run.at("mlp")
    both = run.new("gate and up", "n" + width + "e", 2)
    active = run.new("act(gate)", "n" + width + "e")
    product = run.new("act(gate) × up", "n" + width + "e")
    del active
    out = run.new("feed-forward output", "nhe")
    del product, both
    return out


def plain(run: Run, width: str = "f") -> Tensor:
    """down(act(up(x)))."""
    run.at("mlp")
    up = run.new("up", "n" + width + "e")
    active = run.new("act(up)", "n" + width + "e")
    del up
    out = run.new("feed-forward output", "nhe")
    del active
    return out


def squared(run: Run, width: str = "f") -> Tensor:
    """down(relu(up(x)) squared)."""
    run.at("mlp")
    up = run.new("up", "n" + width + "e")
    active = run.new("relu(up)", "n" + width + "e")
    product = run.new("relu(up) squared", "n" + width + "e")
    del up, active
    out = run.new("feed-forward output", "nhe")
    del product
    return out


class Routing:
    """What a block of experts holds while they run: logits, the weights and the ids of the experts of each token."""

    def __init__(self, logits: Tensor, weights: Tensor, ids: Tensor, wide: bool) -> None:
        self.held = (logits, weights, ids)
        self.wide = wide  # weights stay float32, which makes the weighted products float32 too


def route_softmax(run: Run, *, wide: bool = False) -> Routing:
    """Softmax over all experts in float32, the best of them, scaled to a sum of one."""
    run.at("router")
    logits = run.new("router logits", "nEe")
    copy = run.new("router logits in float32", "nE4") if run.half else None
    probabilities = run.new("probabilities of experts", "nE4")
    del copy
    weights, ids = run.new("routing weights", "nu4"), run.new("expert ids", "nu8")
    run.new("sums", "n4")
    if not wide and run.half:
        weights = run.new("routing weights", "nue")
    del probabilities
    return Routing(logits, weights, ids, wide)


def route_wide(run: Run) -> Routing:
    """Mixtral: the same, its weights left in float32."""
    return route_softmax(run, wide=True)


def route_best(run: Run) -> Routing:
    """gpt-oss: the best logits, and a softmax over them, in the model's type."""
    run.at("router")
    logits = run.new("router logits", "nEe")
    best, ids = run.new("best logits", "nue"), run.new("expert ids", "nu8")
    weights = run.new("routing weights", "nue")
    del best
    return Routing(logits, weights, ids, False)


def route_best_float(run: Run) -> Routing:
    """Granite: the same in float32, cast back."""
    run.at("router")
    own = run.new("router logits", "nEe")
    logits = run.new("router logits in float32", "nE4") if run.half else own
    del own
    best, ids = run.new("best logits", "nu4"), run.new("expert ids", "nu8")
    soft = run.new("softmax", "nu4")
    weights = run.new("routing weights", "nue") if run.half else soft
    del best, soft
    return Routing(logits, weights, ids, False)


def route_sigmoid(run: Run) -> Routing:
    """DeepSeek V3, GLM-4: float32 products and sigmoids, a bias for the choice, groups."""
    run.at("router")
    wide = [run.new("hidden states in float32", "nh4"), run.new("router weight in float32", "Eh4")] if run.half else []
    logits = run.new("router logits", "nE4")
    wide.clear()
    scores = run.new("scores", "nE4")
    chosen = run.new("scores for the choice", "nE4")
    masked = run.new("scores of the chosen groups", "nE4"), run.new("mask of groups", "nE4"), run.new("mask of groups, bool", "nE", 2)
    del chosen
    values, ids = run.new("best scores", "nu4"), run.new("expert ids", "nu8")
    del values
    weights = run.new("routing weights", "nu4", 2)
    del masked, scores, weights
    return Routing(logits, run.new("routing weights", "nu4"), ids, True)


def route_deepseek_v2(run: Run) -> Routing:
    """DeepSeek V2: float32 products, a softmax, the best of them scaled."""
    run.at("router")
    wide = [run.new("hidden states in float32", "nh4"), run.new("router weight in float32", "Eh4")] if run.half else []
    logits = run.new("router logits", "nE4")
    wide.clear()
    scores = run.new("scores", "nE4")
    weights, ids = run.new("routing weights", "nu4", 2), run.new("expert ids", "nu8")
    del scores, weights
    return Routing(logits, run.new("routing weights", "nu4"), ids, True)


def route_minimax(run: Run) -> Routing:
    """MiniMax M2: sigmoids in float32 and a bias for the choice."""
    run.at("router")
    logits = run.new("router logits", "nEe")
    copy = run.new("router logits in float32", "nE4") if run.half else None
    scores = run.new("scores", "nE4")
    del copy
    chosen = run.new("scores for the choice", "nE4")
    values, ids = run.new("best scores", "nu4"), run.new("expert ids", "nu8")
    weights = run.new("routing weights", "nu4")
    del values, chosen, scores
    return Routing(logits, weights, ids, True)


def route_ernie(run: Run) -> Routing:
    """ERNIE 4.5: the router's weight is float32; a softmax, a bias for the choice, weights cast back."""
    run.at("router")
    wide = run.new("hidden states in float32", "nh4") if run.half else None
    logits = run.new("router logits", "nE4")
    del wide
    scores = run.new("probabilities of experts", "nE4")
    chosen = run.new("scores for the choice", "nE4")
    values, ids = run.new("best scores", "nu4"), run.new("expert ids", "nu8")
    del chosen, values
    weights = run.new("routing weights in float32", "nu4")
    del scores
    weights = run.new("routing weights in float32", "nu4")
    if run.half:
        weights = run.new("routing weights", "nue")
    return Routing(logits, weights, ids, False)


def route_hunyuan(run: Run) -> Routing:
    """Hunyuan: the router's weight is float32, and so are the routing weights."""
    run.at("router")
    wide = run.new("hidden states in float32", "nh4") if run.half else None
    logits = run.new("router logits", "nE4")
    scores = run.new("probabilities of experts", "nE4")
    weights, ids = run.new("routing weights", "nu4"), run.new("expert ids", "nu8")
    del scores, wide
    return Routing(logits, weights, ids, True)


def experts(run: Run, routing: Routing, *, biased: bool = False) -> Tensor:
    """Tokens gathered for their experts, products of all of them, and the way back; `biased`: gpt-oss, with its own gate."""
    run.at("experts")
    w = "4" if routing.wide else "e"
    order = run.new("expert ids, sorted, and their order", "nu8", 2)
    tokens = run.new("order of tokens", "nu8")
    gathered = run.new("gathered tokens", "nuhe")
    del tokens
    weights = run.new("routing weights, sorted", "nu" + w)
    narrow = run.new("expert ids as int32", "nu4")
    counts = run.new("tokens of each expert, offsets", "E8")
    bias = run.new("biases of gate and up", "nuge", 2) if biased else None
    both = run.new("gate and up of experts", "nuge", 2)
    product = _clamped_gate(run) if biased else _gate(run)
    del both
    if biased:
        bias = run.new("biases of down", "nuhe")
    down = run.new("output of experts", "nuhe")
    del product
    weighted = run.new("output, weighted", "nuh" + w)
    inverse = run.new("inverse order", "nu8")
    run.new("places", "nu8")
    weighted = run.new("output, in the order of tokens", "nuh" + w)
    total = run.new("output, summed", "nh" + w)
    if routing.wide and run.half:
        total = run.new("feed-forward output", "nhe")
    del order, gathered, weights, narrow, counts, bias, down, weighted, inverse
    return total


def _gate(run: Run) -> Tensor:
    active = run.new("act(gate)", "nuge")
    product = run.new("act(gate) × up", "nuge")
    del active
    return product


def _clamped_gate(run: Run) -> Tensor:
    """(clamp(up) + 1) clamp(gate) sigmoid(alpha gate)."""
    clamped = run.new("gate and up, clamped", "nuge", 2)
    scaled = run.new("scaled gate", "nuge")
    sigmoid = run.new("sigmoid", "nuge")
    del scaled
    glu = run.new("gate × sigmoid", "nuge")
    del sigmoid
    more = run.new("up + 1", "nuge")
    product = run.new("gated output", "nuge")
    del clamped, glu, more
    return product
