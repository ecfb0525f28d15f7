"""Encoders and decoders: torch only, any number of batch axes to the left."""

from pyrovae.networks.mlp import MLPDecoder, MLPEncoder

__all__ = ["MLPDecoder", "MLPEncoder"]
