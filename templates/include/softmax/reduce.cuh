#pragma once

#include <cute/numeric/integral_constant.hpp>
#include <cute/numeric/math.hpp>

#include <softmax/numeric.cuh>

// Reductions over the lanes that share a row. Every lane of the warp takes part, or those that it names as members; partials
// combine in a fixed order, so the same row gives the same bits wherever it stands in the batch.

namespace softmax {

// The group of Lanes neighbouring lanes of which the thread is one.
template <int Lanes>
CUTE_DEVICE uint32_t group_of_lane()
{
  return (ptx::kFullMask >> (32 - Lanes)) << (threadIdx.x % 32 / Lanes * Lanes);
}

// Maximum over groups of Lanes neighbouring lanes, the result in every lane.
template <int Lanes, class Accumulator>
CUTE_DEVICE Accumulator group_max(Accumulator value, uint32_t members = ptx::kFullMask)
{
  CUTE_UNROLL
  for (int step = Lanes / 2; step > 0; step /= 2) { value = max_number(value, __shfl_xor_sync(members, value, step)); }
  return value;
}

// Sum over groups of Lanes neighbouring lanes, the result in every lane. a + b == b + a, rounded: all lanes hold the same bits.
template <int Lanes, class Accumulator>
CUTE_DEVICE Accumulator group_sum(Accumulator value, uint32_t members = ptx::kFullMask)
{
  CUTE_UNROLL
  for (int step = Lanes / 2; step > 0; step /= 2) { value = rounded_sum(value, __shfl_xor_sync(members, value, step)); }
  return value;
}

// What is known of a row from some of its scores: their maximum, and the sum of unit * exp(z - max).
template <class Numeric>
struct alignas(2 * sizeof(typename Numeric::Accumulator)) MaxSum  // moves in one access
{
  typename Numeric::Accumulator max;
  typename Numeric::Accumulator sum;

  CUTE_DEVICE static MaxSum nothing() { return {negative_infinity<typename Numeric::Accumulator>(), 0}; }

  // One exponential: the side with the larger maximum needs no rescaling.
  CUTE_DEVICE void add(MaxSum other)
  {
    bool const larger = max >= other.max;
    auto const both   = larger ? max : other.max;
    auto const rebase = typename Numeric::Exp(both).rebase(larger ? other.max : max);
    sum               = larger ? fma(other.sum, rebase, sum) : fma(sum, rebase, other.sum);
    max               = both;
  }

  template <int Lanes>
  CUTE_DEVICE MaxSum over_lanes() const
  {
    auto const all = group_max<Lanes>(max);
    return {all, group_sum<Lanes>(sum * typename Numeric::Exp(all).rebase(max))};
  }
};

// What is known of a gradient's row from some of its columns: the sum of y dy.
template <class Accumulator>
struct Dot
{
  Accumulator sum;

  CUTE_DEVICE static Dot nothing() { return {0}; }
  CUTE_DEVICE void add(Dot other) { sum += other.sum; }

  template <int Lanes>
  CUTE_DEVICE Dot over_lanes() const
  {
    return {group_sum<Lanes>(sum)};
  }
};

// The first `count` of at most Most partials become one, in every lane.
template <int Most, class Partial, class Count>
CUTE_DEVICE Partial over_partials(Partial const* sPartials /* (count) */, Count count)
{
  constexpr int Lanes = cute::bit_ceil(uint32_t(Most));
  static_assert(1 < Lanes && Lanes <= 32, "a group of lanes holds one partial each");
  int const i        = threadIdx.x % Lanes;
  Partial const each = i < int(count) ? sPartials[i] : Partial::nothing();
  return each.template over_lanes<Lanes>();
}

// One partial per warp, already the same in all its lanes, becomes that of the whole CTA, in every thread, with one barrier.
// A launch may have fewer than MaxWarps.
// sPartials is written once per launch, so no second barrier guards it.
template <int MaxWarps, class Partial, class Warps = cute::Int<MaxWarps>>
CUTE_DEVICE Partial over_warps(Partial warp, Partial* sPartials /* (warps) */, Warps warps = {})
{
  if (threadIdx.x % 32 == 0) { sPartials[threadIdx.x / 32] = warp; }
  __syncthreads();
  return over_partials<MaxWarps>(sPartials, warps);
}

}  // namespace softmax
