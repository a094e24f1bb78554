#pragma once

#include <softmax/rows.cuh>
#include <softmax/scores.cuh>

namespace softmax {

// Which columns a row sees by their place alone. Query i stands at p = i + offset; visible are the columns p - left .. p + right,
// as far as they lie before the row's length. Causal is right = 0.
struct Band : InertFeature
{
  struct Params
  {
    int64_t offset;
    int64_t left;
    int64_t right;
    RowStrides query;                 // 1 for the query dimension, 0 for the others
    RowValue<int32_t const> offsets;  // to be added to the offset
    RowValue<int32_t const> lengths;  // visible columns, at most
  };

  static constexpr bool HidesTail = true;
  static constexpr bool HidesHead = true;

  int64_t position;
  int begin_;
  int end_;

  // Both loads are under way before the first use. (In the other order the offset would be widened, and waited for, first.)
  CUTE_DEVICE Band(Params const& p, Rows const& rows, RowIndex const& row)
  {
    int const length = p.lengths.present() ? p.lengths.at(rows, row) : rows.k;
    int const offset = p.offsets.present() ? p.offsets.at(rows, row) : 0;

    position = row.offset(p.query, rows.rank) + p.offset + offset;
    begin_   = clamped(position - p.left, rows.k);
    end_     = cute::min(clamped(position + p.right + 1, rows.k), clamped(length, rows.k));
    if (end_ <= begin_) { end_ = 0; }
  }

  CUTE_DEVICE Band from(int column) const
  {
    Band band = *this;
    band.position -= column;
    band.begin_ -= column;
    band.end_ -= column;
    return band;
  }

  CUTE_DEVICE int begin() const { return begin_; }
  CUTE_DEVICE int end(int end) const { return cute::max(cute::min(end_, end), 0); }

private:
  CUTE_DEVICE static int clamped(int64_t column, int k) { return int(cute::min(cute::max(column, int64_t(0)), int64_t(k))); }
};

// A band in which distance may cost: z -= slope |p - j|. Press et al., Train Short, Test Long (2022).
template <class Accumulator>
struct SlopedBand : Band
{
  struct Params : Band::Params
  {
    RowValue<Accumulator const> slopes;
  };

  Accumulator slope;
  bool slopes;

  CUTE_DEVICE SlopedBand(Params const& p, Rows const& rows, RowIndex const& row)
    : Band(p, rows, row), slope(0), slopes(p.slopes.present())
  {
    if (slopes) { slope = p.slopes.at(rows, row); }
  }

  CUTE_DEVICE SlopedBand(Band const& band, SlopedBand const& sloped) : Band(band), slope(sloped.slope), slopes(sloped.slopes) {}

  CUTE_DEVICE SlopedBand from(int column) const { return SlopedBand(Band::from(column), *this); }

  template <class Span, class ScoreVector>
  CUTE_DEVICE void apply(Span const& span, NoFragment, ScoreVector&& rZ /* (V) */) const
  {
    if (slopes) {
      Accumulator const distance = Accumulator(position - span.column);
      CUTE_UNROLL
      for (int v = 0; v < Span::Width; ++v) { rZ(v) = fma(-slope, fabs(distance - v), rZ(v)); }
    }
  }
};

}  // namespace softmax
