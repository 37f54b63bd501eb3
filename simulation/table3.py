"""The paper's Table 3 on phantom external cohorts, with a released model; nothing is trained.

Every evaluating site of a scenario computes its own table and sends its seven numbers through its
own gate; the coordinator's part combines them, stratified by site. The phantom measures CBV at
these sites too, so that the synthetic map stands beside the measured one; no model sees it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client.diagnostic import evaluate_external
from client.diagnostic_value import DiagnosticResult
from client.model_file import ModelFile, load_model_file
from client.session import SiteSession
from client.table3_page import estimate_text, p_text, row, table3_markdown
from iedn import __version__
from iedn.errors import ConfigError
from iedn.evaluation.statistics import Estimate
from iedn.files import atomic_write_bytes
from iedn.protocol.messages import EvaluateReply, EvaluateRequest
from server.stratified import checked_areas, stratified
from sites.config import SITE_FILE, load_site_config

from .prepare import prepare_sites
from .scenario import ScenarioConfig

NOTICE = "Phantom results: simulated scans of simulated lesions. They say nothing about patients."


@dataclass(frozen=True)
class Table3:
    """Results of all external sites.

    Attributes:
        name: of the scenario.
        model_hash: of the model that made the maps.
        sites: each site's own table.
        stratified: all sites, from their seven numbers alone (see ``server.stratified``).
    """

    name: str
    model_hash: str
    sites: Mapping[str, DiagnosticResult]
    stratified: Mapping[str, Any]


def make_table3(
    scenario: ScenarioConfig, model: Path, out: Path, *, cohorts: Path, workers: int
) -> Table3:
    """Phantoms, maps, each site's table, and the stratified one.

    Raises:
        ConfigError: the scenario has no evaluating site.
        CohortError: a cohort has no cases.
    """
    file = load_model_file(model)
    names = prepare_sites(scenario, out, cohorts=cohorts, workers=workers, role="evaluate")
    if not names:
        raise ConfigError("has no evaluating site", where=f"scenario {scenario.name}")
    results, sent = {}, {}
    for name in names:
        session = SiteSession(load_site_config(out / "sites" / name / SITE_FILE))
        results[name], reply = _site(session, file, scenario)
        sent[name] = checked_areas(reply.paired_areas)
    return Table3(scenario.name, file.model_hash, results, stratified(sent))


def write_table3(folder: Path, table: Table3, preset: str) -> list[Path]:
    """Write ``table3-PRESET.md`` and ``table3-PRESET.json``; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, content = folder / f"table3-{preset}.md", folder / f"table3-{preset}.json"
    atomic_write_bytes(content, json.dumps(as_json(table), indent=1).encode() + b"\n")
    atomic_write_bytes(page, markdown(table, preset).encode())
    return [page, content]


def as_json(table: Table3) -> dict[str, Any]:
    """All numbers; none of a single scan."""
    return {
        "notice": NOTICE,
        "software": f"iedn {__version__}",
        "scenario": table.name,
        "model_hash": table.model_hash,
        "sites": {
            name: {
                "flow": asdict(result.flow),
                "areas": {score: asdict(area) for score, area in result.areas.items()},
                "comparisons": {
                    f"{a} - {b}": asdict(found) for (a, b), found in result.comparisons.items()
                },
                "sent": {n: p.model_dump() for n, p in result.release.paired_areas.items()},
                "notes": list(result.notes),
            }
            for name, result in table.sites.items()
        },
        "stratified": dict(table.stratified),
    }


def markdown(table: Table3, preset: str) -> str:
    """Each site's table, then all sites from their seven numbers."""
    parts = [f"# Table 3 on a phantom: {preset}", f"**{NOTICE}**"]
    command = f"iedn-simulate table3 --preset {preset} --model FILE"
    parts.append(f"`{command}`, model {table.model_hash[:12]} (iedn {__version__}).")
    for name, result in table.sites.items():
        parts += [f"## {name}", table3_markdown(result)]
    head = ["compared", "AUC synthetic CBV", "AUC ASL", "difference", "p", "cases"]
    lines = [row(head), row(["---"] * len(head))]
    lines += [_stratified_line(name, found) for name, found in table.stratified.items()]
    parts += [
        "## All sites, stratified",
        "\n".join(lines),
        "From seven numbers a site; patients are compared within a site only. Cases: recurrence / "
        "treatment response.",
    ]
    return "\n\n".join(parts) + "\n"


def _stratified_line(name: str, found: Mapping[str, Any]) -> str:
    areas = [estimate_text(Estimate(**found[key])) for key in ("synthetic_cbv", "asl")]
    difference = found.get("difference")
    tested = (
        ["-", found["note"]]
        if difference is None
        else [
            f"{difference:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})",
            p_text(found["p_value"]),
        ]
    )
    cases = f"{found['num_recurrence']} / {found['num_treatment_response']}"
    return row([name, *areas, *tested, cases])


def _site(
    session: SiteSession, file: ModelFile, scenario: ScenarioConfig
) -> tuple[DiagnosticResult, EvaluateReply]:
    """One site's table, and what it sends."""
    result = evaluate_external(
        session.config, session.cohort(file.grid), file.network, model_hash=file.model_hash
    )
    request = EvaluateRequest(
        run=scenario.name,
        round=file.round_number,
        base_hash=file.model_hash,
        grid=file.grid,
        network=file.config,
        split="test",
        evaluation="diagnostic",
    )
    return result, session.egress.diagnostic(request, result.release)
