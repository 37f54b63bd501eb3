"""The coordinator's Flower ``ServerApp``: from run configuration to a finished run."""

import logging
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from iedn.errors import ConfigError

from .config import FederationConfig, load_federation
from .registry import NamedRegistry, PartitionRegistry, SiteRegistry
from .report import write_report
from .run import run_federation
from .run_folder import RunFolder

_log = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation named by the run configuration's ``run-dir``."""
    run_dir = Path(str(context.run_config["run-dir"]))
    config = load_federation(run_dir / "federation.toml")
    registry = _registry(grid, config, str(context.run_config["registry"]))
    folder = RunFolder(run_dir, config)
    result = run_federation(grid, registry, config, folder)
    report = write_report(folder, config)
    _log.info("run %s finished: %s; report %s", config.run, result, report)


def _registry(grid: Grid, config: FederationConfig, kind: str) -> SiteRegistry:
    if kind == "names":
        return NamedRegistry(config.sites)
    if kind == "partitions" and config.simulation:
        return PartitionRegistry(_sites_by_partition(grid, config))
    problem = f"registry {kind!r} cannot be used in this run"
    allowed = "names; partitions only with simulation = true in federation.toml"
    raise ConfigError(problem, where="run configuration: registry", allowed=allowed)


def _sites_by_partition(grid: Grid, config: FederationConfig) -> dict[int, str]:
    """Partition i of Flower's simulation plays the i-th site of the federation, by name."""
    sites = sorted(config.sites)
    questions = [Message(RecordDict(), node, "query.partition") for node in grid.get_node_ids()]
    replies = grid.send_and_receive(questions, timeout=config.rounds.join_timeout_s)
    return {
        reply.metadata.src_node_id: sites[int(str(reply.content.config_records["node"]["id"]))]
        for reply in replies
        if not reply.has_error()
    }
