"""Who a node is: decided by the coordinator, never by what a node says of itself."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from flwr.serverapp import Grid


@dataclass(frozen=True)
class OnlineNode:
    """A node that is online.

    Attributes:
        node_id: Flower's number of the node.
        session: another text is another process, or a link that was down for more than twice the
            site's heartbeat: Flower does not tell them apart. What was asked before may be lost.
    """

    node_id: int
    session: str = ""


class SiteRegistry(Protocol):
    """Maps the nodes that are online to the names of sites."""

    def online(self, grid: Grid) -> dict[str, OnlineNode]:
        """Registered nodes that are online now, by site."""
        ...

    def is_admitted(self, site: str) -> bool:
        """Whether a site may still take part; one that may not is not waited for."""
        ...


class NamedRegistry:
    """The deployment's registry: a node's registered name, as SuperLink's database holds it.

    Args:
        sites: of the federation; all other nodes are ignored.
        admitted: gives the sites that may take part now; by default all.
    """

    def __init__(
        self, sites: Iterable[str], admitted: Callable[[], Collection[str]] | None = None
    ) -> None:
        self._sites = frozenset(sites)
        self._admitted = admitted

    def online(self, grid: Grid) -> dict[str, OnlineNode]:
        """Nodes whose registered name is a site of the federation."""
        return {
            n.name: OnlineNode(n.node_id, n.last_activated_at)
            for n in grid.get_nodes()
            if n.name in self._sites
        }

    def is_admitted(self, site: str) -> bool:
        """Whether the coordinator's list has the site now."""
        return self._admitted is None or site in self._admitted()


class PartitionRegistry:
    """Flower's simulation has no names: its nodes are numbered partitions of one machine.

    The scenario is the registry there; the partition numbers come from a query that is answered
    by the simulation's own code on the same machine.
    """

    def __init__(self, site_by_node: Mapping[int, str]) -> None:
        self._site_by_node = dict(site_by_node)

    def online(self, grid: Grid) -> dict[str, OnlineNode]:
        """Nodes that are online, by the site they play."""
        present = set(grid.get_node_ids())
        return {s: OnlineNode(n) for n, s in self._site_by_node.items() if n in present}

    def is_admitted(self, site: str) -> bool:
        """Every site of a scenario is."""
        return site in self._site_by_node.values()
