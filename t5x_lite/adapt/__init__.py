"""Adaptation methods: from a run to the first weights of another. One file a method, one entry here."""

from t5x_lite.adapt.adapters import Houlsby, Pfeiffer
from t5x_lite.adapt.bitfit import BitFit
from t5x_lite.adapt.copy_layers import CopyLayers
from t5x_lite.adapt.features import Features
from t5x_lite.adapt.full import Full
from t5x_lite.adapt.fusion import Fusion
from t5x_lite.adapt.head import Head
from t5x_lite.adapt.ia3 import IA3
from t5x_lite.adapt.lora import LoRA
from t5x_lite.adapt.lottery import Lottery
from t5x_lite.adapt.method import AdaptationMethod
from t5x_lite.adapt.prompt import Prefix, Prompt
from t5x_lite.adapt.reference import Reference
from t5x_lite.adapt.top import Top
from t5x_lite.adapt.two_towers import TwoTowers
from t5x_lite.adapt.unfreeze import Unfreeze
from t5x_lite.adapt.upcycle import Upcycle

ADAPTATIONS: dict[str, type[AdaptationMethod]] = {
    "full": Full,
    "copy_layers": CopyLayers,
    "reference": Reference,
    "two_towers": TwoTowers,
    "head": Head,
    "features": Features,
    "top": Top,
    "bitfit": BitFit,
    "houlsby": Houlsby,
    "pfeiffer": Pfeiffer,
    "fusion": Fusion,
    "lora": LoRA,
    "prompt": Prompt,
    "prefix": Prefix,
    "ia3": IA3,
    "unfreeze": Unfreeze,
    "lottery": Lottery,
    "upcycle": Upcycle,
}
