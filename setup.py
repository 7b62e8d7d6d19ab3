"""Builds the optional C kernels; everything else is declared in pyproject.toml.

Knows: where the C sources are and which flags they want. Must not know: anything about Python code.
A machine without a compiler still installs: the extension is optional and the torch path takes over.
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
        )
    ]
)
