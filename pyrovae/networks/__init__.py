"""Encoders and decoders: torch only, any number of batch axes to the left.

MLP          linear layers with Glorot's start
GatedMLP     linear layers with gates
Conv         convolutions, for images of any size from 4 x 4 on
ResNet       residual networks with batch normalization, for the same; the encoder is torchvision's
Encoder      how to write your own; Decoder beside it
"""

from pyrovae.networks.base import Decoder, Encoder
from pyrovae.networks.conv import ConvDecoder, ConvEncoder
from pyrovae.networks.gated_mlp import GatedMLPDecoder, GatedMLPEncoder
from pyrovae.networks.mlp import MLPDecoder, MLPEncoder
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
