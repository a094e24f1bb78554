#pragma once

#include <cute/config.hpp>

// What a kernel has to do with its grid: how many CTAs share an SM, and which rows a CTA takes.

namespace softmax {

// Minimum CTAs per SM for __launch_bounds__, each from its architecture on.
constexpr int ctas_per_sm(int sm_70, int sm_80, int sm_90, int sm_100, int sm_120)
{
  return __CUDA_ARCH__ >= 1200   ? sm_120
         : __CUDA_ARCH__ >= 1000 ? sm_100
         : __CUDA_ARCH__ >= 900  ? sm_90
         : __CUDA_ARCH__ >= 800  ? sm_80
                                 : sm_70;
}

// Which of n groups of rows a CTA (or cluster) works on. Later causal rows are longer: of two neighbouring CTAs one takes a group
// from the start of the launch and one from its end, so that each pair reads about the same amount. It is not always the even CTA
// that takes the one from the start: a GPU of 132 SMs tends to give each every 132nd CTA, and half of them would get short rows only.
CUTE_DEVICE int from_either_end(int cta, int n) { return __popc(cta) % 2 == 0 ? cta / 2 : n - 1 - cta / 2; }

}  // namespace softmax
