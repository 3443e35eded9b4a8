"""The JSON of the command line, as plain dictionaries. Field names are a contract: they change only by adding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from calculator import __version__
from calculator.catalog import data_version, load_model
from calculator.engines import ENGINES, LATER
from calculator.engines.base import Pool
from calculator.estimate import Estimate, estimate
from calculator.fit import Fit, fit
from calculator.ledger import COMPONENTS
from calculator.spec import GpuSpec

if TYPE_CHECKING:  # estimate's document must not wait for the others
    from calculator.audit import Audit
    from calculator.recommend import Recommendation
    from calculator.search import Found, Search
    from calculator.solve import Solution

SCHEMA_VERSION = 1


def envelope(**content: Any) -> dict[str, Any]:
    """A document: versions first."""
    return {"schema_version": SCHEMA_VERSION, "calculator_version": __version__, "data_version": data_version(), **content}


def estimate_document(estimated: Estimate) -> dict[str, Any]:
    """`vram estimate --json`: all sizes in bytes."""
    job, ledger = estimated.job, estimated.ledger
    held = fit(estimated, job.gpu) if job.gpu else None
    deployment = job.deployment
    allocated = ledger.level_bytes("allocated")
    reserved = ledger.level_bytes("allocated", "reserved")
    return envelope(
        model={"id": estimated.job.model.id, "parameters": estimated.parameters},
        deployment={
            "quant": deployment.quant, "context": job.workload.context, "sequences": job.workload.sequences,
            "kv_dtype": deployment.kv_dtype, "engine": deployment.engine, "engine_version": deployment.engine_version,
            "gpu": deployment.gpu, "gpus": deployment.gpus, "settings": estimated.engine.resolved_settings(job),
        },
        components={name: ledger.component_bytes(name) for name in COMPONENTS},
        total_bytes=ledger.total_bytes, total_low_bytes=ledger.low_bytes, total_high_bytes=ledger.high_bytes,
        basis=ledger.basis,
        memory={"allocated_bytes": allocated, "reserved_bytes": reserved, "process_bytes": ledger.total_bytes},
        host_bytes=ledger.host_bytes, tensor_bytes=estimated.tensor_bytes, file_bytes=estimated.file_bytes,
        kv_bytes_per_token=estimated.kv_bytes_per_token,
        peak={"phase": estimated.phase, "step": estimated.peak.step.name},
        kv_pool=_pool(estimated.pool), reserved_bytes=estimated.pool.reserved_bytes if estimated.pool else None,
        lines=[
            {"component": line.component, "name": line.name, "device": line.device, "bytes": line.nbytes,
             "low_bytes": line.low_bytes, "high_bytes": line.high_bytes, "basis": line.basis, "formula": str(line.formula),
             "source": line.source, "note": line.note}
            for line in ledger.lines
        ],
        devices=_devices(estimated, held),
        speed=None, start_command=estimated.start_command, related=related(estimated),
        verdict=held.verdict if held and estimated.decides(held.verdict) else None, warnings=list(estimated.warnings),
    )  # fmt: skip


def _pool(pool: Pool | None) -> dict[str, Any] | None:
    """Bytes on a GPU; tokens and sequences of the deployment."""
    if pool is None:
        return None
    return {"bytes": max(pool.nbytes, 0), "low_bytes": max(pool.low, 0), "high_bytes": max(pool.high, 0), "blocks": pool.blocks, "tokens": pool.tokens,
            "max_concurrency": pool.max_concurrency}  # fmt: skip


def related(estimated: Estimate) -> list[dict[str, Any]]:
    """Entries that this one must not be mistaken for, each with its cache a token in the same deployment."""
    work, deployment = estimated.job.workload, estimated.job.deployment
    found = []
    for entry in estimated.model.related:
        other = estimate(
            load_model(entry["id"]), quant=deployment.quant, context=work.context, sequences=work.sequences,
            engine=deployment.engine, gpus=deployment.gpus, settings=deployment.settings,
            kv_dtype=deployment.kv_dtype if "/" not in deployment.kv_dtype else None,
        )  # fmt: skip
        found.append({"id": entry["id"], "why": entry["why"], "kv_bytes_per_token": other.kv_bytes_per_token,
                      "parameters": other.parameters, "total_bytes": other.total_bytes})  # fmt: skip
    return found


def compare_document(estimates: list[Estimate], together: Fit | None = None) -> dict[str, Any]:
    """`vram compare --json`; `together` is what they hold on one GPU at once."""
    document = envelope(estimates=[estimate_document(e) for e in estimates])

    def decided(verdict: str) -> bool:
        return all(e.decides(verdict) for e in estimates)

    if together is not None:
        document["sum"] = {
            "total_bytes": sum(e.total_bytes for e in estimates), "verdict": together.verdict if decided(together.verdict) else None,
            "devices": [
                {"index": d.index, "gpu": d.gpu, "usable_bytes": d.usable_bytes, "required_bytes": d.required_bytes,
                 "beside_bytes": d.beside_bytes, "headroom_bytes": d.headroom_bytes, "fits": d.verdict != "does_not_fit" if decided(d.verdict) else None}
                for d in together.devices
            ],
        }  # fmt: skip
    return document


def recommend_document(found: Recommendation) -> dict[str, Any]:
    """`vram recommend --json`."""
    return envelope(
        candidates=[
            {"gpu": c.gpu.name, "count": c.count, "model": c.estimate.job.model.id,
             "quant": c.estimate.job.deployment.quant, "engine": c.estimate.job.deployment.engine,
             "verdict": c.fit.verdict, "headroom_bytes": c.fit.binding.headroom_bytes,
             "required_bytes": c.fit.binding.required_bytes, "usable_bytes": c.fit.binding.usable_bytes,
             "max_context": c.max_context, "max_sequences": c.max_sequences,
             "tokens_per_s": round(c.tokens_per_s, 1), "tokens_per_s_basis": "upper bound by memory bandwidth",
             "usd_per_hour": None, "changes": list(c.changes)}
            for c in found.candidates
        ],
        rejected=[{"gpu": r.gpu, "model": r.model, "reason": r.reason} for r in found.rejected],
    )  # fmt: skip


def solve_document(solved: Solution) -> dict[str, Any]:
    """`vram solve --json`."""
    return envelope(**{
        "for": solved.wanted, "value": solved.value, "binding": solved.binding, "next_value_fits": solved.next_value_fits,
        "total_bytes": solved.estimate.total_bytes if solved.estimate else None,
        "host_bytes": solved.estimate.ledger.host_bytes if solved.estimate else None,
        "quant": solved.estimate.job.deployment.quant if solved.estimate else None,
        "engine": solved.estimate.job.deployment.engine if solved.estimate else None,
        "start_command": solved.estimate.start_command if solved.estimate else None,
        "offload": solved.offload._asdict() if solved.offload else None,
    })  # fmt: skip


def audit_document(model_id: str, found: Audit) -> dict[str, Any]:
    """`vram audit --json`."""
    return envelope(
        model=model_id, claims=[claim._asdict() for claim in found.claims],
        reconciling_sets=[s._asdict() for s in found.reconciling_sets], notes=list(found.notes),
    )  # fmt: skip


def models_document(found: Search) -> dict[str, Any]:
    """`vram models --json`."""
    from calculator.catalog import user_folder

    return envelope(models=[_model_row(f) for f in found.found], user_folder=str(user_folder()),
                    not_sized=[{"id": id, "why": why} for id, why in found.not_sized])  # fmt: skip


def _model_row(found: Found) -> dict[str, Any]:
    """Parameters apart: all but MTP layers, those of a token, the vision tower's, the MTP layers'."""
    from calculator.architectures import build_inventory

    spec, record = found.model.spec, found.model.record
    inventory = build_inventory(spec)
    active = inventory.active_parameters(experts=spec.num_experts, used=spec.num_experts_per_tok)
    return {"id": spec.id, "parameters": inventory.parameters, "active_parameters": active, "vision_parameters": inventory.vision_parameters,
            "mtp_parameters": inventory.mtp_parameters, "family": record["family"], "name": record["name"], "hf_id": record["hf_id"],
            "source": record["sources"]["config"], "file": record["file"], "unverified": list(record.get("unverified", [])), "verdict": found.verdict}  # fmt: skip


def gpus_document(gpus: tuple[GpuSpec, ...]) -> dict[str, Any]:
    """`vram gpus --json`."""
    return envelope(gpus=[_gpu(gpu) for gpu in gpus])


def quants_document(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """`vram quants --json`."""
    return envelope(quants=rows)


def engines_document() -> dict[str, Any]:
    """`vram engines --json`."""
    modelled = [
        {"name": e.name, "modelled": True, "versions": list(e.versions), "why": None,
         "settings": {name: {"default": s.default, "meaning": s.meaning} for name, s in e.settings.items()}}
        for e in ENGINES.values()
    ]  # fmt: skip
    later = [{"name": e.name, "modelled": False, "versions": [], "why": e.why, "settings": {}} for e in LATER.values()]
    return envelope(engines=modelled + later)


def _devices(estimated: Estimate, held: Fit | None) -> list[dict[str, Any]]:
    if held is None:
        return [
            {"index": i, "gpu": None, "usable_bytes": None, "required_bytes": estimated.ledger.on(i).total_bytes,
             "beside_bytes": None, "headroom_bytes": None, "fits": None}
            for i in estimated.ledger.devices
        ]  # fmt: skip
    return [
        {"index": d.index, "gpu": d.gpu, "usable_bytes": d.usable_bytes, "required_bytes": d.required_bytes,
         "beside_bytes": d.beside_bytes, "headroom_bytes": d.headroom_bytes, "fits": d.verdict != "does_not_fit" if estimated.decides(d.verdict) else None}
        for d in held.devices
    ]  # fmt: skip


def _gpu(gpu: GpuSpec) -> dict[str, Any]:
    sources = {name: quantity.source for name, quantity in gpu.quantities.items()}
    return {
        "name": gpu.name, "vendor": gpu.vendor, "memory_sold_bytes": gpu.memory_sold_bytes.value,
        "nvml_total_bytes": gpu.nvml_total_bytes.value if gpu.nvml_total_bytes else None,
        "cuda_total_bytes": gpu.cuda_total_bytes.value if gpu.cuda_total_bytes else None,
        "bandwidth_bytes_per_s": gpu.bandwidth_bytes_per_s.value, "sources": sources, "unverified": gpu.unverified,
        "segment": gpu.segment, "compute_capability": gpu.compute_capability, **_usable(gpu),
    }  # fmt: skip


def _usable(gpu: GpuSpec) -> dict[str, Any]:
    from calculator.fit import usable_memory

    usable = usable_memory(gpu)
    return {"usable_bytes": usable.value, "usable_low_bytes": usable.low_value, "usable_source": usable.source}
