#pragma once

#include <softmax/rows.cuh>
#include <softmax/scores.cuh>

namespace softmax {

// Column j is visible to query i when j <= i + offset. offset = K - Q aligns the last query with the last column
// (bottom-right), 0 the first with the first (top-left).
struct Causal : InertFeature
{
  struct Params
  {
    int64_t offset;
    RowStrides query;  // 1 for the query dimension, 0 for the others: the row's query is their scalar product
  };

  // Whether every query sees all k columns.
  CUTE_DEVICE static bool hides_nothing(Params const& p, int k) { return p.offset >= k - 1; }

  static constexpr bool HidesTail = true;

  int64_t visible;  // columns before the first hidden one; at or below 0: none

  CUTE_DEVICE Causal(Params const& p, Rows const& rows, RowIndex const& row)
    : visible(row.offset(p.query, rows.rank) + p.offset + 1)
  {}

  CUTE_DEVICE explicit Causal(int64_t visible) : visible(visible) {}

  CUTE_DEVICE Causal from(int column) const { return Causal(visible - column); }
  CUTE_DEVICE int end(int end) const { return visible < end ? (visible > 0 ? int(visible) : 0) : end; }
};

}  // namespace softmax
