"""One prepared scan -> its synthetic map on the site's disk."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iedn.inference import synthesize
from iedn.modalities import Modality, in_order
from iedn.model import Network
from sites.cohort import ScanRecord
from sites.dataset import as_sample
from sites.preprocessing import PreparedScan, to_patient_grid
from sites.reading import Finding, FloatArray
from sites.synthetic import Sidecar, write_synthetic


@dataclass(frozen=True)
class Synthesizer:
    """A model with what its maps' sidecars say of it.

    Attributes:
        network: computes on the device it is on.
        model_hash: SHA-256 of the model's tensors.
        flip_average: see ``iedn.inference.synthesize``.
    """

    network: Network
    model_hash: str
    flip_average: bool = False

    def inputs(self, scan: PreparedScan) -> tuple[Modality, ...]:
        """The scan's modalities that the network reads; none if it cannot do with these."""
        wanted = self.network.config.modalities
        known = in_order(set(scan.images) & set(wanted))
        return known if self.network.accepts_missing or known == wanted else ()

    def cbv(self, scan: PreparedScan) -> FloatArray:
        """The synthetic map (D, H, W) on the scan's grid, brain mean about 0.25."""
        device = next(self.network.parameters()).device
        sample = as_sample(scan)
        result = synthesize(self.network, sample, flip_average=self.flip_average, device=device)
        return np.asarray(result.cbv[0].numpy(), dtype=np.float32)

    def sidecar(self, scan: PreparedScan, findings: Iterable[Finding]) -> Sidecar:
        """What is to be known about the scan's map.

        Args:
            scan: it has inputs for the network.
            findings: about the scan; their codes become the map's flags.
        """
        used = self.inputs(scan)
        flags = (f"{f.code} {f.modality}".strip() for f in findings)
        return Sidecar(
            model_hash=self.model_hash,
            inputs_used=used,
            inputs_missing=in_order(set(self.network.config.modalities) - set(used)),
            qc_flags=tuple(dict.fromkeys(flags)),
        )


def write_map(
    folder: Path, record: ScanRecord, scan: PreparedScan, cbv: FloatArray, sidecar: Sidecar
) -> Path:
    """Write a scan's map on the voxels of the patient's own T1; its path.

    Args:
        folder: the site's folder for synthetic maps.
        record: the scan.
        scan: its arrays and where they lie.
        cbv: the map on the scan's grid.
        sidecar: what the map was made by and from.
    """
    on_patient = to_patient_grid(cbv, scan.geometry)
    return write_synthetic(folder, record, on_patient, scan.geometry.file_affine, sidecar)
