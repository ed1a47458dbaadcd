"""Where a picture draws the eye, by classical methods that need no trained net: two of our own, one of OpenCV's.

Pictures are (B, H, W, 3) in [0, 1]; what they give is (B, H, W) in [0, 1], 1 at the most salient place of each picture.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .masks import blur_mask

BORDER, SPECTRAL, FINE = "border", "spectral residual", "fine grained (OpenCV)"
METHODS = (BORDER, SPECTRAL, FINE)
THRESHOLD = 0.2
"""That of the official inpainting example."""
SIDE = 64
"""Cells a side on which the spectrum is looked at (Hou and Zhang 2007)."""
RIM = 0.06
"""Width of the picture's rim, as a share of its side."""
LEAST_SPREAD = 1e-3
"""Variance of a colour that every rim is taken to have at least, so that a plain one has a finite distance."""


def find_salient(image: Tensor, method: str = BORDER) -> Tensor:
    """How salient each pixel of ``image`` is; by :data:`BORDER` where OpenCV is asked for and not installed."""
    given = image.float()
    if method == FINE and (opencv := import_opencv()):
        found = find_fine_grained(given, opencv)
    else:
        found = find_spectral_residual(given) if method == SPECTRAL else measure_border_distance(given)
    low, high = found.amin((1, 2), keepdim=True), found.amax((1, 2), keepdim=True)
    return (found - low) / (high - low).clamp(min=1e-9)


def measure_border_distance(image: Tensor) -> Tensor:
    """How unlike the colours at the picture's four sides each pixel is: what touches few of them stands out.

    The Mahalanobis distance to the colours of each side's rim; the sum of all but the largest, so that something that
    is cut by one side still counts (the boundary prior of Zhang et al., Minimum Barrier Salient Object Detection at 80
    FPS, ICCV 2015).
    """
    batch, height, width, channels = image.shape
    rows, columns = max(1, round(height * RIM)), max(1, round(width * RIM))
    rims = image[:, :rows], image[:, -rows:], image[:, :, :columns], image[:, :, -columns:]
    flat, distances = image.flatten(1, 2), []
    for rim in (rim.flatten(1, 2) for rim in rims):
        mean = rim.mean(1, keepdim=True)
        spread = (rim - mean).mT @ (rim - mean) / rim.shape[1]
        inverse = torch.linalg.inv((spread + LEAST_SPREAD * torch.eye(channels, device=image.device)).cpu()).to(image)
        away = flat - mean
        distance = ((away @ inverse) * away).sum(-1).clamp(min=0).sqrt()
        distances.append(distance / distance.amax(1, keepdim=True).clamp(min=1e-9))
    stacked = torch.stack(distances)
    return (stacked.sum(0) - stacked.amax(0)).view(batch, height, width)


def find_spectral_residual(image: Tensor) -> Tensor:
    """What is unexpected in the picture's spectrum, on a small grey copy (Hou and Zhang, CVPR 2007)."""
    height, width = image.shape[1:3]
    scale = SIDE / max(height, width)
    size = max(8, round(height * scale)), max(8, round(width * scale))
    grey = F.interpolate(image.mean(-1)[:, None], size, mode="bilinear", antialias=True)[:, 0].cpu()
    spectrum = torch.fft.fft2(grey)
    amplitude = spectrum.abs().clamp(min=1e-9).log()
    expected = F.avg_pool2d(F.pad(amplitude[:, None], (1, 1, 1, 1), mode="circular"), 3, 1)[:, 0]
    salient = torch.fft.ifft2(torch.polar((amplitude - expected).exp(), spectrum.angle())).abs().square()
    smooth = blur_mask(salient, 5)
    return F.interpolate(smooth[:, None], (height, width), mode="bilinear")[:, 0].to(image)


def import_opencv() -> Any:
    """OpenCV's saliency, which opencv-contrib-python has; None where it is not installed."""
    try:
        return import_module("cv2").saliency
    except (ImportError, AttributeError):
        return None


def find_fine_grained(image: Tensor, opencv: Any) -> Tensor:
    """What differs from its surroundings at several sizes (Montabone and Soto 2010), by ``opencv``."""
    pictures = (image.clamp(0, 1) * 255).round().byte().flip(-1).cpu().contiguous().numpy()  # it reads blue first
    found = []
    for picture in pictures:
        good, salient = opencv.StaticSaliencyFineGrained_create().computeSaliency(picture)
        found.append(torch.as_tensor(salient).float() if good else image.new_zeros(picture.shape[:2]).cpu())
    return torch.stack(found).to(image)
