"""Training objectives. Each is one file and one entry of `OBJECTIVES`."""

from t5x_lite.objectives.bidirectional_lm import BidirectionalLM
from t5x_lite.objectives.causal import Causal
from t5x_lite.objectives.choice import Choice
from t5x_lite.objectives.classify import Classify, Regress
from t5x_lite.objectives.contrastive import Contrastive
from t5x_lite.objectives.conversation import Conversation
from t5x_lite.objectives.denoising import Denoising
from t5x_lite.objectives.extract import Extract
from t5x_lite.objectives.grpo import GRPO
from t5x_lite.objectives.masked import Masked
from t5x_lite.objectives.objective import ExampleContext, Features, Objective, TokenRow, Vocabulary
from t5x_lite.objectives.permutation import Permutation
from t5x_lite.objectives.ppo import PPO
from t5x_lite.objectives.preference import Preference
from t5x_lite.objectives.prefix import Prefix
from t5x_lite.objectives.rag import Rag
from t5x_lite.objectives.replaced_token import ReplacedToken
from t5x_lite.objectives.retrieval import Retrieval
from t5x_lite.objectives.reward import Reward
from t5x_lite.objectives.sequence_autoencoder import SequenceAutoencoder
from t5x_lite.objectives.similarity import Similarity
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.objectives.tag import Tag
from t5x_lite.objectives.text_to_text import TextToText
from t5x_lite.objectives.translation import Translation
from t5x_lite.objectives.ul2 import UL2

OBJECTIVES: dict[str, type[Objective]] = {
    "causal": Causal,
    "conversation": Conversation,
    "prefix": Prefix,
    "sequence_autoencoder": SequenceAutoencoder,
    "span_corruption": SpanCorruption,
    "ul2": UL2,
    "denoising": Denoising,
    "text_to_text": TextToText,
    "masked": Masked,
    "permutation": Permutation,
    "replaced_token": ReplacedToken,
    "bidirectional_lm": BidirectionalLM,
    "contrastive": Contrastive,
    "translation": Translation,
    "classify": Classify,
    "regress": Regress,
    "tag": Tag,
    "extract": Extract,
    "choice": Choice,
    "similarity": Similarity,
    "retrieval": Retrieval,
    "rag": Rag,
    "reward": Reward,
    "preference": Preference,
    "ppo": PPO,
    "grpo": GRPO,
}

__all__ = ["OBJECTIVES", "Causal", "ExampleContext", "Features", "Objective", "TextToText", "TokenRow", "Vocabulary"]
