"""Composite blocks with a shortcut: ResNet's basic block and bottleneck, and MobileNet's inverted residual.

Shapes: B batch, C channels, H and W height and width, E expanded channels.
"""

from __future__ import annotations

import functools

from torch import Tensor, nn

from harness.task.models.blocks import ConvBlock, narrow


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, C_in, H, W] -> [B, C_out, H/stride, W/stride].

    The shortcut is a 1x1 convolution with norm where the shape changes (option B), else the input itself; a
    narrower copy therefore has the convolution. Convolutions have a bias only where `norm` is "none".

    Source: He et al. 2016, arXiv:1512.03385, figure 5 left.
    """

    expansion = 1
    """C_out over the channels that the paper's table 1 gives a stage's 3x3 convolutions."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, norm: str = "batch") -> None:
        super().__init__()
        self.out_channels = out_channels
        self._remake = functools.partial(type(self), in_channels, stride=stride, norm=norm)
        make = functools.partial(ConvBlock, norm=norm, bias=norm == "none")
        self.first = make(in_channels, out_channels, 3, stride)
        self.second = make(out_channels, out_channels, 3, activation="none")
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else make(in_channels, out_channels, 1, stride, activation="none")
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(convolutions(x) + shortcut(x))."""
        out: Tensor = self.activation(self.second(self.first(x)) + self.shortcut(x))
        return out

    def narrowed(self, width: float) -> tuple[nn.Module, ...]:
        """Return a fresh copy with `width` times the channels in both convolutions, same stride and norm."""
        return (self._remake(out_channels=narrow(self.out_channels, width)),)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution and a shortcut: [B, C_in, H, W] -> [B, C_out, H/stride, W/stride].

    The first two convolutions have a quarter of C_out. The 3x3 convolution has the stride ("v1.5", as in timm and
    torchvision, where the paper has it on the first 1x1). Shortcut and biases as in `ResidualBlock`.

    Source: He et al. 2016, arXiv:1512.03385, figure 5 right.
    """

    expansion = 4

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, norm: str = "batch") -> None:
        super().__init__()
        self.out_channels = out_channels
        self._remake = functools.partial(type(self), in_channels, stride=stride, norm=norm)
        make = functools.partial(ConvBlock, norm=norm, bias=norm == "none")
        inner = max(1, out_channels // self.expansion)
        self.first = make(in_channels, inner, 1)
        self.second = make(inner, inner, 3, stride)
        self.third = make(inner, out_channels, 1, activation="none")
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else make(in_channels, out_channels, 1, stride, activation="none")
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(convolutions(x) + shortcut(x))."""
        out: Tensor = self.activation(self.third(self.second(self.first(x))) + self.shortcut(x))
        return out

    def narrowed(self, width: float) -> tuple[nn.Module, ...]:
        """Return a fresh copy with `width` times the channels in all three convolutions, same stride and norm."""
        return (self._remake(out_channels=narrow(self.out_channels, width)),)


class SqueezeExcitation(nn.Module):
    """Scales every channel by a gate computed from all channel means: [B, E, H, W] -> the same shape.

    The bottleneck has a quarter of the channels, rounded to a multiple of 8.

    Source: Howard et al. 2019, arXiv:1905.02244, section 5.3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = _multiple_of_8(channels // 4)
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.activation = nn.ReLU()
        self.excite = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Return x times its gate, a number in 0..1 per channel."""
        squeezed = self.activation(self.squeeze(x.mean(dim=(2, 3), keepdim=True)))
        gate: Tensor = self.gate(self.excite(squeezed))
        return x * gate


class InvertedResidual(nn.Module):
    """Expand (1x1), depthwise, squeeze-excitation, project (1x1).

    [B, C_in, H, W] -> [B, C_out, H/stride, W/stride].

    No expansion where E = C_in; a shortcut where the shape stays.

    Source: Sandler et al. 2018, arXiv:1801.04381, figure 4 d; with squeeze-excitation Howard et al. 2019,
    arXiv:1905.02244, figure 4.

    Args:
        expanded_channels: E.
        squeeze: whether squeeze-excitation follows the depthwise convolution.
        eps: the norm's; torchvision has 0.001 in MobileNetV3 and 1e-5 in MobileNetV2.
    """

    def __init__(
        self,
        in_channels: int,
        expanded_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        *,
        squeeze: bool,
        activation: str,
        norm: str = "batch",
        eps: float = 0.001,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self._remake = functools.partial(
            type(self),
            in_channels,
            expanded_channels,
            kernel=kernel,
            stride=stride,
            squeeze=squeeze,
            activation=activation,
            norm=norm,
            eps=eps,
        )
        make = functools.partial(ConvBlock, norm=norm, bias=norm == "none", eps=eps)
        self.expand = (
            nn.Identity()
            if expanded_channels == in_channels
            else make(in_channels, expanded_channels, 1, activation=activation)
        )
        self.depthwise = make(
            expanded_channels,
            expanded_channels,
            kernel,
            stride,
            groups=expanded_channels,
            activation=activation,
        )
        self.squeeze = SqueezeExcitation(expanded_channels) if squeeze else nn.Identity()
        self.project = make(expanded_channels, out_channels, 1, activation="none")
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the projection, plus x where the block has a shortcut."""
        out: Tensor = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + out if self.has_shortcut else out

    def narrowed(self, width: float) -> tuple[nn.Module, ...]:
        """Return a fresh copy with `width` times the output channels; E belongs to the input and stays."""
        return (self._remake(out_channels=narrow(self.out_channels, width)),)

    def extra_repr(self) -> str:
        """Return whether the block has a shortcut, which its parts do not show."""
        return f"shortcut={self.has_shortcut}"


def _multiple_of_8(channels: int) -> int:
    """Return the multiple of 8 nearest to `channels`, never more than 10 % below it."""
    nearest = max(8, (channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
