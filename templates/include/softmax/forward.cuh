#pragma once

#include <softmax/numeric.cuh>
#include <softmax/reduce.cuh>
#include <softmax/row_io.cuh>
#include <softmax/rows.cuh>
#include <softmax/scores.cuh>

namespace softmax {

// What every forward kernel is launched with. x and y may be the same tensor.
template <class Element>
struct Forward
{
  Element const* x;
  Element* y;
  typename Numeric<Element>::Accumulator scale;
  Rows rows;
  RowStrides x_strides;
  RowStrides y_strides;
};

template <class Row, class Accumulator, class ScoreTensor>
CUTE_DEVICE Accumulator max_of(ScoreTensor const& rZ /* (V*C+E) */, int end)
{
  Accumulator max = negative_infinity<Accumulator>();
  for_each_part<Row>(end, [&](auto part) {
    cute::Tensor rV = part.of(rZ);  // (V)
    CUTE_UNROLL
    for (int v = 0; v < part.Width; ++v) { max = max_number(max, rV(v)); }
  });
  return max;
}

// unit * exp(z - max) in place of z; returns the sum.
template <class Row, class Numeric, class Accumulator, class ScoreTensor>
CUTE_DEVICE Accumulator exponentiate(ScoreTensor& rZ /* (V*C+E) */, int end, Accumulator max)
{
  typename Numeric::Exp const exp(max);
  Accumulator sum = 0;
  for_each_part<Row>(end, [&](auto part) {
    cute::Tensor rV = part.of(rZ);  // (V)
    CUTE_UNROLL
    for (int v = 0; v < part.Width; ++v) {
      rV(v) = exp(rV(v));
      sum += rV(v);
    }
  });
  return sum;
}

// What is known of a row from the lane's share of it; leaves exponentials in place of the scores.
template <class Row, class Numeric, class ScoreTensor>
CUTE_DEVICE MaxSum<Numeric> max_sum_of(ScoreTensor& rZ /* (V*C+E) */, int end)
{
  auto const max = max_of<Row, typename Numeric::Accumulator>(rZ, end);
  return {max, exponentiate<Row, Numeric>(rZ, end, max)};
}

// What turns unit * exp(z - max) into the probability. The sum of a row that sees nothing is 0: its probabilities are 0, not NaN.
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
  return exp.unit_weight(max) * normaliser<Numeric>(row.sum * exp.unit);
}

// y = factor * e, rounded once. Columns from `end` on are hidden: 0, or NaN in a row that is NaN.
template <class Row, class Element, class Accumulator, class ScoreTensor>
CUTE_DEVICE void store_scaled(
    Row const& row, Element* y, int end, int k, ScoreTensor& rE /* (V*C+E) */, Accumulator factor)
{
  using namespace cute;
  for_each_part<Row>(k, [&](auto part) {
    Tensor rP = part.of(rE);                    // (V)
    Tensor rY = make_tensor_like<Element>(rP);  // (V)
    if (part.reaches(end)) {
      CUTE_UNROLL
      for (int v = 0; v < part.Width; ++v) { rP(v) *= factor; }
    } else {
      fill(rP, 0 * factor);
    }
    narrow(rP, rY);
    part.span(row, k).store(y, rY);
  });
}

}  // namespace softmax
