"""Independent float64 NumPy twins of the formulas and stages of pyngp.

Written from ``specs/instant-ngp-compat.md`` alone; the C++ and CUDA code is tested against them, so
they favour clarity over speed.  Section numbers in docstrings (D.4, E.2, ...) refer to that
specification.
"""
