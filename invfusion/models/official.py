"""One-to-one names between our state dict and that of the published code (noamelata/InvFusion), to import by.

Shapes are equal under these names, and so are the meanings: feature orders and frequencies follow the same laws.
"""

import re

# Applied in order to one of our keys; each changes only keys of ours.
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^log_variance\.frequencies$", "logvar_fourier.freqs"),
        (r"^log_variance\.phases$", "logvar_fourier.phases"),
        (r"^log_variance\.head\.", "logvar_linear."),
        (r"^net\.", "unet."),
        (r"^unet\.(patch_in|patch_out)\.", r"unet.\1.proj."),
        (r"^unet\.conditioning\.", "unet."),
        (r"^unet\.time_features\.", "unet.time_emb."),
        (r"^unet\.time_proj\.", "unet.time_in_proj."),
        (r"^unet\.augment_features\.", "unet.aug_emb."),
        (r"^unet\.augment_proj\.", "unet.aug_in_proj."),
        (r"^unet\.class_embedding\.", "unet.class_emb."),
        (r"^unet\.(down|up)\.", r"unet.\1_levels."),
        (r"^unet\.middle\.", "unet.mid_level."),
        (r"\.factor$", ".fac"),
        (r"\.attention\.degradation\.mix\.", ".feature_degradation.deg_linear."),
        (r"\.attention\.degradation_norm\.", ".attn.self_attn.jnorm."),
        (r"\.attention\.degradation_key\.", ".attn.self_attn.jk_proj."),
        (r"\.attention\.degradation_value\.", ".attn.self_attn.jv_proj."),
        (r"\.attention\.rope\.frequencies$", ".attn.self_attn.pos_emb.freqs"),
        (r"\.attention\.(qkv|out)\.", r".attn.self_attn.\1_proj."),
        (r"\.attention\.", ".attn.self_attn."),
        (r"\.feed_forward\.", ".attn.ff."),
        (r"\.body\.(up|down)\.", r".\1_proj."),
    )
)


def official_name(key: str) -> str:
    """The published code's name of one of our state-dict keys."""
    for pattern, replacement in _RULES:
        key = pattern.sub(replacement, key)
    return key
