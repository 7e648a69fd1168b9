"""Warps of many views at once: crop and resize, apply a homography, recolour.

Every function is differentiable with respect to the image, and draws no random numbers: they are
arguments, float64 tensors on the CPU with one entry for each view.

Two steps avoid aliasing. `cut` resizes a box with `F.interpolate(antialias=True)`, to fewer pixels
if the warp will reduce it. `warp` then samples it once through one homography, in steps of about a
pixel, so that no pixel is skipped. A box that is small enough is not resized.

Shapes: N views, 3 channels, H rows, W columns, s the side of a view, y and x places in it. Places
of a view run from −1 to 1, x to the right and y down, as in `F.grid_sample`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

PADDINGS = ("border", "reflection", "zeros")

_YIQ = torch.tensor(  # NTSC; its first row is the luma
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]],
    dtype=torch.float64,
)
_NEAREST = (
    0.05  # the least depth of a homography: what lies at its horizon and beyond is kept there
)
_FARTHEST = 3.0  # the farthest place that is read, a view's width beyond its edge


def cut(
    image_3HW: torch.Tensor, box_N4: torch.Tensor, size: int, shrink_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return view_N3ss, with boxes of an image in the top left corner of each view, and filled_N2,
    the rows and columns that they fill.

    `box_N4` holds top, left, height and width in whole pixels, inside the image. A box that is
    larger than size / shrink, rounded up, is resized to that size. A smaller box keeps its size.
    """
    views, filled = [], []
    for box, shrink in zip(box_N4.long().tolist(), shrink_N.tolist(), strict=True):
        top, left, height, width = box
        most = math.ceil(size / shrink - 1e-6)
        rows, columns = min(height, most), min(width, most)
        view_3HW = image_3HW[:, top : top + height, left : left + width]
        if (rows, columns) != (height, width):
            view_3HW = F.interpolate(
                view_3HW[None], (rows, columns), mode="bilinear", antialias=True
            )[0]
        views.append(F.pad(view_3HW, (0, size - columns, 0, size - rows)))
        filled.append((rows, columns))
    return torch.stack(views), torch.tensor(filled, dtype=torch.float64)


def affine(
    *,
    mirror_N: torch.Tensor,
    shear_N: torch.Tensor,
    scale_N: torch.Tensor,
    angle_N: torch.Tensor,
    shift_N2: torch.Tensor,
) -> torch.Tensor:
    """Return matrix_N33 from a place in a crop to a place in the view: mirrored left to right where
    `mirror_N`, sheared along x by an angle, scaled, turned anticlockwise, then shifted by fractions
    of the side (right, down). Angles are in degrees."""
    shear_N, angle_N = torch.deg2rad(shear_N), torch.deg2rad(angle_N)
    zero_N, one_N = torch.zeros_like(scale_N), torch.ones_like(scale_N)
    cos_N, sin_N = angle_N.cos(), angle_N.sin()
    side_N = torch.where(mirror_N, -one_N, one_N)
    sheared_N22 = _matrix([[side_N, shear_N.tan()], [zero_N, one_N]])
    turned_N22 = _matrix([[cos_N, sin_N], [-sin_N, cos_N]]) * scale_N[:, None, None]
    matrix_N33 = torch.eye(3).to(scale_N).repeat(len(scale_N), 1, 1)
    matrix_N33[:, :2, :2] = turned_N22 @ sheared_N22
    matrix_N33[:, :2, 2] = 2 * shift_N2
    return matrix_N33


def perspective(inward_N42: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return matrix_N33 that moves the corners of a view inwards, and area_N, the fraction of the
    view that it then fills.

    `inward_N42` has the fraction of the side by which each corner moves along x and y, in [0, 0.5):
    top left, top right, bottom right, bottom left. The homography of a square and a quadrilateral
    is Heckbert's (1989, Fundamentals of Texture Mapping and Image Warping, section 2.2.3).
    """
    corner_42 = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]]).to(inward_N42)
    p0, p1, p2, p3 = (corner_42 + (1 - 2 * corner_42) * inward_N42).unbind(1)  # each N2
    sum_N2, right_N2, left_N2 = p0 - p1 + p2 - p3, p1 - p2, p3 - p2
    across_N = _cross(right_N2, left_N2)
    g_N1 = (_cross(sum_N2, left_N2) / across_N)[:, None]
    h_N1 = (_cross(right_N2, sum_N2) / across_N)[:, None]
    top_N23 = torch.stack([p1 - p0 + g_N1 * p1, p3 - p0 + h_N1 * p3, p0], 2)
    bottom_N13 = torch.stack([g_N1, h_N1, torch.ones_like(g_N1)], 2)
    centred_33 = torch.tensor([[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1]]).to(inward_N42)
    matrix_N33 = centred_33.inverse() @ torch.cat([top_N23, bottom_N13], 1) @ centred_33
    return matrix_N33, _cross(p2 - p0, p3 - p1).abs() / 2


def warp(
    view_N3ss: torch.Tensor, filled_N2: torch.Tensor, matrix_N33: torch.Tensor, padding: str
) -> torch.Tensor:
    """Return view_N3ss. Each pixel is read once, bilinearly, from the place in the result of `cut`
    that the inverse of its matrix gives. Beyond the edges, `padding` applies, one of PADDINGS."""
    x_Nss, y_Nss = _sources(torch.linalg.inv(matrix_N33).to(view_N3ss), view_N3ss.shape[-1])
    if padding == "zeros":
        inside_Nss = (x_Nss.abs() <= 1 + 1e-6) & (y_Nss.abs() <= 1 + 1e-6)
    if padding == "reflection":
        x_Nss, y_Nss = (1 - (place.add(1).remainder(4) - 2).abs() for place in (x_Nss, y_Nss))
    share_N2 = (filled_N2 / view_N3ss.shape[-1]).to(view_N3ss)
    half = 1 / view_N3ss.shape[-1]  # a pixel
    grid = []
    for place_Nss, share_N in ((x_Nss, share_N2[:, 1]), (y_Nss, share_N2[:, 0])):
        share_N11 = share_N[:, None, None]
        place_Nss = share_N11 * place_Nss + (share_N11 - 1)
        grid.append(place_Nss.clamp_min(half - 1).minimum(2 * share_N11 - 1 - half))
    grid_Nss2 = torch.stack(grid, 3)
    view_N3ss = F.grid_sample(view_N3ss, grid_Nss2, padding_mode="border", align_corners=False)
    return view_N3ss * inside_Nss[:, None] if padding == "zeros" else view_N3ss


def _sources(inverse_N33: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x_Nss and y_Nss, the places from which the pixels of a view are read."""
    place_s = (2 * torch.arange(size).to(inverse_N33) + 1) / size - 1
    along_x_N3s = inverse_N33[:, :, :1] * place_s + inverse_N33[:, :, 2:]
    along_y_N3s = inverse_N33[:, :, 1:2] * place_s
    x_Nss, y_Nss, depth_Nss = (along_y_N3s[..., None] + along_x_N3s[:, :, None]).unbind(1)
    depth_Nss = depth_Nss.clamp_min(_NEAREST)
    return tuple((place / depth_Nss).clamp(-_FARTHEST, _FARTHEST) for place in (x_Nss, y_Nss))


def recolour(
    view_N3ss: torch.Tensor,
    *,
    brightness_N: torch.Tensor,
    contrast_N: torch.Tensor,
    saturation_N: torch.Tensor,
    hue_N: torch.Tensor,
) -> torch.Tensor:
    """Return view_N3ss with colours changed by one linear map per view, which keeps greys grey.

    The brightness is a gain. The contrast is another gain around the mean luma of the view. The
    saturation scales the chroma of YIQ (0 is greyscale). The hue turns it by a fraction of a full
    turn.
    """
    cos_N, sin_N = (saturation_N * part(2 * math.pi * hue_N) for part in (torch.cos, torch.sin))
    chroma_N33 = torch.eye(3).to(hue_N).repeat(len(hue_N), 1, 1)
    chroma_N33[:, 1:, 1:] = _matrix([[cos_N, -sin_N], [sin_N, cos_N]])
    colour_N33 = _YIQ.inverse() @ chroma_N33 @ _YIQ
    colour_N33 = colour_N33 * (brightness_N * contrast_N)[:, None, None]
    rest_N = (brightness_N * (1 - contrast_N)).to(view_N3ss)
    luma_N = view_N3ss.mean((2, 3)) @ _YIQ[0].to(view_N3ss)
    changed_N3P = torch.baddbmm(
        (rest_N * luma_N)[:, None, None], colour_N33.to(view_N3ss), view_N3ss.flatten(2)
    )
    return changed_N3P.view_as(view_N3ss)


def erase(view_N3ss: torch.Tensor, box_N4: torch.Tensor) -> torch.Tensor:
    """Return view_N3ss, black in a box: top, left, height and width in fractions of the side."""
    size = view_N3ss.shape[-1]
    place_s = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    top_N1, left_N1, height_N1, width_N1 = box_N4.split(1, 1)
    inside_y_Ns = (place_s >= top_N1) & (place_s < top_N1 + height_N1)
    inside_x_Ns = (place_s >= left_N1) & (place_s < left_N1 + width_N1)
    inside_N1ss = (inside_y_Ns[:, :, None] & inside_x_Ns[:, None])[:, None]
    return view_N3ss.masked_fill(inside_N1ss.to(view_N3ss.device), 0)


def _matrix(rows: list[list[torch.Tensor]]) -> torch.Tensor:
    """Return matrix_N22 from its entries, each of N."""
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def _cross(a_N2: torch.Tensor, b_N2: torch.Tensor) -> torch.Tensor:
    return a_N2[:, 0] * b_N2[:, 1] - a_N2[:, 1] * b_N2[:, 0]
