"""fastlik: train score, diffusion and flow models for likelihood, and evaluate their likelihood."""

from . import data, nn, testing, zoo
from .derivatives.divergence import divergence
from .derivatives.taylor import jet, jvp
from .likelihood.autoregressive import ar_nll
from .likelihood.bound import bound_nll
from .likelihood.classifier import Classification, classify
from .likelihood.formula import formula_nll
from .likelihood.ode import ode_nll
from .likelihood.ode_score import ode_score
from .likelihood.penalty import density_penalty
from .likelihood.result import NLL, ConvergenceWarning, EvaluationInterrupted
from .model import ScoreModel, wrap
from .ops.dispatch import backends
from .sampling import sample
from .schedule import EDM, VE, VP, Cosine, DiscreteVP, LogSNR, RectifiedFlow, SubVP
from .solvers.odeint import odeint
from .training import DequantiserRun, Run, load, load_dequantiser, train, train_dequantiser

__version__ = "0.1.0"

__all__ = [
    "EDM",
    "NLL",
    "VE",
    "VP",
    "Classification",
    "ConvergenceWarning",
    "Cosine",
    "DequantiserRun",
    "DiscreteVP",
    "EvaluationInterrupted",
    "LogSNR",
    "RectifiedFlow",
    "Run",
    "ScoreModel",
    "SubVP",
    "ar_nll",
    "backends",
    "bound_nll",
    "classify",
    "data",
    "density_penalty",
    "divergence",
    "formula_nll",
    "jet",
    "jvp",
    "load",
    "load_dequantiser",
    "nn",
    "ode_nll",
    "ode_score",
    "odeint",
    "sample",
    "testing",
    "train",
    "train_dequantiser",
    "wrap",
    "zoo",
]
