"""box_iou, encode_boxes, decode_boxes and their gradients in Triton.

These operators do little arithmetic and are expected to be bound by memory. A program loads and
stores blocks of whole boxes, and everything else happens in registers. A program of four warps
handles a few thousand numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdssd.ops._settings import BoxCodingSettings
from mdssd.ops.triton.common import (
    OPTIONS,
    area,
    blocks,
    decode,
    encode,
    iou,
    larger,
    load_four,
    narrow,
    power_of_2,
    smaller,
    store_four,
)

ROWS = 512  # boxes that a program encodes or decodes


@triton.jit
def box_iou_kernel(a, b, out, n, m, N_BLOCK: tl.constexpr, M_BLOCK: tl.constexpr):
    """Compute out[i, j] = iou(a[i], b[j]) for a tile of N_BLOCK x M_BLOCK pairs."""
    tile, across = tl.program_id(0).to(tl.int64), tl.cdiv(m, M_BLOCK)
    i = tile // across * N_BLOCK + tl.arange(0, N_BLOCK)
    j = tile % across * M_BLOCK + tl.arange(0, M_BLOCK)
    ax1, ay1, ax2, ay2 = load_four(a, i, i < n)
    bx1, by1, bx2, by2 = load_four(b, j, j < m)
    area_a, area_b = area(ax1, ay1, ax2, ay2), area(bx1, by1, bx2, by2)
    value = iou(
        ax1[:, None], ay1[:, None], ax2[:, None], ay2[:, None], area_a[:, None],
        bx1[None, :], by1[None, :], bx2[None, :], by2[None, :], area_b[None, :], None,
    )  # fmt: skip
    mask = (i < n)[:, None] & (j < m)[None, :]
    tl.store(out + i[:, None] * m + j[None, :], narrow(value, out.dtype.element_ty), mask=mask)


@triton.jit
def won(mine, other):
    """Return the share of `mine` in an edge of the intersection: 1, 0, or 0.5 if both set it."""
    return tl.where(mine > other, 1.0, tl.where(mine == other, 0.5, 0.0))


@triton.jit
def iou_gradient(weight, x1, y1, x2, y2, ox1, oy1, ox2, oy2):
    """Return the gradient of iou with respect to the first boxes, times `weight`."""
    mine, other = area(x1, y1, x2, y2), area(ox1, oy1, ox2, oy2)
    overlap = iou(x1, y1, x2, y2, mine, ox1, oy1, ox2, oy2, other, None)
    width = smaller(x2, ox2) - larger(x1, ox1)
    height = smaller(y2, oy2) - larger(y1, oy1)
    union = mine + other - width * height
    d_intersection = tl.div_rn(weight * (1 + overlap), union)
    d_area = -tl.div_rn(weight * overlap, union)
    d_width, d_height = d_intersection * height, d_intersection * width
    own_width, own_height = x2 - x1, y2 - y1
    hit = overlap > 0  # false for a box with an infinite side, whose terms would be NaN
    return (
        tl.where(hit, -d_width * won(x1, ox1) - d_area * own_height, 0.0),
        tl.where(hit, -d_height * won(y1, oy1) - d_area * own_width, 0.0),
        tl.where(hit, d_width * won(ox2, x2) + d_area * own_height, 0.0),
        tl.where(hit, d_height * won(oy2, y2) + d_area * own_width, 0.0),
    )


@triton.jit
def box_iou_backward_kernel(
    grad, mine, other, out, n, m, row_step, column_step,
    N_BLOCK: tl.constexpr, M_BLOCK: tl.constexpr,
):  # fmt: skip
    """out[i] = sum over j of grad[i * row_step + j * column_step] * d iou(mine[i], other[j]).

    A program handles N_BLOCK boxes of `mine` and loops over `other`, in a fixed order.
    """
    i = tl.program_id(0).to(tl.int64) * N_BLOCK + tl.arange(0, N_BLOCK)
    x1, y1, x2, y2 = load_four(mine, i, i < n)
    sum_x1 = tl.zeros((N_BLOCK,), tl.float32)
    sum_y1 = tl.zeros((N_BLOCK,), tl.float32)
    sum_x2 = tl.zeros((N_BLOCK,), tl.float32)
    sum_y2 = tl.zeros((N_BLOCK,), tl.float32)
    for first in range(0, m, M_BLOCK):
        j = first + tl.arange(0, M_BLOCK).to(tl.int64)
        ox1, oy1, ox2, oy2 = load_four(other, j, j < m)
        mask = (i < n)[:, None] & (j < m)[None, :]
        offsets = i[:, None] * row_step + j[None, :] * column_step
        weight = tl.load(grad + offsets, mask=mask, other=0).to(tl.float32)
        d_x1, d_y1, d_x2, d_y2 = iou_gradient(
            weight, x1[:, None], y1[:, None], x2[:, None], y2[:, None],
            ox1[None, :], oy1[None, :], ox2[None, :], oy2[None, :],
        )  # fmt: skip
        sum_x1 += tl.sum(d_x1, 1)
        sum_y1 += tl.sum(d_y1, 1)
        sum_x2 += tl.sum(d_x2, 1)
        sum_y2 += tl.sum(d_y2, 1)
    store_four(out, i, sum_x1, sum_y1, sum_x2, sum_y2, i < n)


@triton.jit
def encode_boxes_kernel(boxes, priors, out, rows, num_priors, v0, v1, BLOCK: tl.constexpr):
    """Encode BLOCK rows of `boxes`; row i belongs to prior i % num_priors."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = row < rows
    x1, y1, x2, y2 = load_four(boxes, row, mask)
    cx, cy, w, h = load_four(priors, row % num_priors, mask)
    ox, oy, ow, oh = encode(x1, y1, x2, y2, cx, cy, w, h, v0, v1)
    store_four(out, row, ox, oy, ow, oh, mask)


@triton.jit
def decode_boxes_kernel(loc, priors, out, rows, num_priors, v0, v1, BLOCK: tl.constexpr):
    """Decode BLOCK rows of `loc`; row i belongs to prior i % num_priors."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = row < rows
    ox, oy, ow, oh = load_four(loc, row, mask)
    cx, cy, w, h = load_four(priors, row % num_priors, mask)
    x1, y1, x2, y2 = decode(ox, oy, ow, oh, cx, cy, w, h, v0, v1, float("inf"))
    store_four(out, row, x1, y1, x2, y2, mask)


@triton.jit
def encode_boxes_backward_kernel(
    grad, boxes, priors, out, rows, num_priors, v0, v1, BLOCK: tl.constexpr
):
    """Compute the gradient of `encode` with respect to BLOCK boxes."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = row < rows
    g_x, g_y, g_w, g_h = load_four(grad, row, mask)
    x1, y1, x2, y2 = load_four(boxes, row, mask)
    _, _, w, h = load_four(priors, row % num_priors, mask)
    d_cx, d_cy = tl.div_rn(g_x, w * v0) * 0.5, tl.div_rn(g_y, h * v0) * 0.5
    d_w, d_h = tl.div_rn(g_w, (x2 - x1) * v1), tl.div_rn(g_h, (y2 - y1) * v1)
    store_four(out, row, d_cx - d_w, d_cy - d_h, d_cx + d_w, d_cy + d_h, mask)


@triton.jit
def decode_boxes_backward_kernel(
    grad, loc, priors, out, rows, num_priors, v0, v1, BLOCK: tl.constexpr
):
    """Compute the gradient of `decode` with respect to the offsets of BLOCK rows."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = row < rows
    g_x1, g_y1, g_x2, g_y2 = load_four(grad, row, mask)
    _, _, ow, oh = load_four(loc, row, mask)
    _, _, w, h = load_four(priors, row % num_priors, mask)
    half_w, half_h = w * tl.exp(ow * v1) * 0.5, h * tl.exp(oh * v1) * 0.5
    store_four(
        out, row, (g_x1 + g_x2) * v0 * w, (g_y1 + g_y2) * v0 * h,
        (g_x2 - g_x1) * half_w * v1, (g_y2 - g_y1) * half_h * v1, mask,
    )  # fmt: skip


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Run `mdssd.ops.box_iou`."""
    a, b = a.contiguous(), b.contiguous()
    n, m = a.shape[0], b.shape[0]
    out = a.new_empty(n, m)
    if out.numel():
        m_block = power_of_2(m, 128)
        n_block = 2048 // m_block
        # One axis, since a GPU limits the second one to 65,535 programs.
        grid = (blocks(n, n_block) * blocks(m, m_block),)
        box_iou_kernel[grid](a, b, out, n, m, N_BLOCK=n_block, M_BLOCK=m_block, **OPTIONS)
    return out


def box_iou_backward(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `box_iou` with respect to both arguments."""
    grad, a, b = grad.contiguous(), a.contiguous(), b.contiguous()
    n, m = grad.shape
    grad_a, grad_b = torch.zeros_like(a), torch.zeros_like(b)
    for mine, other, out, row_step, column_step in ((a, b, grad_a, m, 1), (b, a, grad_b, 1, m)):
        boxes, others = mine.shape[0], other.shape[0]
        if boxes and others:
            # Neighbouring threads should read consecutive elements of `grad`, which run along
            # `other` in the first pass and along `mine` in the second.
            n_block, m_block = (8, power_of_2(others, 128)) if column_step == 1 else (32, 32)
            box_iou_backward_kernel[(blocks(boxes, n_block),)](
                grad, mine, other, out, boxes, others, row_step, column_step,
                N_BLOCK=n_block, M_BLOCK=m_block, **OPTIONS,
            )  # fmt: skip
    return grad_a, grad_b


def _code(kernel: Any, rows: list[Tensor], priors: Tensor, settings: BoxCodingSettings) -> Tensor:
    """Launch one of the four coding kernels: rows [..., N, 4], priors [N, 4]."""
    rows = [tensor.contiguous() for tensor in rows]
    priors = priors.float().contiguous()
    out = torch.empty_like(rows[0])
    num_rows = out.numel() // 4
    if num_rows:
        kernel[(blocks(num_rows, ROWS),)](
            *rows, priors, out, num_rows, priors.shape[0], settings.v0, settings.v1,
            BLOCK=ROWS, **OPTIONS,
        )  # fmt: skip
    return out


def encode_boxes(boxes: Tensor, priors: Tensor, settings: BoxCodingSettings) -> Tensor:
    """Run `mdssd.ops.encode_boxes`."""
    return _code(encode_boxes_kernel, [boxes], priors, settings)


def encode_boxes_backward(
    grad: Tensor, boxes: Tensor, priors: Tensor, settings: BoxCodingSettings
) -> Tensor:
    """Return the gradient of `encode_boxes` with respect to the boxes."""
    return _code(encode_boxes_backward_kernel, [grad, boxes], priors, settings)


def decode_boxes(loc: Tensor, priors: Tensor, settings: BoxCodingSettings) -> Tensor:
    """Run `mdssd.ops.decode_boxes`."""
    return _code(decode_boxes_kernel, [loc], priors, settings)


def decode_boxes_backward(
    grad: Tensor, loc: Tensor, priors: Tensor, settings: BoxCodingSettings
) -> Tensor:
    """Return the gradient of `decode_boxes` with respect to the offsets."""
    return _code(decode_boxes_backward_kernel, [grad, loc], priors, settings)
