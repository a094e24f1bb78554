#pragma once

#include <cute/algorithm/clear.hpp>
#include <cute/algorithm/fill.hpp>

#include <softmax/numeric.cuh>
#include <softmax/reduce.cuh>
#include <softmax/row_io.cuh>
#include <softmax/rows.cuh>

namespace softmax {

// What every backward kernel is launched with. dx may be dy or y.
template <class Element, class Output = Element>
struct Backward
{
  Element const* dy;
  Element const* y;
  Output* dx;
  typename Numeric<Element>::Accumulator scale;
  Rows rows;
  RowStrides dy_strides;
  RowStrides y_strides;
  RowStrides dx_strides;
};

// The gradient of a softmax in terms of its results: what a column adds to the dot product, and its gradient in the end.
//
//   dx = scale * y * (dy - dot),  dot = sum_j y_j dy_j
template <class Element>
struct SoftmaxGradient
{
  using Accumulator = typename Numeric<Element>::Accumulator;

  Accumulator scale;

  // y in hidden columns.
  CUTE_DEVICE Element hidden() const { return Element(0); }
  CUTE_DEVICE Accumulator add(Accumulator sum, Accumulator y, Accumulator dy) const { return fma(y, dy, sum); }

  // dx where y is hidden: 0, or NaN in a row that is NaN.
  CUTE_DEVICE Accumulator outside(Accumulator dot) const { return 0 * dot; }

  // dx in place of dy.
  template <class Vector>
  CUTE_DEVICE void apply(Vector& rG /* (V) */, Vector const& rP /* (V) */, Accumulator dot) const
  {
    CUTE_UNROLL
    for (int v = 0; v < cute::size(rG); ++v) { rG(v) = scale * rP(v) * (rG(v) - dot); }
  }
};

// The lane's share of a row of dy and y, as they lie in memory. What is hidden counts as 0 in dy and as a hidden y: it is not
// read, and what a vector across the begin or the end holds beyond it is dropped. A row that begins with its first column says
// so by a static 0.
template <class Row, class Element, class Fragment, class Begin, class Gradient>
CUTE_DEVICE void load_gradient(
    Row const& row,
    Element const* dy,
    Element const* y,
    Begin begin,
    int end,
    Gradient const& gradient,
    Fragment& rDy /* (V*C+E) */,
    Fragment& rY /* (V*C+E) */)
{
  using namespace cute;
  constexpr bool HidesHead = !is_static<Begin>::value;
  auto const seen = [&](auto part) { return part.span(row, end).from(begin); };
  clear(rDy);
  fill(rY, gradient.hidden());
  // All loads from global memory are issued before the first use.
  if constexpr (Row::InSharedMemory) {
    for_each_part(row, kEveryColumn, [&](auto part) {
      seen(part).read(dy, part.of(rDy));
      seen(part).read(y, part.of(rY));
    });
  } else {
    for_each(make_tuple(Whole{}, ByElement{}), [&](auto how) {
      load_parts(how, row, seen, dy, [&](auto part) { return part.of(rDy); });
      load_parts(how, row, seen, y, [&](auto part) { return part.of(rY); });
    });
  }
  for_each_part(row, end, [&](auto part) {
    auto const span  = seen(part);
    int const before = begin - span.column;
    int const inside = span.end - span.column;
    if ((HidesHead && before > 0) || inside < part.Width) {
      CUTE_UNROLL
      for (int v = 0; v < part.Width; ++v) {
        if ((HidesHead && v < before) || v >= inside) {
          part.of(rDy)(v) = Element(0);
          part.of(rY)(v)  = gradient.hidden();
        }
      }
    }
  });
}

// The lane's share of the dot product.
template <class Row, class Gradient, class Fragment>
CUTE_DEVICE auto dot_of(
    Row const& row, Fragment const& rDy /* (V*C+E) */, Fragment const& rY /* (V*C+E) */, int end, Gradient const& gradient)
{
  using namespace cute;
  using Accumulator = typename Gradient::Accumulator;
  Accumulator sum   = 0;
  for_each_part(row, end, [&](auto part) {
    Tensor rG = make_tensor<Accumulator>(Shape<Int<part.Width>>{});  // (V)
    Tensor rP = make_tensor<Accumulator>(Shape<Int<part.Width>>{});  // (V)
    widen(part.of(rDy), rG);
    widen(part.of(rY), rP);
    CUTE_UNROLL
    for (int v = 0; v < part.Width; ++v) { sum = gradient.add(sum, rP(v), rG(v)); }
  });
  return Dot<Accumulator>{sum};
}

// dx, rounded once. Columns from `end` on are hidden.
template <class Row, class Output, class Gradient, class Fragment>
CUTE_DEVICE void store_gradient(
    Row const& row,
    Output* dx,
    int end,
    int k,
    Fragment const& rDy /* (V*C+E) */,
    Fragment const& rY /* (V*C+E) */,
    Gradient const& gradient,
    typename Gradient::Accumulator dot)
{
  using namespace cute;
  using Accumulator = typename Gradient::Accumulator;
  for_each_part(row, k, [&](auto part) {
    Tensor rG  = make_tensor<Accumulator>(Shape<Int<part.Width>>{});  // (V)
    Tensor rP  = make_tensor<Accumulator>(Shape<Int<part.Width>>{});  // (V)
    Tensor rDx = make_tensor<Output>(Shape<Int<part.Width>>{});       // (V)
    if (part.reaches(row, end)) {
      widen(part.of(rDy), rG);
      widen(part.of(rY), rP);
      gradient.apply(rG, rP, dot);
    } else {
      fill(rG, gradient.outside(dot));
    }
    narrow(rG, rDx);
    part.span(row, k).store(dx, rDx);
  });
}

}  // namespace softmax
