"""What of the attention kernels is compiled ahead of time: common shapes, every flag, every height of tile.

Knows: the kernels' arguments. Must not know: how anything is compiled.
"""

from __future__ import annotations

from branchwork.kernels.triton.attention_kernels import FP8, INT8, PLAIN, attend, merge
from branchwork.kernels.triton.tuning import Specimen

_TALL_OF_BYTES: dict[int, tuple[str, ...]] = {PLAIN: (), INT8: ("sm_80", "sm_90"), FP8: ("gfx90a", "gfx942")}
_POOLS = {PLAIN: "", INT8: "*i8", FP8: "*u8"}


def _attend(
    name: str, height: int, dim: int, group: int, kind: int = PLAIN, q: str = "bf16", **flags: bool
) -> Specimen:
    """One launch of `attend`: 8 key heads, pages of 16."""
    padded = 1 << (dim - 1).bit_length()
    held = _POOLS[kind] or f"*{q}"
    slot = "i32" if kind == INT8 else "i32:16"  # rows of D + 8 bytes
    signature = {
        "q_base": f"*{q}",
        "k_pool": held,
        "v_pool": held,
        "out_base": f"*{q}",
        **dict.fromkeys(("parts", "parts_top", "key_scales", "value_scales"), "*fp32"),
        **dict.fromkeys(("page_list", "tiles", "order", "at_base", "words"), "*i32"),
        "scale": "fp32",
        "cap": "fp32",
        "window": "i32",
        **dict.fromkeys(("q_token_step", "q_head_step", "out_token_step"), "i32:16"),
        **dict.fromkeys(("page_step", "head_step", "scale_page_step", "scale_head_step"), "i32:16"),
        "slot_step": slot,
        "scale_slot_step": slot,
    }
    constexprs = {
        "KVH": 8,
        "G": group,
        "D": dim,
        "DP": padded,
        "PAGE": 16,
        "KV": kind,
        "HEIGHT": height,
        **{flag: flags.get(flag.lower(), False) for flag in ("WINDOWED", "CAPPED", "TREE")},
    }
    key = f"{height}x{max(128, padded)}{'f' if q == 'fp32' else ''}"
    # RDNA's matrix units want every operand in registers twice: only tiles of 16 rows of 256 bytes fit
    spills: tuple[str, ...] = ("gfx1100",) if height > 16 or padded > 128 or q == "fp32" else ()
    if height == 128:  # decoding bytes costs the tallest tiles a few registers more than these have (sm_90: Triton 3.6)
        spills += _TALL_OF_BYTES[kind]
    return Specimen(f"{name} {height}x{dim} {q}", attend, signature, constexprs, ("attend", key), spills)


_MERGE = {
    **dict.fromkeys(("parts", "parts_top"), "*fp32"),
    **dict.fromkeys(("tokens", "cuts", "slots"), "*i32"),
    "out_base": "*bf16",
    "out_token_step": "i32:16",
}

SPECIMENS = [
    _attend("decode", 16, 128, 4),
    _attend("decode", 16, 64, 8),
    _attend("decode", 16, 80, 1),
    _attend("decode", 16, 256, 2),
    _attend("decode", 16, 128, 4, q="fp16"),
    _attend("decode", 16, 128, 4, q="fp32"),
    _attend("decode", 16, 256, 4, q="fp32"),
    _attend("decode int8", 16, 128, 4, INT8),
    _attend("decode e4m3", 16, 128, 4, FP8),
    _attend("decode windowed capped", 16, 128, 2, windowed=True, capped=True),
    _attend("verify", 64, 128, 4, tree=True),
    _attend("verify windowed capped int8", 64, 128, 4, INT8, tree=True, windowed=True, capped=True),
    _attend("shared", 64, 128, 4),
    _attend("shared e4m3", 64, 128, 4, FP8),
    _attend("shared", 64, 256, 2),
    _attend("shared", 32, 128, 4, q="fp32"),
    _attend("shared", 32, 256, 4, q="fp32"),
    _attend("extend", 128, 128, 4),
    _attend("extend", 128, 64, 7),
    _attend("extend capped", 128, 128, 2, capped=True),
    _attend("extend windowed", 128, 128, 4, windowed=True),
    _attend("extend int8", 128, 128, 4, INT8),
    _attend("extend e4m3", 128, 128, 4, FP8),
    _attend("extend verify", 128, 128, 4, tree=True),
    Specimen("merge", merge, _MERGE, {"H": 32, "D": 128, "DP": 128}, ("merge", "")),
]
