"""Builds the optional C kernels; everything else is declared in pyproject.toml.

Knows: where the C sources are and which flags they want. Must not know: anything about Python code.
A machine without a compiler still installs: the extension is optional and the torch path takes over.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "branchwork.kernels.cpu._native",
            sources=["kernels/cpu/native.c"],
            extra_compile_args=["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros"],
            extra_link_args=["-fopenmp"],
            optional=True,
        )
    ]
)
