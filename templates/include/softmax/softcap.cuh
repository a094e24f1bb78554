#pragma once

#include <softmax/numeric.cuh>
#include <softmax/scores.cuh>

namespace softmax {

// z = cap tanh(z / cap); a cap of 0 leaves it as it is.
//
//   cap tanh(u) = cap - 2 cap / (1 + exp(2 u)),  to the rounding of cap
template <class Accumulator>
struct Softcap : InertFeature
{
  struct Params
  {
    Accumulator cap;
    Accumulator twice_inverse;  // 2 / cap
  };

  Params p;

  CUTE_DEVICE Softcap(Params const& p, Rows const&, RowIndex const&) : p(p) {}
  CUTE_DEVICE Softcap from(int /*column*/) const { return *this; }

  template <class Span, class ScoreVector>
  CUTE_DEVICE void apply(Span const& span, NoFragment, ScoreVector&& rZ /* (V) */) const
  {
    if (p.cap != 0) {
      CUTE_UNROLL
      for (int v = 0; v < Span::Width; ++v) {
        Accumulator const power = approximate_exp(rZ(v) * p.twice_inverse);
        rZ(v)                   = fma(-2 * p.cap, approximate_reciprocal(1 + power), p.cap);
      }
    }
  }
};

}  // namespace softmax
