#pragma once

#include <softmax/numeric.cuh>
#include <softmax/reduce.cuh>
#include <softmax/row_io.cuh>
#include <softmax/rows.cuh>

namespace softmax {

// What every backward kernel is launched with. dx may be dy or y.
template <class Element>
struct Backward
{
  Element const* dy;
  Element const* y;
  Element* dx;
  typename Numeric<Element>::Accumulator scale;
  Rows rows;
  RowStrides dy_strides;
  RowStrides y_strides;
  RowStrides dx_strides;
};

// The lane's share of a row of dy and y, as they lie in memory. What is hidden counts as 0 in both: it is not read, and what a
// vector across the end holds beyond it is dropped.
template <class Row, class Element, class Fragment>
CUTE_DEVICE void load_gradient(
    Row const& row, Element const* dy, Element const* y, int end, Fragment& rDy /* (V*C+E) */, Fragment& rY /* (V*C+E) */)
{
  using namespace cute;
  clear(rDy);
  clear(rY);
  // All loads are issued before the first use; those beyond the end are predicated off, not branched around.
  for_each_part<Row>(kEveryColumn, [&](auto part) {
    part.span(row, end).load(dy, part.of(rDy));
    part.span(row, end).load(y, part.of(rY));
  });
  for_each_part<Row>(end, [&](auto part) {
    auto const span  = part.span(row, end);
    int const inside = span.end - span.column;
    if (inside < part.Width) {
      CUTE_UNROLL
      for (int v = 0; v < part.Width; ++v) {
        if (v >= inside) {
          part.of(rDy)(v) = Element(0);
          part.of(rY)(v)  = Element(0);
        }
      }
    }
  });
}

// The lane's share of sum_j y_j dy_j.
template <class Row, class Accumulator, class Fragment>
CUTE_DEVICE Dot<Accumulator> dot_of(Fragment const& rDy /* (V*C+E) */, Fragment const& rY /* (V*C+E) */, int end)
{
  using namespace cute;
  Accumulator sum = 0;
  for_each_part<Row>(end, [&](auto part) {
    Tensor rG = make_tensor<Accumulator>(Shape<Int<part.Width>>{});  // (V)
    Tensor rP = make_tensor<Accumulator>(Shape<Int<part.Width>>{});  // (V)
    widen(part.of(rDy), rG);
    widen(part.of(rY), rP);
    CUTE_UNROLL
    for (int v = 0; v < part.Width; ++v) { sum = multiply_add(rP(v), rG(v), sum); }
  });
  return {sum};
}

// dx = scale * y * (dy - dot), rounded once. Columns from `end` on are hidden: 0, or NaN where 0 * dot is.
template <class Row, class Element, class Accumulator, class Fragment>
CUTE_DEVICE void store_gradient(
    Row const& row,
    Element* dx,
    int end,
    int k,
    Fragment const& rDy /* (V*C+E) */,
    Fragment const& rY /* (V*C+E) */,
    Accumulator scale,
    Accumulator dot)
{
  using namespace cute;
  for_each_part<Row>(k, [&](auto part) {
    Tensor rG  = make_tensor<Accumulator>(Shape<Int<part.Width>>{});  // (V)
    Tensor rP  = make_tensor<Accumulator>(Shape<Int<part.Width>>{});  // (V)
    Tensor rDx = make_tensor<Element>(Shape<Int<part.Width>>{});      // (V)
    if (part.reaches(end)) {
      widen(part.of(rDy), rG);
      widen(part.of(rY), rP);
      CUTE_UNROLL
      for (int v = 0; v < part.Width; ++v) { rG(v) = scale * rP(v) * (rG(v) - dot); }
    } else {
      fill(rG, 0 * dot);
    }
    narrow(rG, rDx);
    part.span(row, k).store(dx, rDx);
  });
}

}  // namespace softmax
