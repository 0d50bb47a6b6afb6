"""Text to ids and back: one small interface over every kind of tokenizer."""

from textgym.codecs.fast import FastCodec, WordCodec
from textgym.codecs.protocol import Codec, Decoder
from textgym.codecs.sources import SlowCodec

__all__ = ["Codec", "Decoder", "FastCodec", "SlowCodec", "WordCodec"]
