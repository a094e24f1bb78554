#pragma once

#include <softmax/rows.cuh>
#include <softmax/scores.cuh>

namespace softmax {

// What a column's place in the row decides. Query i stands at p = i + offset:
//   visible are the columns p - left .. p + right, as far as they lie before the row's length
//   z -= slope |p - j|
//
// Causal is right = 0. Press et al., Train Short, Test Long (2022) for the slopes, which there may be if MaySlope.
template <class Accumulator, bool MaySlope = true>
struct Band
{
  struct Params
  {
    int64_t offset;
    int64_t left;
    int64_t right;
    RowStrides query;                     // 1 for the query dimension, 0 for the others
    RowValue<int32_t const> offsets;      // to be added to the offset
    RowValue<int32_t const> lengths;      // visible columns, at most
    RowValue<Accumulator const> slopes;
  };

  static constexpr bool HidesTail = true;
  static constexpr bool HidesHead = true;

  template <int Vec>
  using Fragment = NoFragment;

  int begin_;
  int end_;
  int64_t position;
  Accumulator slope;
  bool slopes;

  CUTE_DEVICE Band(Params const& p, Rows const& rows, RowIndex const& row)
    : position(row.offset(p.query, rows.rank) + p.offset), slope(0), slopes(p.slopes.present())
  {
    if (p.offsets.present()) { position += p.offsets.at(rows, row); }
    if (MaySlope && slopes) { slope = p.slopes.at(rows, row); }
    begin_ = clamped(position - p.left, rows.k);
    end_   = clamped(position + p.right + 1, rows.k);
    if (p.lengths.present()) { end_ = cute::min(end_, clamped(p.lengths.at(rows, row), rows.k)); }
    if (end_ <= begin_) { end_ = 0; }
  }

  CUTE_DEVICE Band from(int column) const
  {
    Band band = *this;
    band.begin_ -= column;
    band.end_ -= column;
    band.position -= column;
    return band;
  }

  CUTE_DEVICE int begin() const { return begin_; }
  CUTE_DEVICE int end(int end) const { return cute::max(cute::min(end_, end), 0); }

  template <class How, class Row, class Seen, class Registers>
  CUTE_DEVICE void load(How, Row const&, Seen, Registers) const
  {}

  template <class Span, class ScoreVector>
  CUTE_DEVICE void apply(Span const& span, NoFragment, ScoreVector&& rZ /* (V) */) const
  {
    if (MaySlope && slopes) {
      Accumulator const distance = Accumulator(position - span.column);
      CUTE_UNROLL
      for (int v = 0; v < Span::Width; ++v) { rZ(v) = multiply_add(-slope, absolute(distance - v), rZ(v)); }
    }
  }

private:
  CUTE_DEVICE static int clamped(int64_t column, int k) { return int(cute::min(cute::max(column, int64_t(0)), int64_t(k))); }
};

}  // namespace softmax
