"""Builds the optional C libraries; everything else is declared in pyproject.toml.

Knows: where the C sources are and which flags they want. Must not know: anything about Python code.
A machine without a compiler still installs: the extensions are optional, torch and numpy take over.
"""

from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "branchwork.kernels.cpu._native",
            sources=["kernels/cpu/native.c"],
            depends=glob("kernels/cpu/*.c"),
            # no fast-math: an answer may not depend on how a loop was cut
            extra_compile_args=["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"],
            extra_link_args=["-fopenmp"],
            optional=True,
        ),
        Extension(
            "branchwork.runtime.grammar._walk",
            sources=["runtime/grammar/walk.c"],
            extra_compile_args=["-O3"],
            optional=True,
        ),
    ]
)
