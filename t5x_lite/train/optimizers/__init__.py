"""Optimizers: one file each, one entry here."""

from t5x_lite.train.optimizers.adafactor import Adafactor
from t5x_lite.train.optimizers.adamw import AdamW
from t5x_lite.train.optimizers.lamb import Lamb
from t5x_lite.train.optimizers.method import OptimizerMethod
from t5x_lite.train.optimizers.muon import Muon
from t5x_lite.train.optimizers.nt_asgd import NTASGD
from t5x_lite.train.optimizers.sgd import SGD

OPTIMIZERS: dict[str, type[OptimizerMethod]] = {
    "adamw": AdamW,
    "adafactor": Adafactor,
    "lamb": Lamb,
    "muon": Muon,
    "sgd": SGD,
    "nt_asgd": NTASGD,
}
