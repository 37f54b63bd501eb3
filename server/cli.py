"""``iedn-server``: what the coordinator types."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from iedn.console import new_app, run_command, showing_progress
from iedn.errors import ConfigError

if TYPE_CHECKING:
    from .config import FederationConfig
    from .run_folder import RunFolder

# What is slow to import is imported where it is used, so that `--help` answers at once.

app = new_app()

RunDir = Annotated[Path, typer.Argument(help="The run folder.", metavar="DIR")]
RunDirOption = Annotated[Path, typer.Option("--dir", help="The run folder.", metavar="DIR")]
SiteArgument = Annotated[str, typer.Argument(help="A site of federation.toml.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

HERE = Path()
WATCH_S = 1.0


@app.callback()
def callback() -> None:
    """Coordinate a federation that synthesises CBV maps."""


@app.command()
def init(
    run_dir: RunDir,
    sites: Annotated[str, typer.Option(help="Training sites, separated by commas.")],
    host: Annotated[str, typer.Option(help="Names or addresses of this host, by commas.")],
    evaluate: Annotated[str, typer.Option(help="Sites that only evaluate, by commas.")] = "",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The public port.")] = 9092,
    preset: Annotated[str, typer.Option(help="paper, demo or tiny.")] = "demo",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds to train.")] = 20,
    quorum: Annotated[
        int, typer.Option(min=0, help="Updates a round needs; 0: 2/3 of the sites, at least 3.")
    ] = 0,
    name: Annotated[str, typer.Option(help="Name of the run; default: that of DIR.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the run.")] = 1,
    simulation: Annotated[
        bool, typer.Option("--simulation", help="Phantom cohorts; every report says so.")
    ] = False,
) -> None:
    """Set up a federation: configuration, certificates, and a kit for each site."""
    from .provisioning import SMALLEST_QUORUM, Plan, provision

    plan = Plan(
        name=name or run_dir.resolve().name,
        trainers=_listed(sites),
        evaluators=_listed(evaluate),
        hosts=_listed(host),
        port=port,
        preset=preset,
        rounds=rounds,
        quorum=quorum,
        seed=seed,
        simulation=simulation,
    )
    config = provision(run_dir, plan)
    print(
        f"{run_dir / 'federation.toml'}: {len(config.sites)} sites, {rounds} rounds of "
        f"{config.rounds.quorum} updates at least"
    )
    if len(plan.trainers) < SMALLEST_QUORUM and not simulation:
        print(
            f"warning: a site's policy lets a part of the model leave only if {SMALLEST_QUORUM} "
            f"sites train it; with {len(plan.trainers)}, nothing will leave"
        )
    print(f"next: hand each site its folder of {run_dir / 'kits'} (no secrets in it), get back its")
    print("tls/site.pub, and admit it: iedn-server admit SITE KEYFILE --dir DIR")


@app.command()
def admit(
    site: SiteArgument,
    key_file: Annotated[Path, typer.Argument(help="Its public key.", metavar="KEYFILE")],
    run_dir: RunDirOption = HERE,
    replace: Annotated[
        bool, typer.Option("--replace", help="Revoke the key it has; this is its new one.")
    ] = False,
    fingerprint: Annotated[
        str | None, typer.Option(help="As the site has read it out; refuse any other key.")
    ] = None,
) -> None:
    """Let a site join; also while a run goes on."""
    from .admission import admit as admit_site

    outcome = admit_site(run_dir, site, key_file, expected=fingerprint, replace=replace)
    print(
        f"{site}: {'admitted' if outcome.is_new else 'was admitted before'}, {outcome.fingerprint}"
    )
    if fingerprint is None:
        print("compare this fingerprint with the one the site reads out to you by telephone;")
        print(f"if they differ: iedn-server revoke {site} --dir {run_dir}")


@app.command()
def revoke(site: SiteArgument, run_dir: RunDirOption = HERE) -> None:
    """Take a site's admission away for good; also while a run goes on."""
    from .admission import revoke as revoke_site

    print(f"{site}: revoked {revoke_site(run_dir, site)}; it can join again with a new key only")


@app.command()
def roster(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Write the list of admitted training sites and their keys, which every site accepts."""
    from iedn.peers import digest_of, peer_lines

    from .admission import write_roster

    path, listed, absent = write_roster(run_dir)
    if as_json:
        prints = {name: peer.fingerprint for name, peer in listed.sites.items()}
        facts = {"file": str(path), "sites": prints, "sha256": digest_of(listed)}
        print(json.dumps(facts | {"not_admitted": absent}, indent=2))
        return
    for line in peer_lines(listed):
        print(line)
    if absent:
        print(f"warning: not admitted yet, and not on the list: {', '.join(absent)}")
    print(f"next: send {path} to every site; each compares the fingerprints with the other sites")
    print("by telephone, then: iedn-client --site NAME peers accept FILE")


@app.command()
def renew(
    run_dir: RunDirOption = HERE,
    host: Annotated[str, typer.Option(help="Other names or addresses, by commas.")] = "",
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Replace the server's private key as well.")
    ] = False,
) -> None:
    """Sign a new server certificate; the sites need not change anything."""
    from .provisioning import renew as renew_certificate

    path = renew_certificate(run_dir, hosts=_listed(host), new_server_key=new_key)
    print(f"{path}: signed anew, in use from the next start on")
    _print_expiry(run_dir)


@app.command()
def certificates(run_dir: RunDirOption = HERE, as_json: AsJson = False) -> None:
    """Say when certificates expire, and which sites are admitted with which key."""
    from iedn.identity import days_left, fingerprint, names_of

    from .admission import admitted_keys
    from .config import load_federation
    from .provisioning import certificates_of

    keys = admitted_keys(run_dir)
    sites = load_federation(run_dir / "federation.toml").sites
    admitted = {s: fingerprint(keys[s]) if s in keys else None for s in sorted(sites)}
    if as_json:
        found = certificates_of(run_dir).items()
        facts = {w: {"days_left": days_left(c), "names": names_of(c)} for w, c in found}
        print(json.dumps({"certificates": facts, "admitted": admitted}, indent=2))
        return
    _print_expiry(run_dir)
    for site, key in admitted.items():
        print(f"{site:20} {key or 'not admitted'}")


@app.command()
def status(
    run_dir: RunDir,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow a running coordinator until interrupted.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say how far a run is, who contributed to each round, and what each site does now."""
    from .status import facts_of, tables

    if watch:
        _watch(run_dir)
        return
    folder, config = _open(run_dir)
    facts = facts_of(folder, config)
    if as_json:
        print(json.dumps(facts, indent=2, sort_keys=True))
        return
    Console().print(tables(facts))


def _watch(run_dir: Path) -> None:
    from rich.live import Live

    from .status import facts_of, tables

    folder, config = _open(run_dir)
    with Live(tables(facts_of(folder, config)), auto_refresh=False) as screen:
        while True:
            time.sleep(WATCH_S)
            screen.update(tables(facts_of(folder, config)), refresh=True)


@app.command()
def start(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Serve the sites and run the federation; the same command goes on after any stop."""
    from .run_folder import BEST
    from .start import start as start_run

    with showing_progress(as_json=as_json):
        result = start_run(run_dir)
    if as_json:
        print(json.dumps(vars(result), indent=2))
        return
    print(f"{result.rounds} rounds committed; model {result.model_hash}")
    print(f"best model: round {result.best_round}, in {run_dir / BEST}")


@app.command()
def release(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Send the finished run's best model, whole and with its card, to every admitted site."""
    from .start import release as release_run

    with showing_progress(as_json=as_json):
        roster = release_run(run_dir)
    if as_json:
        print(json.dumps(roster, indent=2))
    else:
        for site, entry in roster.items():
            print(f"{site:20} {entry.get('code', entry['status'])}")
    if any(entry["status"] != "received" for entry in roster.values()):
        raise typer.Exit(1)


@app.command()
def report(run_dir: RunDir) -> None:
    """Write report.html and curves.png from the run's history."""
    from .report import write_report

    folder, config = _open(run_dir)
    print(write_report(folder, config))


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _print_expiry(run_dir: Path) -> None:
    from iedn.identity import WARN_DAYS, days_left, names_of

    from .provisioning import certificates_of

    for what, certificate in certificates_of(run_dir).items():
        left = days_left(certificate)
        until = certificate.not_valid_after_utc.date()
        names = ", ".join(names_of(certificate))
        print(f"{what:20} {left} days left, until {until}{f' ({names})' if names else ''}")
        if left < WARN_DAYS:
            print(
                f"warning: the {what} certificate expires soon; see docs/how-to/run-a-consortium.md"
            )


def _open(run_dir: Path) -> "tuple[RunFolder, FederationConfig]":
    from .config import load_federation
    from .run_folder import LOCK, RunFolder

    if not (run_dir / LOCK).is_file():
        is_set_up = (run_dir / "federation.toml").is_file()
        problem = "has not been started" if is_set_up else f"is not a run folder (no {LOCK})"
        allowed = f"iedn-server start {run_dir}, then this" if is_set_up else "a run folder"
        raise ConfigError(problem, where=str(run_dir), allowed=allowed)
    config = load_federation(run_dir / "federation.toml")
    return RunFolder(run_dir, config), config


def main() -> None:
    """Entry point of ``iedn-server``."""
    run_command(app)
