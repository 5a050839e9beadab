"""The models that can be trained, one recipe per file. A new one is one file and one entry in `_MEMBERS`."""

from invfusion.names import Registry
from invfusion.training.recipes.base import Distillation, Recipe, StudentConfig
from invfusion.training.recipes.consistency import Consistency
from invfusion.training.recipes.finetuned import FineTuned
from invfusion.training.recipes.flow import Flow
from invfusion.training.recipes.indi import InDI
from invfusion.training.recipes.invfusion import InvFusion
from invfusion.training.recipes.invfusion_g import InvFusionG
from invfusion.training.recipes.mmse import MMSE
from invfusion.training.recipes.mmse_from_scratch import InvFusionEq7, PaletteEq7
from invfusion.training.recipes.nppc import NPPC
from invfusion.training.recipes.palette import Palette
from invfusion.training.recipes.unconditional import Unconditional
from invfusion.training.recipes.unrolled_ddrm import UnrolledDDRM

# In the order in which tables show them.
_MEMBERS: tuple[type[Recipe], ...] = (
    Unconditional, Palette, InvFusion, InvFusionG, Flow, InDI, FineTuned, MMSE, NPPC, Consistency, UnrolledDDRM,
    InvFusionEq7, PaletteEq7,
)  # fmt: skip

RECIPES: Registry[type[Recipe]] = Registry("trained model", {recipe.name: recipe for recipe in _MEMBERS})

__all__ = ["RECIPES", "Distillation", "Recipe", "StudentConfig"]
