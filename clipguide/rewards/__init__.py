"""Load rewards by name: `Reward("pickscore", "a red fox")`, `--reward pickscore:0.5`."""

from .registry import FREE, REWARDS, Kind, Settings, Wanted, register_reward, wanted
from .reward import Reward
from .table import KINDS, table

for name, kind in KINDS.items():
    REWARDS.register(name, kind)
del name, kind

__all__ = [
    "FREE",
    "REWARDS",
    "Kind",
    "Reward",
    "Settings",
    "Wanted",
    "register_reward",
    "table",
    "wanted",
]
