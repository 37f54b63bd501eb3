"""Setting up a federation: the coordinator's folder, and a kit for each site.

::

    DIR/federation.toml               what the coordinator decides
    DIR/tls/{ca,server}.{crt,key}     keys for their owner only
    DIR/kits/NAME/                    what a site gets; holds no private key
    DIR/admitted/NAME.pub             who may join; see ``admission``
    DIR/revoked/                      keys that may never join again
"""

import hashlib
import ipaddress
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from pydantic import ValidationError

from iedn import __version__
from iedn.config import TrainingConfig, TransferConfig
from iedn.errors import ConfigError
from iedn.files import atomic_write_bytes
from iedn.identity import names_of, read_certificates
from iedn.toml import config_error_from

from .certificates import (
    LOOPBACK,
    Authority,
    check_host,
    issue_server_certificate,
    new_authority,
    new_key,
    read_authority,
    read_key,
    write_certificate,
    write_key,
)
from .config import FederationConfig, ListenConfig, RoundsConfig, load_federation

FEDERATION_FILE = "federation.toml"
KITS, ADMITTED, REVOKED = "kits", "admitted", "revoked"

OFFLINE_GRACE_S = 900.0
"""A link that drops for a quarter of an hour costs a deployed run no site."""

SMALLEST_QUORUM = 3
"""The sites' own default: a sum over fewer tells too much of each."""


@dataclass(frozen=True)
class Plan:
    """What ``init`` is told.

    Attributes:
        name: of the run.
        trainers: sites that train.
        evaluators: sites that only evaluate.
        hosts: names and addresses under which sites reach the coordinator, the usual one first.
        port: of the public listener; the two after it are the coordinator's own, those after
            them are given to the sites' own processes.
        preset: grid and network.
        rounds: rounds to train.
        quorum: updates a round needs; 0 chooses two thirds of the training sites, at least 3.
        seed: of the run.
        simulation: the cohorts are phantoms.
    """

    name: str
    trainers: tuple[str, ...]
    evaluators: tuple[str, ...]
    hosts: tuple[str, ...]
    port: int = 9092
    preset: str = "demo"
    rounds: int = 20
    quorum: int = 0
    seed: int = 1
    simulation: bool = False

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites, training ones first."""
        return self.trainers + self.evaluators

    @property
    def address(self) -> str:
        """``host:port`` for the sites."""
        host = self.hosts[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def listen_host(self) -> str:
        """All interfaces, unless every site is on this machine."""
        return LOOPBACK[1] if all(map(_is_loopback, self.hosts)) else ListenConfig().host


def default_quorum(num_trainers: int) -> int:
    """Two thirds of the training sites, at least 3, at most all."""
    return min(num_trainers, max(SMALLEST_QUORUM, -(-2 * num_trainers // 3)))


def provision(folder: Path, plan: Plan) -> FederationConfig:
    """Write a new federation into ``folder``; ``federation.toml`` comes last.

    Raises:
        ConfigError: the folder is not empty, or the plan is not possible.
    """
    if plan.quorum == 0:
        plan = replace(plan, quorum=default_quorum(len(plan.trainers)))
    _check(plan)
    existed = folder.exists()
    if existed and (not folder.is_dir() or any(folder.iterdir())):
        problem = "is not empty; a federation that is there already is never written over"
        raise ConfigError(problem, where=str(folder), allowed="a new or an empty folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _write(folder, plan)
    except BaseException:
        for child in folder.iterdir() if folder.is_dir() else ():
            shutil.rmtree(child) if child.is_dir() else child.unlink()
        if not existed and folder.is_dir():
            folder.rmdir()
        raise


def renew(folder: Path, *, hosts: tuple[str, ...] = (), new_server_key: bool = False) -> Path:
    """Sign a new server certificate by the same authority, so that no site has to change a thing.

    Args:
        folder: the coordinator's.
        hosts: names and addresses; without any, those of the present certificate.
        new_server_key: also replace the server's private key, e.g. because it leaked.

    Returns:
        The certificate's file.

    Raises:
        IdentityError: the authority's or the server's files cannot be used.
    """
    listen = listening(folder)
    certificate, key_file = folder / listen.certificate, folder / listen.key
    authority = read_authority(folder / listen.ca, folder / "tls" / "ca.key")
    names = hosts or tuple(names_of(read_certificates(certificate)[0]))
    key = new_key() if new_server_key else read_key(key_file)
    signed = issue_server_certificate(authority, names, key.public_key())
    if new_server_key:
        write_key(key_file, key)
    write_certificate(certificate, signed)
    return certificate


def listening(folder: Path) -> ListenConfig:
    """The ``[listen]`` table of a coordinator's folder.

    Raises:
        ConfigError: there is none.
    """
    listen = load_federation(folder / FEDERATION_FILE).listen
    if listen is None:
        problem = "is missing: this federation is not set up for sites on a network"
        where = f"{folder / FEDERATION_FILE}: listen"
        raise ConfigError(problem, where=where, allowed="a [listen] table, as `init` writes it")
    return listen


def certificates_of(folder: Path) -> dict[str, x509.Certificate]:
    """The authority's and the server's certificate, by what they are."""
    listen = listening(folder)
    files = {"authority": listen.ca, "server": listen.certificate}
    return {what: read_certificates(folder / file)[0] for what, file in files.items()}


def _check(plan: Plan) -> None:
    for host in plan.hosts:
        check_host(host)
    twice = sorted({s for s in plan.sites if plan.sites.count(s) > 1})
    if twice:
        raise ConfigError(f"named twice: {', '.join(twice)}", where="--sites, --evaluate")
    last = plan.port + 2 + len(plan.sites)
    if last > 65535:
        problem = f"{plan.port} leaves no room for {2 + len(plan.sites)} more ports"
        raise ConfigError(problem, where="--port")
    roles = dict.fromkeys(plan.trainers, "train") | dict.fromkeys(plan.evaluators, "evaluate")
    content = {
        "run": plan.name,
        "seed": plan.seed,
        "preset": plan.preset,
        "rounds": {"count": plan.rounds, "quorum": plan.quorum},
        "sites": {site: {"role": role} for site, role in roles.items()},
    }
    try:
        FederationConfig.model_validate(content)
    except ValidationError as error:
        raise config_error_from(error, "iedn-server init", model=FederationConfig) from None


def _write(folder: Path, plan: Plan) -> FederationConfig:
    tls = folder / "tls"
    tls.mkdir(mode=0o700)
    for name in (ADMITTED, REVOKED):
        (folder / name).mkdir()
    _write_identity(tls, plan)
    for number, site in enumerate(plan.sites):
        _write_kit(folder, plan, site, node_port=plan.port + 3 + number)
    rounds = RoundsConfig(count=plan.rounds, quorum=plan.quorum, offline_grace_s=OFFLINE_GRACE_S)
    defaults = {"training": TrainingConfig(), "transfer": TransferConfig(), "rounds": rounds}
    text = _rendered("federation.toml.j2", plan=plan, **defaults)
    path = folder / FEDERATION_FILE
    atomic_write_bytes(path, text.encode())
    return load_federation(path)


def _write_identity(tls: Path, plan: Plan) -> None:
    authority: Authority = new_authority(f"IEDN federation {plan.name}"[:64])
    server_key = new_key()
    write_key(tls / "ca.key", authority.key)
    write_certificate(tls / "ca.crt", authority.certificate)
    write_key(tls / "server.key", server_key)
    certificate = issue_server_certificate(authority, plan.hosts, server_key.public_key())
    write_certificate(tls / "server.crt", certificate)


def _write_kit(folder: Path, plan: Plan, site: str, *, node_port: int) -> None:
    kit = folder / KITS / site
    kit.parent.mkdir(exist_ok=True)
    kit.mkdir(mode=0o700)  # on one machine, or packed with its rights, it holds patients' results
    (kit / "tls").mkdir()
    authority = (folder / "tls" / "ca.crt").read_bytes()
    atomic_write_bytes(kit / "tls" / "ca.crt", authority)
    role = "train" if site in plan.trainers else "evaluate"
    text = _rendered("site.toml.j2", plan=plan, site=site, role=role, node_port=node_port)
    atomic_write_bytes(kit / "site.toml", text.encode())
    digest = hashlib.sha256(authority).hexdigest()
    text = _rendered("readme.md.j2", plan=plan, site=site, ca_digest=digest, version=__version__)
    atomic_write_bytes(kit / "README.md", text.encode())


def _rendered(template: str, **values: object) -> str:
    environment = Environment(
        loader=PackageLoader("server", "templates"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)


def _is_loopback(host: str) -> bool:
    if host in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
