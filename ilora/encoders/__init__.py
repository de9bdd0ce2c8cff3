"""Sequence encoders: a user's history and an item as vectors."""

from ilora.encoders.base import SequenceEncoder, pad_histories
from ilora.encoders.caser import Caser
from ilora.encoders.evaluation import target_ranks
from ilora.encoders.gru4rec import GRU4Rec
from ilora.encoders.registry import ENCODERS, build_encoder
from ilora.encoders.sasrec import SASRec
from ilora.encoders.storage import EncoderConfig, load_encoder, read_encoder_config
from ilora.encoders.training import EncoderResult, EncoderTraining, train_encoder

__all__ = [
    "ENCODERS",
    "Caser",
    "EncoderConfig",
    "EncoderResult",
    "EncoderTraining",
    "GRU4Rec",
    "SASRec",
    "SequenceEncoder",
    "build_encoder",
    "load_encoder",
    "pad_histories",
    "read_encoder_config",
    "target_ranks",
    "train_encoder",
]
