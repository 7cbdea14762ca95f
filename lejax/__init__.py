"""Minimise smoothed losses in JAX, with or without gradients."""

from lejax._estimators.effective_sample_size import beta_for_share as beta_for_share
from lejax._info import Info as Info
from lejax._posterior import negative_log_posterior as negative_log_posterior
from lejax._run.ask_tell import AskTell as AskTell
from lejax._run.ask_tell import AskTellState as AskTellState
from lejax._run.ask_tell import ask_tell as ask_tell
from lejax._run.minimize import minimize as minimize
from lejax._run.result import MinimizeResult as MinimizeResult
from lejax._samplers.importance import importance as importance
from lejax._samplers.importance_by_example import (
    importance_by_example as importance_by_example,
)
from lejax._samplers.parallel import parallel as parallel
from lejax._samplers.pathwise import pathwise as pathwise
from lejax._samplers.robbins_monro import robbins_monro as robbins_monro
from lejax._samplers.sampler import Sampler as Sampler
from lejax._samplers.score_function import score_function as score_function
from lejax._samplers.sgld import SGLDState as SGLDState
from lejax._samplers.sgld import sgld as sgld
from lejax._schedules.scoping import scoping as scoping
from lejax._schedules.target_share import target_share as target_share
from lejax._tracing.report import ReductionReport as ReductionReport
from lejax._tracing.report import reduction_report as reduction_report
from lejax._transforms.certificate import Certificate as Certificate
from lejax._transforms.certificate import certificate as certificate
from lejax._transforms.entropy_sgd import entropy_sgd as entropy_sgd
from lejax._transforms.functional import step_fn as step_fn
from lejax._transforms.functional import value_and_grad as value_and_grad
from lejax._transforms.gaussian import GaussianState as GaussianState
from lejax._transforms.gaussian import gaussian as gaussian
from lejax._transforms.heat import heat as heat
from lejax._transforms.local_entropy import local_entropy as local_entropy
from lejax._transforms.smoothing import SmoothingState as SmoothingState

__version__ = "0.1.0"
