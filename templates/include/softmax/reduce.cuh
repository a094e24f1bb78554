#pragma once

#include <cute/config.hpp>

#include <softmax/numeric.cuh>

// Reductions over the lanes that share a row. Every lane of the warp takes part; partials combine in a fixed order, so the
// same row gives the same bits wherever it stands in the batch.

namespace softmax {

// Maximum over groups of Lanes neighbouring lanes, the result in every lane.
template <int Lanes, class Accumulator>
CUTE_DEVICE Accumulator group_max(Accumulator value)
{
  CUTE_UNROLL
  for (int step = Lanes / 2; step > 0; step /= 2) { value = max_number(value, __shfl_xor_sync(0xffffffffu, value, step)); }
  return value;
}

// Sum over groups of Lanes neighbouring lanes, the result in every lane. a + b == b + a: all lanes hold the same bits.
template <int Lanes, class Accumulator>
CUTE_DEVICE Accumulator group_sum(Accumulator value)
{
  CUTE_UNROLL
  for (int step = Lanes / 2; step > 0; step /= 2) { value += __shfl_xor_sync(0xffffffffu, value, step); }
  return value;
}

// The maximum of a set of scores and the sum of exp(z - max) over it.
template <class Accumulator>
struct MaxSum
{
  Accumulator max;
  Accumulator sum;
};

// Combines one pair per warp into the pair of the whole CTA, in every thread, with one barrier.
// sPartials holds Warps pairs and is written once per launch, so no second barrier guards it.
template <int Warps, class Numeric, class Accumulator>
CUTE_DEVICE MaxSum<Accumulator> block_max_sum(MaxSum<Accumulator> warp, MaxSum<Accumulator>* sPartials)
{
  static_assert(1 < Warps && Warps <= 32 && (Warps & (Warps - 1)) == 0, "a group of lanes holds one partial each");
  int const lane = threadIdx.x % 32;
  if (lane == 0) { sPartials[threadIdx.x / 32] = warp; }
  __syncthreads();

  MaxSum<Accumulator> const partial = sPartials[lane % Warps];
  Accumulator const max             = group_max<Warps>(partial.max);
  typename Numeric::Exp const exp(max);
  return {max, group_sum<Warps>(partial.sum * exp(partial.max))};
}

}  // namespace softmax
