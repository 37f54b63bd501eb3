"""Tissue constants: relaxation, diffusion and perfusion of each class.

Sources: grey and white matter relaxation at 3 T after Wansapura et al. 1999 (JMRI 9:531), CBF and
arrival times after the ASLDRO 3 T table, 1.5 T relaxation after its 1.5 T table; oedema, necrosis,
CSF, vein and scalp values are typical literature values, chosen for contrast and not fitted.
The vein's proton density stands for partly lost signal of flowing blood.
The enhancing rim's perfusion, diffusion and arrival time are drawn for each scan.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

NORMAL_WM_CBV = 2.2
"""CBV of white matter in ml/100 g: the unit of relative CBV (rCBV)."""


class Tissue(IntEnum):
    """Tissue classes, in the order of the first axis of fraction arrays."""

    GM = 0
    WM = 1
    CSF = 2
    OEDEMA = 3
    RIM = 4
    NECROSIS = 5
    VEIN = 6
    BONE = 7
    SCALP = 8


BRAIN_TISSUES = (Tissue.GM, Tissue.WM, Tissue.OEDEMA, Tissue.RIM, Tissue.NECROSIS)
"""Classes with capillary perfusion inside the skull."""


@dataclass(frozen=True)
class TissueValues:
    """Constants of one class.

    Attributes:
        t1_s: longitudinal relaxation time.
        t2_s: transverse relaxation time.
        pd: proton density relative to water.
        adc: apparent diffusion coefficient in 1e-3 mm2/s.
        cbf: blood flow in ml/100 g/min.
        cbv: blood volume in ml/100 g.
        att_s: arterial transit time of the ASL label.
        leakage_mm: contrast agent outside the vessels five minutes after injection, in mmol/l.
    """

    t1_s: float
    t2_s: float
    pd: float
    adc: float
    cbf: float = 0.0
    cbv: float = 0.0
    att_s: float = 1.4
    leakage_mm: float = 0.0

    @property
    def mtt_s(self) -> float:
        """Mean transit time 60 CBV / CBF; only for perfused classes."""
        return 60.0 * self.cbv / self.cbf


@dataclass(frozen=True)
class RimValues:
    """What is drawn for the enhancing rim of one scan; units as in :class:`TissueValues`.

    Attributes:
        cbv: mean true CBV.
        adc: mean ADC.
        att_s: arterial transit time.
        mtt_s: mean transit time; CBF is 60 CBV / MTT.
        leakage_mm: extravascular contrast agent.
    """

    cbv: float
    adc: float
    att_s: float
    mtt_s: float
    leakage_mm: float


TissueTable = Mapping[Tissue, TissueValues]

_TABLE_3T: TissueTable = {
    Tissue.GM: TissueValues(1.33, 0.110, 0.82, 0.80, cbf=60.0, cbv=4.5, att_s=1.0),
    Tissue.WM: TissueValues(0.83, 0.080, 0.69, 0.72, cbf=20.0, cbv=NORMAL_WM_CBV, att_s=1.4),
    Tissue.CSF: TissueValues(4.2, 1.5, 1.0, 3.0),
    Tissue.OEDEMA: TissueValues(
        1.55, 0.19, 0.86, 1.45, cbf=14.0, cbv=1.6, att_s=1.7, leakage_mm=0.006
    ),
    Tissue.RIM: TissueValues(1.60, 0.14, 0.84, 1.20, cbf=45.0, cbv=4.5, att_s=1.5, leakage_mm=0.14),
    Tissue.NECROSIS: TissueValues(
        2.8, 0.40, 0.95, 2.2, cbf=2.0, cbv=0.3, att_s=1.7, leakage_mm=0.005
    ),
    Tissue.VEIN: TissueValues(1.65, 0.05, 0.70, 1.5, cbv=70.0),
    Tissue.BONE: TissueValues(0.6, 0.005, 0.15, 0.0, cbf=3.0, cbv=1.0),
    Tissue.SCALP: TissueValues(0.6, 0.06, 0.55, 0.0, cbf=4.0, cbv=2.0),
}

_RELAXATION_15T: Mapping[Tissue, tuple[float, float]] = {
    Tissue.GM: (1.10, 0.092),
    Tissue.WM: (0.56, 0.082),
}


def tissue_table(field: str = "3T", rim: RimValues | None = None) -> TissueTable:
    """Constants of all classes at 3 T or 1.5 T.

    Args:
        field: ``3T``, or ``1.5T``, which changes relaxation of grey and white matter alone.
        rim: the values drawn for the enhancing rim; None keeps mean values.
    """
    table = dict(_TABLE_3T)
    if field == "1.5T":
        for tissue, (t1_s, t2_s) in _RELAXATION_15T.items():
            table[tissue] = replace(table[tissue], t1_s=t1_s, t2_s=t2_s)
    if rim is not None:
        table[Tissue.RIM] = replace(
            table[Tissue.RIM],
            adc=rim.adc,
            cbv=rim.cbv,
            cbf=60.0 * rim.cbv / rim.mtt_s,
            att_s=rim.att_s,
            leakage_mm=rim.leakage_mm,
        )
    return table
