"""Routers: which experts a token is sent to. One file a router, one entry here."""

from t5x_lite.models.experts.deepseek import DeepSeek
from t5x_lite.models.experts.expert_choice import ExpertChoice
from t5x_lite.models.experts.gshard import GShard
from t5x_lite.models.experts.router import Router
from t5x_lite.models.experts.switch import Switch
from t5x_lite.models.experts.top_k import TopK

ROUTERS: dict[str, type[Router]] = {
    "switch": Switch,
    "gshard": GShard,
    "top_k": TopK,
    "expert_choice": ExpertChoice,
    "deepseek": DeepSeek,
}

__all__ = ["ROUTERS", "DeepSeek", "ExpertChoice", "GShard", "Router", "Switch", "TopK"]
