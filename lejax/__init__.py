"""Minimise smoothed losses in JAX, with or without gradients."""

from lejax._ask_tell import AskTell as AskTell
from lejax._ask_tell import AskTellState as AskTellState
from lejax._ask_tell import ask_tell as ask_tell
from lejax._by_example import importance_by_example as importance_by_example
from lejax._certificate import Certificate as Certificate
from lejax._certificate import certificate as certificate
from lejax._control import target_share as target_share
from lejax._effective import beta_for_share as beta_for_share
from lejax._entropy_sgd import entropy_sgd as entropy_sgd
from lejax._functional import step_fn as step_fn
from lejax._functional import value_and_grad as value_and_grad
from lejax._gaussian import GaussianState as GaussianState
from lejax._gaussian import gaussian as gaussian
from lejax._importance import importance as importance
from lejax._info import Info as Info
from lejax._inverse import negative_log_posterior as negative_log_posterior
from lejax._minimize import minimize as minimize
from lejax._parallel import parallel as parallel
from lejax._pathwise import pathwise as pathwise
from lejax._report import ReductionReport as ReductionReport
from lejax._report import reduction_report as reduction_report
from lejax._result import MinimizeResult as MinimizeResult
from lejax._robbins_monro import robbins_monro as robbins_monro
from lejax._sampler import Sampler as Sampler
from lejax._scoping import scoping as scoping
from lejax._score_function import score_function as score_function
from lejax._sgld import SGLDState as SGLDState
from lejax._sgld import sgld as sgld
from lejax._smoothing import SmoothingState as SmoothingState
from lejax._transform import heat as heat
from lejax._transform import local_entropy as local_entropy

__version__ = "0.1.0"
