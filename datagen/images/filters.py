"""What all parts compute on images: Gaussian blurs, weighted means, reading at points, PSNR."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F

PSNR_IDENTICAL_DB = 100.0  # that of equal images would be infinite
_LEAST_ERROR = 4e-10  # mean square, which gives PSNR_IDENTICAL_DB
# Below, kornia takes most of its time for the Gaussian (of 96 x 96: 0.4 of 0.5 ms); above, it has a faster way.
_LARGE_PX = 256 * 256
# A wider Gaussian is found in a smaller image: of a quarter of the side, at 1024 px, it took seconds for each channel.
_WIDE_SIGMA_PX = 40
# A wider window of the guided filter goes by rows, then by columns: at 1024 px a matte of hair took 19 s.
_WIDE_WINDOW_PX = 4


def blurred(x: torch.Tensor, sigma_px: float, radius_px: int | None = None) -> torch.Tensor:
    """Gaussian blur of [C,H,W] or [N,C,H,W], edges reflected; of a sigma under 0.3 px as of 0.3.

    radius_px: where the Gaussian is cut off; None: after three deviations. It is at least 1 and less than the side.
    """
    from kornia.filters import filter2d_separable, gaussian_blur2d

    sigma_px = max(sigma_px, 0.3)
    radius_px = round(3 * sigma_px) if radius_px is None else radius_px
    size = 2 * min(max(1, radius_px), min(x.shape[-2:]) - 1) + 1
    images = x if x.ndim == 4 else x[None]
    if min(sigma_px, size / 6) > _WIDE_SIGMA_PX:
        found = _widely_blurred(images, sigma_px, radius_px)
    elif x.dtype == torch.float32 and x.shape[-2] * x.shape[-1] < _LARGE_PX:
        weights = _gaussian(size, sigma_px, x.device)
        found = filter2d_separable(images, weights, weights)
    else:
        found = gaussian_blur2d(images, size, (sigma_px, sigma_px))
    return found if x.ndim == 4 else found[0]


def _widely_blurred(images: torch.Tensor, sigma_px: float, radius_px: int) -> torch.Tensor:
    """`blurred` of images [N,C,H,W], so much smaller that sigma is 20 to 40 px; within 0.3 % of their range."""
    factor = 2 ** int(math.log2(2 * sigma_px / _WIDE_SIGMA_PX))
    height, width = images.shape[-2:]
    small = F.interpolate(images, size=(-(-height // factor), -(-width // factor)), mode="area")
    soft = blurred(small, sigma_px / factor, round(radius_px / factor))
    return F.interpolate(soft, size=(height, width), mode="bilinear", align_corners=False)


def guided(matte: torch.Tensor, image: torch.Tensor, radius_px: int, eps: float) -> torch.Tensor:
    """matte [1,H,W] with the edges of image [3,H,W] in [-1,1]: the guided filter (He, Sun, Tang 2010) over windows of
    radius_px; its range may be left by a little."""
    from kornia.filters import guided_blur

    by_rows = radius_px > _WIDE_WINDOW_PX
    return guided_blur((image[None] + 1) / 2, matte[None], 2 * radius_px + 1, eps, separable=by_rows)[0]


def blurred_within(values: torch.Tensor, weight: torch.Tensor, sigma_px: float) -> torch.Tensor:
    """Gaussian mean of values [C,H,W] over what weight [1,H,W] marks, carried on a little beyond it."""
    return blurred(values * weight, sigma_px) / blurred(weight, sigma_px).clamp_min(1e-3)


def mean_of(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean over the pixels: [C,h,w] with [1,h,w] -> [C,1,1]."""
    return (values * weight).sum((-2, -1), keepdim=True) / weight.sum().clamp_min(1e-6)


def overall_mean(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean of all values, of any shape -> []."""
    return (values * weight).sum() / weight.sum().clamp_min(1e-6)


def grown(mask: torch.Tensor, radius: float) -> torch.Tensor:
    """mask [C,h,w] or [N,C,h,w] dilated by a square of about `radius` pixels, at least one: rows, then columns, as the
    whole square takes 10 s where it is a tenth of 1024 px."""
    reach = max(1, round(radius))
    rows = F.max_pool2d(mask, (2 * reach + 1, 1), 1, (reach, 0))
    return F.max_pool2d(rows, (1, 2 * reach + 1), 1, (0, reach))


@lru_cache(maxsize=256)
def _gaussian(size: int, sigma_px: float, device: torch.device) -> torch.Tensor:
    from kornia.filters import get_gaussian_kernel1d

    with torch.inference_mode(False):
        return get_gaussian_kernel1d(size, sigma_px, device=device, dtype=torch.float32)


def read_at(
    planes: torch.Tensor, places: torch.Tensor, mode: str = "bilinear", padding: str = "border"
) -> torch.Tensor:
    """planes [C,H,W] read at places [...,2] (x, y; pixel centres at integers) -> [C,...].

    mode "bilinear", "bicubic" or "nearest"; padding is what lies outside: "border" repeats the edge, "reflection"
    mirrors at the outer pixels' centres, "zeros" is black.
    """
    height, width = planes.shape[-2:]
    # In the memory layout of `places`: by it bicubic reading differs in the last bit.
    scale = torch.tensor([2 / (width - 1), 2 / (height - 1)], dtype=places.dtype, device=places.device)
    grid = places * scale - 1
    found = F.grid_sample(planes[None], grid.reshape(1, 1, -1, 2), mode=mode, padding_mode=padding, align_corners=True)
    return found.reshape(-1, *places.shape[:-1])


def psnr(image: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio [N] in dB under soft masks [N,1,H,W]; images [N,3,H,W] in [-1,1]. 106 dB at most."""
    error, weight = _squared_error(image, target, mask)
    return 10 * torch.log10(4 / (error / weight.clamp_min(1e-6)).clamp_min(1e-10))


def psnr_db(image: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> float:
    """`psnr` of one image [3,H,W], in double precision: PSNR_IDENTICAL_DB at most, NaN where the mask is empty."""
    error, weight = (float(total) for total in _squared_error(image[None], target[None], mask[None]))
    if weight == 0 or not math.isfinite(error):
        return math.nan
    return 10 * math.log10(4 / max(error / weight, _LEAST_ERROR))


def _squared_error(image: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the masked squared errors, meaned over channels, and of the mask, [N] each."""
    error = (image.clamp(-1, 1) - target).square().mean(1, keepdim=True)
    return (error * mask).sum((1, 2, 3)), mask.sum((1, 2, 3))
