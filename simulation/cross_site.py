"""Every site's own model at every site: what a site would have without the others.

Each training site trains alone, as many steps as it makes in the federation; its best model by its
own validation scans (the later of equal ones; without any, the last) is then tested on the
held-out scans of all sites, and so is the federated model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import torch

from client.evaluation import evaluate_scans
from client.training import network_from
from iedn import progress
from iedn.files import atomic_write_bytes
from iedn.model import Network, build_network
from iedn.parameters import state_by_group
from iedn.seeding import derive_seed
from iedn.training import train
from server.aggregation import Float32Groups
from server.config import FederationConfig
from server.run_folder import RunFolder
from sites.dataset import PreparedCohort, ScanDataset

from .results import cohort_of

CROSS_SITE = "cross-site.json"
FEDERATED = "federated"
METRIC = "psnr_db"

Matrix = dict[str, dict[str, float]]
"""Model (a site's, or ``federated``) -> site where it is tested -> mean PSNR in dB."""


def write_cross_site(out: Path, config: FederationConfig) -> Matrix:
    """Train every site's own model, test all of them everywhere, write ``cross-site.json``."""
    names = sorted(name for name, entry in config.sites.items() if entry.role == "train")
    cohorts = {name: cohort_of(out, config, name) for name in names}
    models: dict[str, Network] = {}
    for number, name in enumerate(names, start=1):
        models[name] = best_local_model(name, cohorts[name], config)
        progress.report("local models", number, len(names))
    federated, _, _ = RunFolder(out, config).load_best()
    models[FEDERATED] = network_from(federated, config.effective_preset.network)
    found = cross_site(models, {name: cohort.test for name, cohort in cohorts.items()}, config)
    content = {
        "label": "phantom results; they say nothing about patients",
        "metric": f"mean {METRIC} of held-out scans",
        "models": found,
    }
    atomic_write_bytes(out / CROSS_SITE, json.dumps(content, indent=1).encode() + b"\n")
    return found


def best_local_model(name: str, cohort: PreparedCohort, config: FederationConfig) -> Network:
    """A site's own model with the steps it makes in a federation, by its own validation."""
    training, rounds = config.training, config.rounds.count
    network = config.effective_preset.network
    if network.architecture == "iedn":
        network = network.model_copy(update={"modalities": tuple(cohort.counts)})
    model = build_network(network, config.seed)
    best: list[tuple[float, Float32Groups]] = []
    seed = derive_seed(config.seed, round_number=0, site=name, purpose="local")

    def look(step: int, _: float) -> None:
        if step % training.local_steps == 0 and len(cohort.validation) > 0:
            quality = mean_psnr(model, cohort.validation, config, task=f"{name}: alone")
            if not best or quality >= best[0][0]:
                best[:] = [(quality, state_by_group(model))]

    steps = training.model_copy(update={"local_steps": training.local_steps * rounds})
    train(model, cohort.train, steps, seed=seed, progress=look)
    return network_from(best[0][1], network) if best else model


def cross_site(
    models: Mapping[str, Network], tested: Mapping[str, ScanDataset], config: FederationConfig
) -> Matrix:
    """Mean PSNR of every model at every site that has held-out scans."""
    with_scans = {site: dataset for site, dataset in tested.items() if len(dataset) > 0}
    return {
        name: {
            site: mean_psnr(model, dataset, config, task=f"{name} at {site}")
            for site, dataset in with_scans.items()
        }
        for name, model in models.items()
    }


def mean_psnr(
    model: Network, dataset: ScanDataset, config: FederationConfig, *, task: str
) -> float:
    """Over the scans of a dataset."""
    rows = evaluate_scans(
        model, dataset, task=task, flip_average=config.flip_average, device=torch.device("cpu")
    )
    return fmean(row.values[METRIC] for row in rows)
