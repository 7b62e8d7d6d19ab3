"""All kernels' cases by the part of the suite that runs them: shapes of real models, odd shapes, tiny ones.

Knows: the files of cases. Must not know: any kernel.
"""

from __future__ import annotations

import gpu_cases_attention
import gpu_cases_layers
import gpu_cases_products
import gpu_cases_sample
from gpu_case import Case

FILES = (gpu_cases_attention, gpu_cases_layers, gpu_cases_products, gpu_cases_sample)


def timed() -> list[Case]:
    """Shapes of real models: timed, and held against the definition as well."""
    return [case for file in FILES for case in file.timed()]


def edges() -> list[Case]:
    """Small odd shapes, held against the definition."""
    return [case for file in FILES for case in file.edges()]


def tiny() -> list[Case]:
    """Every kind of case as small as can be, for Triton's interpreter."""
    return [case for file in FILES for case in file.tiny()]
