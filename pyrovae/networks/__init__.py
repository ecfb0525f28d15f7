"""Encoders and decoders in plain torch, for any number of batch axes.

MLP          linear layers
GatedMLP     linear layers with gates
Conv         convolutions, for images of 4 x 4 pixels or more
ResNet       residual networks with batch normalization, for images of 4 x 4 pixels or more
Encoder      base class, which says how to write your own; likewise Decoder
"""

from pyrovae.networks.base import Decoder, Encoder
from pyrovae.networks.conv import ConvDecoder, ConvEncoder
from pyrovae.networks.mlp import GatedMLPDecoder, GatedMLPEncoder, MLPDecoder, MLPEncoder
from pyrovae.networks.resnet import ResNetDecoder, ResNetEncoder

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "Decoder",
    "Encoder",
    "GatedMLPDecoder",
    "GatedMLPEncoder",
    "MLPDecoder",
    "MLPEncoder",
    "ResNetDecoder",
    "ResNetEncoder",
]
