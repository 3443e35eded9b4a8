"""The graph of one micro-batch, from token ids to logits.

Source: llama.cpp @0c1e57098 src/llama-graph.cpp (build_inp_embd L2376, build_ffn L1762, build_moe_ffn L2007) and
src/models/{llama,qwen2,qwen3,qwen3moe,gemma2,gemma3,phi3}.cpp.
"""

from __future__ import annotations

from calculator.engines.llama_cpp.attention import Attention
from calculator.engines.llama_cpp.families import Layer
from calculator.engines.llama_cpp.graph import F32, I32, Graph, Tensor


class Builder(Attention):
    """Builds one graph."""

    def build(self) -> Graph:
        """The whole pass."""
        g, m, b, family = self.g, self.m, self.b, self.family
        tokens = g.input("inp_tokens", I32, b.tokens)
        x = g.get_rows("embd", self.weight("token_embd", m.hidden, m.vocabulary), tokens)
        g.forward(x)
        if b.release.embedding_input:
            g.forward(g.input("inp_embd", F32, m.hidden, b.tokens))
        if family.embedding_scaled:
            x = g.like("inp_scaled", "scale", x)
        positions = g.input("inp_pos", I32, b.tokens)
        inputs = [self.attention_inputs(cache) for cache in self.caches[: 1 + family.windows]]
        out_ids = g.input("out_ids", I32, b.outputs)
        for i, layer in enumerate(self.layers):
            self.enter(layer)
            cur = self.norm("attn_norm", x)
            cur = self.attention(cur, positions, inputs[layer.windowed], layer)
            if i == len(self.layers) - 1:
                cur = g.get_rows("attn_out", cur, out_ids)
                x = g.get_rows("layer_inp", x, out_ids)
            x = self.feed_forward(cur, x, layer)
            x.ends_layer = True
        self.enter(self.output)
        cur = self.norm("result_norm", x, pin=False)
        cur.is_output = True
        cur = g.mul_mat("result_output", self.weight("output", m.hidden, m.vocabulary), cur)
        if family.logit_softcap:
            cur = self.softcap("result_output", cur)
        cur.is_output = True
        g.forward(cur)
        return g

    def feed_forward(self, cur: Tensor, x: Tensor, layer: Layer) -> Tensor:
        """Both residual sums and what lies between; experts where the model has some."""
        g, m, family = self.g, self.m, self.family
        if family.post_norms:
            cur = self.norm("attn_post_norm", cur)
        residual = g.like("ffn_inp", "add", cur, x)
        cur = self.norm("ffn_norm", residual)
        cur = self.experts(cur, layer) if m.experts else self.dense(cur)
        if family.post_norms:
            cur = self.norm("ffn_post_norm", cur, pin=False)
        a, b = (residual, cur) if family.residual_first else (cur, residual)
        return g.like("l_out", "add", a, b)

    def dense(self, cur: Tensor) -> Tensor:
        """Up, gate, their product, down."""
        g, m = self.g, self.m
        f = m.feed_forward
        if self.family.fused_gate_up:
            both = g.mul_mat("ffn_up", self.weight("ffn_up", m.hidden, 2 * f), cur)
            cur = g.new("ffn_swiglu", "glu", (f, *both.ne[1:]), both)
        else:
            up = self.biased("ffn_up", g.mul_mat("ffn_up", self.weight("ffn_up", m.hidden, f), cur))
            gate = self.biased("ffn_gate", g.mul_mat("ffn_gate", self.weight("ffn_gate", m.hidden, f), cur))
            cur = self.gated("ffn", gate, up)
        return self.biased("ffn_down", g.mul_mat("ffn_down", self.weight("ffn_down", f, m.hidden), cur))

    def gated(self, name: str, gate: Tensor, up: Tensor) -> Tensor:
        """Activation of the gate times up."""
        g = self.g
        if self.b.release.fused_glu:
            return g.like(name + "_swiglu", "glu", gate, up)
        return g.like(name + "_gate_par", "mul", g.like(name + "_silu", "unary", gate), up)

    def biased(self, name: str, t: Tensor) -> Tensor:
        """With the bias that some files hold."""
        return self.g.like(name, "add", t, self.weight(name + ".bias", t.ne[0], fmt=F32)) if self.m.mlp_bias else t

    def experts(self, cur: Tensor, layer: Layer) -> Tensor:
        """Router, top experts with normalized weights, their feed-forwards, the weighted sum."""
        g, m, n = self.g, self.m, cur.ne[1]
        used, f, home = m.experts_used, m.expert_feed_forward, layer.experts_home
        logits = g.mul_mat("ffn_moe_logits", self.weight("ffn_gate_inp", m.hidden, m.experts, fmt=F32), cur)
        probs = g.like("ffn_moe_probs", "soft_max", logits)
        order = g.new("ffn_moe_argsort", "argsort", probs.ne, probs, fmt=I32)
        chosen = g.view(order, (used, n, 1, 1), order.nb)
        weights = g.get_rows("ffn_moe_weights", g.reshape(probs, 1, m.experts, n), chosen)
        weights = g.reshape(weights, used, n)
        total = g.new("ffn_moe_weights_sum", "sum_rows", (1, n), weights)
        if self.b.release.clamps_weights:
            total = g.like("ffn_moe_weights_sum", "clamp", total)
        weights = g.reshape(g.like("ffn_moe_weights_norm", "div", weights, total), 1, used, n)
        g.forward(weights)
        cur = g.reshape(cur, m.hidden, 1, n)
        up = g.new("ffn_moe_up", "mul_mat_id", (f, used, n), self.weight("ffn_up_exps", m.hidden, f, m.experts, home=home), cur, chosen)
        gate = g.new("ffn_moe_gate", "mul_mat_id", (f, used, n), self.weight("ffn_gate_exps", m.hidden, f, m.experts, home=home), cur, chosen)
        cur = self.gated("ffn_moe", gate, up)
        down = self.weight("ffn_down_exps", f, m.hidden, m.experts, home=home)
        each = g.new("ffn_moe_down", "mul_mat_id", (m.hidden, used, n), down, cur, chosen)
        each = g.like("ffn_moe_weighted", "mul", each, weights)
        g.forward(each)
        parts = [g.view(each, (m.hidden, n, 1, 1), (4, each.nb[2], each.nb[2] * n, each.nb[2] * n)) for _ in range(used)]
        for part in parts:
            g.forward(part)
        out = parts[0]
        for part in parts[1:]:
            out = g.like("ffn_moe_out", "add", out, part)
            g.forward(out)
        return g.like("ffn_moe_out", "cont", out) if used == 1 else out
