"""Models of other libraries as :class:`fastlik.ScoreModel`, a function for each; none of them is imported."""

from .azula import from_azula
from .denoiser import from_denoiser
from .diffusers import from_diffusers
from .flow_matching import from_flow_matching, from_torchcfm
from .score_sde import from_score_sde

__all__ = [
    "from_azula",
    "from_denoiser",
    "from_diffusers",
    "from_flow_matching",
    "from_score_sde",
    "from_torchcfm",
]
