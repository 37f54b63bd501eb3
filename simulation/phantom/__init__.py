"""A physical phantom: simulated patients with multi-contrast MRI, ASL and measured CBV.

Anatomy, lesion and physics are models, and some of their numbers were tuned (see ``latents``).
Results on it are results on a phantom, never on patients.
"""

from .bids import write_bids
from .cohort import phantom_pool, write_cohort
from .config import PhantomCohort, SiteProtocol

__all__ = ["PhantomCohort", "SiteProtocol", "phantom_pool", "write_bids", "write_cohort"]
