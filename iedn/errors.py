"""Errors that a user can act on, each tied to the exit code of the commands.

    IednError                 1  something failed
    ├── ConfigError           3  a configuration file or value is wrong
    │   └── CheckpointError   3  a model file cannot be used
    ├── CohortError           4  a cohort as a whole cannot be used
    │   ├── ScanError         4  one scan cannot be used (quarantined; the rest goes on)
    │   └── StatisticsError   4  the rows do not allow the statistic; also a ValueError
    ├── IdentityError         5  TLS, certificate or key
    ├── UnreachableError      6  the other side does not answer
    ├── TrainingError         1  training gives numbers that cannot be used
    ├── ProtocolError         1  a message that breaks the protocol
    │   └── RefusedError      1  an update that the gate refused
    └── PolicyError           7  the site's own policy says no
        └── LedgerError       7  the privacy ledger cannot be written or trusted

Programming mistakes stay ``ValueError``/``TypeError``/``AssertionError``.
"""


class IednError(Exception):
    """Base of all errors that are shown to a user as one sentence, without a traceback."""

    exit_code = 1


class ConfigError(IednError):
    """A configuration is wrong.

    Args:
        problem: what is wrong, as a sentence without the place.
        where: file, and dotted key if there is one, e.g. ``federation.toml: training.local_steps``.
        allowed: what may stand there.
    """

    exit_code = 3

    def __init__(self, problem: str, *, where: str = "", allowed: str = "") -> None:
        self.problem, self.where, self.allowed = problem, where, allowed
        message = f"{where}: {problem}" if where else problem
        super().__init__(f"{message}. Allowed: {allowed}" if allowed else message)


class CheckpointError(ConfigError):
    """A model file is missing, damaged, of another schema or of another network."""


class CohortError(IednError):
    """A cohort as a whole cannot be used."""

    exit_code = 4


class ScanError(CohortError):
    """One scan cannot be used.

    The message may name local paths and must therefore never leave the site; only ``code`` may.

    Args:
        code: stable code, e.g. ``E101``.
        problem: what is wrong and what to do.
        scan: the scan's local key, ``patient_id/scan_id``.
        modality: the modality or column concerned, if it is one.
    """

    def __init__(self, code: str, problem: str, *, scan: str = "", modality: str = "") -> None:
        self.code, self.problem, self.scan, self.modality = code, problem, scan, modality
        place = " ".join(part for part in (scan, modality) if part)
        super().__init__(f"{code} {place}: {problem}" if place else f"{code}: {problem}")


class StatisticsError(CohortError, ValueError):
    """The rows do not allow the statistic: one class only, one patient, values not finite."""


class IdentityError(IednError):
    """TLS, a certificate or a key is wrong."""

    exit_code = 5


class UnreachableError(IednError):
    """The other side does not answer."""

    exit_code = 6


class TrainingError(IednError):
    """Training gives numbers that cannot be used, such as a loss that is not finite."""


class ProtocolError(IednError):
    """A message breaks the protocol.

    Args:
        code: stable word for the roster, e.g. ``wrong-shape``.
        problem: what came and what was expected.
    """

    def __init__(self, code: str, problem: str) -> None:
        self.code, self.problem = code, problem
        super().__init__(f"{code}: {problem}")


class RefusedError(ProtocolError):
    """The gate refused an update; the round goes on without it."""


class PolicyError(IednError):
    """The site's own policy says no."""

    exit_code = 7


class LedgerError(PolicyError):
    """The privacy ledger cannot be written or trusted, so that nothing may be spent."""
