"""Groups of parameters: their names, their tensors as arrays, and the hash of a model.

Arrays are float32 NumPy arrays by name. The coordinator uses this module without a network, so
PyTorch is imported only where a network is at hand.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from .config import NetworkConfig
from .errors import ProtocolError
from .modalities import Modality, in_order
from .protocol.checks import Shapes, check_tensors

if TYPE_CHECKING:
    import torch
    from torch import nn

SHARED_GROUP = "decoder"

Array = NDArray[np.float32]
Tensors = Mapping[str, Array]
S = TypeVar("S", bound=np.generic)


def group_of(name: str) -> str:
    """The group a parameter belongs to: ``encoder.<MODALITY>``, else ``decoder``.

    Raises:
        ProtocolError: ``wrong-key`` if it is an encoder's parameter of no known modality.
    """
    first, _, rest = name.partition(".")
    if first != "encoders":
        return SHARED_GROUP
    modality = rest.partition(".")[0]
    if modality not in Modality.__members__:
        allowed = ", ".join(Modality)
        raise ProtocolError("wrong-key", f"{name!r} is of no known modality ({allowed})")
    return f"encoder.{modality}"


def groups_for(modalities: Iterable[Modality | str]) -> tuple[str, ...]:
    """Groups that a site with these modalities owns: their encoders, then ``decoder``."""
    return (*(f"encoder.{m.value}" for m in in_order(modalities)), SHARED_GROUP)


def groups_of_network(config: NetworkConfig) -> tuple[str, ...]:
    """All groups of a network; the baseline has only ``decoder``."""
    return groups_for(config.modalities if config.architecture == "iedn" else ())


def state_by_group(model: "nn.Module") -> dict[str, dict[str, Array]]:
    """Copies of all parameters as float32 arrays, by group and name."""
    groups: dict[str, dict[str, Array]] = {}
    for name, tensor in model.state_dict().items():
        # Order C: the layout in memory is the network's business and must not reach a file.
        array = np.array(tensor.detach().cpu().numpy(), dtype=np.float32, order="C")
        groups.setdefault(group_of(name), {})[name] = array
    return groups


def shapes_of_network(model: "nn.Module") -> Shapes:
    """Shapes of all parameters, by group and name."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in model.state_dict().items():
        shapes.setdefault(group_of(name), {})[name] = tuple(tensor.shape)
    return shapes


def flatten(groups: Mapping[str, Mapping[str, NDArray[S]]]) -> dict[str, NDArray[S]]:
    """All tensors of all groups by name."""
    return {name: array for tensors in groups.values() for name, array in tensors.items()}


def by_group(tensors: Tensors) -> dict[str, dict[str, Array]]:
    """Tensors by group and name, sorted by name; the inverse of ``flatten``."""
    groups: dict[str, dict[str, Array]] = {}
    for name in sorted(tensors):
        groups.setdefault(group_of(name), {})[name] = tensors[name]
    return groups


def load_groups(model: "nn.Module", groups: Mapping[str, Tensors]) -> None:
    """Overwrite the parameters of the given groups; the other groups stay.

    Nothing is changed unless everything fits.

    Raises:
        ProtocolError: see ``iedn.protocol.checks.check_tensors``.
    """
    import torch

    own: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        own.setdefault(group_of(name), {})[name] = tensor
    unknown = sorted(set(groups) - set(own))
    if unknown:
        raise ProtocolError("wrong-group", f"no group {unknown}; there are {sorted(own)}")
    shapes = {g: {n: tuple(t.shape) for n, t in own[g].items()} for g in groups}
    check_tensors(groups, shapes)
    with torch.no_grad():
        for group, tensors in groups.items():
            for name, array in tensors.items():
                own[group][name].copy_(_as_tensor(array))


def _as_tensor(array: Array) -> "torch.Tensor":
    """The array as a tensor; copied only where PyTorch would warn or refuse."""
    import torch

    is_fit = array.flags.writeable and array.flags.c_contiguous
    return torch.from_numpy(array if is_fit else np.array(array))


def state_hash(tensors: Mapping[str, NDArray[np.generic]]) -> str:
    """SHA-256 (hex) over sorted names, dtypes, shapes and little-endian bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.asarray(tensors[name], order="C")
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        header = f"{name}\0{little.dtype.str}\0{little.shape}\0"
        digest.update(header.encode())
        digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
