"""Sequence mixers: the first sublayer of a block. One file a mixer, one entry here."""

from t5x_lite.models.mixers.gated_deltanet import GatedDeltaNet
from t5x_lite.models.mixers.gru import GRU
from t5x_lite.models.mixers.latent_attention import LatentAttention
from t5x_lite.models.mixers.lstm import LSTM
from t5x_lite.models.mixers.mamba2 import Mamba2
from t5x_lite.models.mixers.mixer import Mixer, SelfAttention, StateMixer
from t5x_lite.models.mixers.rg_lru import RGLRU
from t5x_lite.models.mixers.rnn import RNN

MIXERS: dict[str, type[Mixer]] = {
    "attention": SelfAttention,
    "latent_attention": LatentAttention,
    "lstm": LSTM,
    "gru": GRU,
    "rnn": RNN,
    "rg_lru": RGLRU,
    "mamba2": Mamba2,
    "gated_deltanet": GatedDeltaNet,
}

__all__ = [
    "GRU",
    "LSTM",
    "MIXERS",
    "RGLRU",
    "RNN",
    "GatedDeltaNet",
    "LatentAttention",
    "Mamba2",
    "Mixer",
    "SelfAttention",
    "StateMixer",
]
