"""Stop rules of the field, and one of ours: how many tokens to draft before the verifier is asked."""

from baselines.stops.confidence import ConfidenceLength
from baselines.stops.cost_aware import CostAwareLength
from baselines.stops.draft_exit import DraftExit
from baselines.stops.entropy import AcceptanceControl, AdaEdlLength, SvipLength
from baselines.stops.heuristic import HeuristicLength

__all__ = [
    "AcceptanceControl",
    "AdaEdlLength",
    "ConfidenceLength",
    "CostAwareLength",
    "DraftExit",
    "HeuristicLength",
    "SvipLength",
]
