"""Feed-forwards as nodes: with a gate or without one, alone or as a token's experts and those that all tokens share.

Source: llama.cpp @0c1e57098 src/llama-graph.cpp (build_ffn L1762, build_moe_ffn L2007).
"""

from __future__ import annotations

from calculator.engines.llama_cpp.families import Base, Layer
from calculator.engines.llama_cpp.graph import F32, I32, Tensor


class Experts(Base):
    """Builds the feed-forward of each layer."""

    def dense(self, cur: Tensor) -> Tensor:
        """The whole feed-forward of a layer without experts."""
        g, m, f = self.g, self.m, self.m.feed_forward
        if self.family.fused_gate_up:
            both = g.mul_mat("ffn_up", self.weight("ffn_up", m.hidden, 2 * f), cur)
            cur = g.new("ffn_swiglu", "glu", (f, *both.ne[1:]), both)
        elif self.family.activation:
            cur = self.biased("ffn_up", g.mul_mat("ffn_up", self.weight("ffn_up", m.hidden, f), cur))
            for op in self.family.activation:
                cur = g.like("ffn_act", op, cur)
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

    def shared_experts(self, cur: Tensor) -> Tensor:
        """The experts that all tokens share, as one feed-forward; behind a gate of one number a token in some families."""
        g, m, f = self.g, self.m, self.m.routes.shared
        up = g.mul_mat("ffn_shexp_up", self.weight("ffn_up_shexp", m.hidden, f), cur)
        gate = g.mul_mat("ffn_shexp_gate", self.weight("ffn_gate_shexp", m.hidden, f), cur)
        out = g.mul_mat("ffn_shexp", self.weight("ffn_down_shexp", f, m.hidden), self.gated("ffn_shexp", gate, up))
        if not self.family.shared_gate:
            return out
        logit = g.mul_mat("ffn_shexp_gate_inp", self.weight("ffn_gate_inp_shexp", m.hidden, 1, fmt=F32), cur)
        return g.like("ffn_shexp_out", "mul", out, g.like("ffn_shexp_gate", "div", g.like("ffn_shexp_gate", "unary", logit), logit))

    def routed(self, cur: Tensor, layer: Layer) -> Tensor:
        """A token's experts, and the shared ones."""
        if not self.m.routes.shared:
            return self.chosen(cur, layer)
        if self.family.shared_first:
            shared = self.shared_experts(cur)
            own = self.chosen(cur, layer)
        else:
            own = self.chosen(cur, layer)
            shared = self.shared_experts(cur)
        return self.g.like("ffn_out", "add", own, shared)

    def probabilities(self, cur: Tensor) -> tuple[Tensor, Tensor]:
        """Of all experts, and what they are chosen by."""
        g, m, routes = self.g, self.m, self.m.routes
        logits = g.mul_mat("ffn_moe_logits", self.weight("ffn_gate_inp", m.hidden, m.experts, fmt=F32), cur)
        if self.family.router_bias:
            logits = g.like("ffn_moe_logits", "add", logits, self.weight("ffn_gate_inp.bias", m.experts, fmt=F32))
        gating = self.family.gating
        probs = logits if gating == "chosen" else g.like("ffn_moe_probs", "soft_max" if gating == "softmax" else "unary", logits)
        by = logits if self.family.weights_first else probs
        if routes.corrected:
            by = g.like("ffn_moe_probs_biased", "add", probs, self.weight("exp_probs_b.bias", m.experts, fmt=F32))
        return probs, self.of_best_groups(by) if routes.groups > 1 else by

    def top(self, t: Tensor, k: int) -> Tensor:
        """Indices of the k largest of each row."""
        order = self.g.new("ffn_moe_argsort", "argsort", t.ne, t, fmt=I32)
        return self.g.view(order, (k, *t.ne[1:]), order.nb)

    def of_best_groups(self, by: Tensor) -> Tensor:
        """Nothing but the experts of the groups whose best two are best."""
        g, routes, n = self.g, self.m.routes, by.ne[1]
        size = self.m.experts // routes.groups
        grouped = g.reshape(by, size, routes.groups, n)
        best = g.get_rows("ffn_moe_group", g.reshape(grouped, 1, size, routes.groups, n), self.top(grouped, 2))
        scores = g.new("ffn_moe_group", "sum_rows", (1, routes.groups, n), g.reshape(best, 2, routes.groups, n))
        groups = self.top(g.reshape(scores, routes.groups, n), routes.groups_used)
        kept = g.get_rows("ffn_moe_group", grouped, groups)
        return g.reshape(g.set_rows(g.like("ffn_moe_group", "fill", grouped), kept, groups), self.m.experts, n)

    def weights(self, cur: Tensor) -> tuple[Tensor, Tensor]:
        """A token's experts and their weights."""
        g, m, n, used = self.g, self.m, cur.ne[1], self.m.experts_used
        probs, by = self.probabilities(cur)
        chosen = self.top(by, used)
        weights = g.get_rows("ffn_moe_weights", g.reshape(probs, 1, m.experts, n), chosen)
        if self.family.gating == "chosen":
            return chosen, g.reshape(g.like("ffn_moe_weights", "soft_max", g.reshape(weights, used, n)), 1, used, n)
        if m.routes.normalized:
            weights = g.reshape(weights, used, n)
            total = g.new("ffn_moe_weights_sum", "sum_rows", (1, n), weights)
            if self.b.release.clamps_weights:
                total = g.like("ffn_moe_weights_sum", "clamp", total)
            weights = g.reshape(g.like("ffn_moe_weights_norm", "div", weights, total), 1, used, n)
        return chosen, g.like("ffn_moe_weights_scaled", "scale", weights) if m.routes.scaled else weights

    def chosen(self, cur: Tensor, layer: Layer) -> Tensor:
        """Router, top experts, their feed-forwards, the weighted sum."""
        g, m, n = self.g, self.m, cur.ne[1]
        used, f, home, biased = m.experts_used, m.expert_feed_forward, layer.experts_home, self.family.router_bias
        chosen, weights = self.weights(cur)
        g.forward(weights)
        cur = g.reshape(cur, m.hidden, 1, n)
        if self.family.weights_first:
            cur = g.like("ffn_moe_weighted", "mul", g.new("ffn_moe_repeated", "repeat", (m.hidden, used, n), cur), weights)

        def product(name: str, inputs: int, outputs: int, x: Tensor) -> Tensor:
            t = g.new(f"ffn_moe_{name}", "mul_mat_id", (outputs, used, n), self.weight(f"ffn_{name}_exps", inputs, outputs, m.experts, home=home), x, chosen)
            if not biased:
                return t
            return g.like(f"ffn_moe_{name}", "add_id", t, self.weight(f"ffn_{name}_exps.bias", outputs, m.experts, fmt=F32, home=home), chosen)

        up, gate = product("up", m.hidden, f, cur), product("gate", m.hidden, f, cur)
        each = product("down", f, m.hidden, self.gated("ffn_moe", gate, up))
        if not self.family.weights_first:
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
