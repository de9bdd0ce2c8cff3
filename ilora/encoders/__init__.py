"""Sequence encoders: a user's history and an item as vectors."""

from ilora.encoders.base import SequenceEncoder, pad_histories
from ilora.encoders.registry import ENCODERS, build_encoder
from ilora.encoders.sasrec import SASRec
from ilora.encoders.storage import EncoderConfig, load_encoder, read_encoder_config
from ilora.encoders.training import EncoderResult, EncoderTraining, target_ranks, train_encoder

__all__ = [
    "ENCODERS",
    "EncoderConfig",
    "EncoderResult",
    "EncoderTraining",
    "SASRec",
    "SequenceEncoder",
    "build_encoder",
    "load_encoder",
    "pad_histories",
    "read_encoder_config",
    "target_ranks",
    "train_encoder",
]
