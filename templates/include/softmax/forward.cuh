#pragma once

#include <cute/algorithm/fill.hpp>

#include <softmax/numeric.cuh>
#include <softmax/reduce.cuh>
#include <softmax/row_io.cuh>
#include <softmax/rows.cuh>
#include <softmax/scores.cuh>

namespace softmax {

// What every forward kernel is launched with. x and y may be the same tensor.
template <class Element, class Output = Element>
struct Forward
{
  Element const* x;
  Output* y;
  typename Numeric<Element>::Accumulator scale;
  Rows rows;
  RowStrides x_strides;
  RowStrides y_strides;
};

// The maximum of Width columns as a tree: in a chain, the latencies of all comparisons add up.
template <int Width, class Vector>
CUTE_DEVICE float max_of_vector(Vector const& rV /* (V) */, int first)
{
  if constexpr (Width == 1) {
    return rV(first);
  } else {
    return max_number(max_of_vector<Width / 2>(rV, first), max_of_vector<Width - Width / 2>(rV, first + Width / 2));
  }
}

template <class Accumulator, class Row, class ScoreTensor>
CUTE_DEVICE Accumulator max_of(Row const& row, ScoreTensor const& rZ /* (V*C+E) */, int end)
{
  Accumulator max = negative_infinity<Accumulator>();
  for_each_part(row, end, [&](auto part) {
    cute::Tensor rV = part.of(rZ);  // (V)
    if constexpr (sizeof(Accumulator) == sizeof(float) && !Row::InSharedMemory) {
      max = max_number(max, max_of_vector<part.Width>(rV, 0));
    } else {
      CUTE_UNROLL
      for (int v = 0; v < part.Width; ++v) { max = max_number(max, rV(v)); }
    }
  });
  return max;
}

// The sum of unit * exp(z - max), which take the place of z; where exponents are kept, z - max does.
//
// If exp is long (LongExp) it is emitted once, in a loop that rotates the registers; every vector of f64 is visited.
template <class Numeric, class Row, class Accumulator, class ScoreTensor, class Keep = cute::false_type>
CUTE_DEVICE Accumulator exponentiate(Row const& row, ScoreTensor& rZ /* (V*C+E) */, int end, Accumulator max, Keep keep = {})
{
  typename Numeric::Exp const exp(max);
  if constexpr (Numeric::LongExp) {
    static_assert(!kSkipsVectors<Row::Vec>, "every vector is visited");
    constexpr int Size = decltype(cute::size(rZ))::value;
    Accumulator sum    = 0;
    CUTE_NO_UNROLL
    for (int i = 0; i < Size; ++i) {
      Accumulator const z = rZ(0);
      Accumulator const e = exp(z);
      sum += e;
      CUTE_UNROLL
      for (int v = 1; v < Size; ++v) { rZ(v - 1) = rZ(v); }
      rZ(Size - 1) = keep ? z - exp.m : e;
    }
    return sum;
  } else {
    // Each vector is added up by itself, and in f32 and f64 results of rows in registers every other one apart and in pairs, for
    // fewer roundings one after the other: in those of 16 bits it does not show, and lanes of a tile hold few columns.
    constexpr int Sums     = Row::Vec > 4 || Row::InSharedMemory ? 1 : 2;
    Accumulator sums[Sums] = {};
    for_each_part(row, end, [&](auto part) {
      cute::Tensor rV = part.of(rZ);  // (V)
      Accumulator sum = 0, pair = 0;
      CUTE_UNROLL
      for (int v = 0; v < part.Width; ++v) {
        Accumulator const power = exp(rV(v));
        rV(v)                   = keep ? rV(v) - exp.m : power;
        pair                    = v % Sums == 0 ? power : pair + power;
        if ((v + 1) % Sums == 0 || v + 1 == part.Width) { sum = v < Sums ? pair : sum + pair; }
      }
      sums[part.c % Sums] += sum;
    });
    return Sums == 1 ? sums[0] : sums[0] + sums[Sums - 1];
  }
}

// Maximum and sum over the lane's share of a row; leaves exponentials in place of the scores.
template <class Numeric, class Row, class ScoreTensor>
CUTE_DEVICE MaxSum<Numeric> max_sum_of(Row const& row, ScoreTensor& rZ /* (V*C+E) */, int end)
{
  auto const max = max_of<typename Numeric::Accumulator>(row, rZ, end);
  return {max, exponentiate<Numeric>(row, rZ, end, max)};
}

// A warp's exponentials relative to its own maximum, in place of its scores, and what is known of them. `end` is that in the
// warp; one that sees nothing loads and computes nothing.
template <class Numeric, class Scores, class Row, class Element, class ScoreTensor, class Keep = cute::false_type>
CUTE_DEVICE MaxSum<Numeric> exponentials_of_warp(
    Scores const& scores, Row const& row, Element const* x, int end, ScoreTensor& rZ /* (V*C+E) */, Keep keep = {})
{
  using Accumulator = typename Numeric::Accumulator;
  if (Row::Skips && end == 0) {
    Accumulator const hidden = keep ? negative_infinity<Accumulator>() : Accumulator(0);
    for_each_part(row, end, [&](auto part) { cute::fill(part.of(rZ), hidden); });
    return MaxSum<Numeric>::nothing();
  }
  scores.load(row, x, end, rZ);
  Accumulator const max = group_max<32>(max_of<Accumulator>(row, rZ, end));
  return {max, group_sum<32>(exponentiate<Numeric>(row, rZ, end, max, keep))};
}

// The factor from unit * exp(z - max) to the probability. The sum of a row that sees nothing is 0: its probabilities are 0, not NaN.
template <class Numeric, class Accumulator>
CUTE_DEVICE Accumulator normaliser(Accumulator sum)
{
  return sum == 0 ? Accumulator(0) : Numeric::reciprocal(sum);
}

// The same for exponentials relative to another maximum than the row's.
template <class Numeric, class Accumulator>
CUTE_DEVICE Accumulator normaliser(Accumulator max, MaxSum<Numeric> row)
{
  typename Numeric::Exp const exp(row.max);
  return exp.unit_rebase(max) * normaliser<Numeric>(row.sum * exp.unit);
}

// What the rows of a softmax are made of: y = factor * e. What is hidden is 0, or NaN in a row that is NaN.
template <class Accumulator>
struct Probabilities
{
  Accumulator factor;

  CUTE_DEVICE Accumulator operator()(Accumulator e) const { return factor * e; }
  CUTE_DEVICE Accumulator hidden() const { return 0 * factor; }
};

// y = outcome(e), rounded once. Columns from `end` on are hidden.
template <class Row, class Output, class ScoreTensor, class Outcome>
CUTE_DEVICE void store_outcome(
    Row const& row, Output* y, int end, int k, ScoreTensor& rE /* (V*C+E) */, Outcome const& outcome)
{
  using namespace cute;
  for_each_part(row, k, [&](auto part) {
    Tensor rP = part.of(rE);                   // (V)
    Tensor rY = make_tensor_like<Output>(rP);  // (V)
    if (part.reaches(row, end)) {
      CUTE_UNROLL
      for (int v = 0; v < part.Width; ++v) { rP(v) = outcome(rP(v)); }
    } else {
      fill(rP, outcome.hidden());
    }
    narrow(rP, rY);
    part.span(row, k).store(y, rY);
  });
}

template <class Row, class Output, class ScoreTensor, class Accumulator>
CUTE_DEVICE void store_scaled(
    Row const& row, Output* y, int end, int k, ScoreTensor& rE /* (V*C+E) */, Accumulator factor)
{
  store_outcome(row, y, end, k, rE, Probabilities<Accumulator>{factor});
}

}  // namespace softmax
