"""Convert between text and ids: a small common interface for all kinds of tokenizers."""

from textgym.codecs.kinds import FastCodec, SlowCodec, WordCodec
from textgym.codecs.protocol import Codec, Decoder

__all__ = ["Codec", "Decoder", "FastCodec", "SlowCodec", "WordCodec"]
