// Training with a random number of grid levels (Testbed's max_level_rand_training): features of a ray's finer levels
// are zero, and get no gradient, so that the coarse levels alone learn to show the scene. Half of the rays see all
// levels. (The specification, A.5, names the option only; the distribution is ours.)
#pragma once

#include <ngp/formulas/hd.h>

namespace ngp {

// Share of the levels that a ray sees, in [0,1], from a uniform number in [0,1); 1: all.
NGP_HD float drawn_max_level(float u) { return min_of(1.0f, 2.0f * u); }

// How many of a grid's levels that is, coarsest first: from 1 to n_levels.
NGP_HD int levels_below(float max_level, int n_levels) {
    return min_of(int(max_level * float(n_levels)) + 1, n_levels);
}

} // namespace ngp
