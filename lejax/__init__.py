"""Minimise smoothed losses in JAX, with or without gradients.

Samplers: estimate one step
    importance              local entropy, without gradients of the loss; any loss
    importance_by_example   the local entropy of each example's loss, without gradients
    sgld                    local entropy, by a Langevin chain
    score_function          heat, without gradients of the loss
    pathwise                heat, by an average of gradients
    robbins_monro           heat, an implicit step by many small ones
    parallel                any of these over all devices

Transformations: gradients for the head of an `optax.chain`
    local_entropy           by importance, importance_by_example or sgld
    heat                    by score_function, pathwise or robbins_monro
    gaussian                either of them, with a covariance learnt beside the mean
    entropy_sgd             Entropy-SGD, a whole optimizer

Whole runs: from a start to a result
    minimize                one call, with stopping rules and advice
    ask_tell                losses that are evaluated outside of JAX
    search_rule             a black-box search, as pure init, ask and tell
    plot                    a figure of a run

Schedules: numbers that change from update to update
    scoping                 the paper's schedule of τ
    target_share            τ by the share of samples that are effective
    beta_for_share          β for such a share, from given losses

Pure functions and diagnostics
    step_fn                 one step of the paper's algorithms
    value_and_grad          a smoothed loss and its gradient
    negative_log_posterior  the loss of a Bayesian inverse problem
    certificate             a lower bound on the decrease by an update
    reduction_report        which leaves are drawn in fewer dimensions, and why

Results and states
    Sampler                 the type of all samplers, and its named axes
    Info                    the diagnostics of one update
    MinimizeResult          the result of `minimize`
    MinimizeState           the state from which `minimize` continues
    AskTell                 the result of `ask_tell`
    Certificate             the result of `certificate`
    ReductionReport         the result of `reduction_report`
    SmoothingState          the state of `local_entropy` and `heat`
    GaussianState           the state of `gaussian`
    SGLDState               the state of `sgld`: its chains
    AskTellState            the state of `ask_tell`
    SearchState             the state of `search_rule`
"""

import typing as _typing

from lejax._estimators.effective_sample_size import beta_for_share
from lejax._info import Info
from lejax._posterior import negative_log_posterior
from lejax._run.ask_tell import AskTell, AskTellState, ask_tell
from lejax._run.loop import MinimizeState
from lejax._run.minimize import minimize
from lejax._run.plot import plot
from lejax._run.result import MinimizeResult
from lejax._samplers.importance import importance
from lejax._samplers.importance_by_example import importance_by_example
from lejax._samplers.parallel import parallel
from lejax._samplers.pathwise import pathwise
from lejax._samplers.robbins_monro import robbins_monro
from lejax._samplers.sampler import Sampler
from lejax._samplers.score_function import score_function
from lejax._samplers.sgld import SGLDState, sgld
from lejax._schedules.scoping import scoping
from lejax._schedules.target_share import target_share
from lejax._search.search_rule import search_rule
from lejax._search.state import SearchState
from lejax._tracing.report import ReductionReport, reduction_report
from lejax._transforms.certificate import Certificate, certificate
from lejax._transforms.entropy_sgd import entropy_sgd
from lejax._transforms.functional import step_fn, value_and_grad
from lejax._transforms.gaussian import gaussian
from lejax._transforms.gaussian_step import GaussianState
from lejax._transforms.heat import heat
from lejax._transforms.local_entropy import local_entropy
from lejax._transforms.smoothing import SmoothingState

__all__ = [
    "AskTell",
    "AskTellState",
    "Certificate",
    "GaussianState",
    "Info",
    "MinimizeResult",
    "MinimizeState",
    "ReductionReport",
    "SGLDState",
    "Sampler",
    "SearchState",
    "SmoothingState",
    "ask_tell",
    "beta_for_share",
    "certificate",
    "entropy_sgd",
    "gaussian",
    "heat",
    "importance",
    "importance_by_example",
    "local_entropy",
    "minimize",
    "negative_log_posterior",
    "parallel",
    "pathwise",
    "plot",
    "reduction_report",
    "robbins_monro",
    "scoping",
    "score_function",
    "search_rule",
    "sgld",
    "step_fn",
    "target_share",
    "value_and_grad",
]
__version__ = "0.1.0"


if not _typing.TYPE_CHECKING:  # which finds names that do not exist by itself

    def __getattr__(name: str) -> _typing.NoReturn:
        """Lead on those who look for a search in one call."""
        beside = ""
        if name == "search":
            beside = (
                "; lejax.search_rule is a black-box search by init, ask and tell, and "
                "lejax.ask_tell evaluates the losses of a chain outside of JAX"
            )
        raise AttributeError(f"module 'lejax' has no attribute {name!r}{beside}.")


def __dir__() -> list[str]:
    """The public names alone, without the private packages."""
    return [*__all__, "__version__"]
