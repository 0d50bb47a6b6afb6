"""Text to ids and back: one small interface over every kind of tokenizer."""

from textgym.codecs.kinds import FastCodec, SlowCodec, WordCodec
from textgym.codecs.protocol import Codec, Decoder

__all__ = ["Codec", "Decoder", "FastCodec", "SlowCodec", "WordCodec"]
